"Each notebook runs top to bottom in a fresh kernel, as it would in JupyterLab"
import json, nbformat, pytest, subprocess, sys, time
from conftest import ROOT
from nbclient import NotebookClient

NBS = ROOT/'nbs'
STUDIES = {'02_train.ipynb', 'original_study.ipynb', 'site.ipynb'} # tests/test_train.py runs them as commands do
PAGES = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}

@pytest.fixture(scope='session')
def kernel(apart):
    "Name of a kernel that starts from loaded packages, see `forked_kernel`"
    program,path,folder = ROOT/'tests/forked_kernel.py', apart/'kernel.sock', apart/'jupyter/kernels/forked'
    folder.mkdir(parents=True)
    argv = [sys.executable, str(program), str(path), '-f', '{connection_file}']
    (folder/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='forked', language='python')))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JUPYTER_PATH', str(folder.parent.parent))
        with subprocess.Popen([sys.executable, program, 'serve', path]) as server:
            while not path.exists(): assert server.poll() is None and not time.sleep(.1)
            yield 'forked'
            server.terminate()

@pytest.mark.parametrize('page', sorted(PAGES-STUDIES))
def test_notebook(kernel, page):
    nb = nbformat.read(NBS/page, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name=kernel, resources={'metadata':{'path':str(NBS)}}).execute()
