"Each notebook runs top to bottom in a fresh kernel, as it would in JupyterLab"
import nbformat, pytest
from conftest import ROOT
from nbclient import NotebookClient

NBS = ROOT/'nbs'
STUDIES = {'02_train.ipynb', 'original_study.ipynb', 'site.ipynb'} # tests/test_train.py runs them as commands do
PAGES = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}

@pytest.mark.parametrize('page', sorted(PAGES-STUDIES))
@pytest.mark.usefixtures('forked')
def test_notebook(page):
    nb = nbformat.read(NBS/page, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name='python3', resources={'metadata':{'path':str(NBS)}}).execute()
