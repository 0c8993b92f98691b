"Each notebook runs top to bottom in a fresh kernel, as it would in JupyterLab"
import nbformat, pytest
from nbclient import NotebookClient
from conftest import ROOT

NBS = ROOT/'nbs'
PAGES = sorted(p.name for p in NBS.glob('*.ipynb'))

@pytest.mark.parametrize('page', PAGES)
def test_notebook(page):
    nb = nbformat.read(NBS/page, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata':{'path':str(NBS)}}).execute()
