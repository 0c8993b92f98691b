"A wheel as `python -m build` makes it holds every file, and passes the demonstration outside the repository"
import os, shutil, subprocess, sys, threading
import pytest
from conftest import ROOT
from sepsis_nb.data import read
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import free_port

def python(*args, cwd, **env):
    "Output of a Python process that must succeed"
    p = subprocess.Popen([sys.executable, *map(str, args)], cwd=cwd, env=os.environ | env, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    end = threading.Timer(400, p.terminate) # in order, so that nothing is left running
    end.start()
    out = p.communicate()[0]
    end.cancel()
    assert p.returncode == 0, out[-3000:]
    return out

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Folder into which the wheel is installed; its dependencies are those of this environment"
    tmp = tmp_path_factory.mktemp('wheel')
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.egg-info')
    for d in 'nbs', 'sepsis_nb': shutil.copytree(ROOT/d, tmp/'source'/d, ignore=ignore)
    for f in 'LICENSE', 'README.md', 'pyproject.toml': shutil.copy(ROOT/f, tmp/'source'/f)
    python('-m', 'build', '--no-isolation', '-o', tmp/'dist', tmp/'source', cwd=tmp)
    wheel, = (tmp/'dist').glob('*.whl')
    python('-m', 'pip', 'install', '-q', '--no-deps', '--no-compile', '--target', tmp/'site', wheel, cwd=tmp)
    return tmp/'site'

def test_wheel_holds_every_file(site):
    files = {p.relative_to(ROOT) for p in (ROOT/'sepsis_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    missing = sorted(str(p) for p in files if not (site/p).is_file())
    assert not missing, f'the wheel lacks {missing}: list them in pyproject.toml, [tool.setuptools]'
    assert (site/'sepsis_nb/nbs/02_train.ipynb').is_file()

DEMO = '''
import sepsis_nb, sys
from sepsis_nb.data import read
from sepsis_nb.prove.demo import demo
from sepsis_nb.settings import load_settings
print(sepsis_nb.__file__)
other = read('sample-eicu')
assert other.patient_id.nunique() == 896
other[other.patient_id.isin(other.patient_id.unique()[:200])].to_parquet('other.parquet') # evaluated in seconds
demo(load_settings(), 20, sys.argv[1], models='LightGBM', features='vitals', folds=3, external='other.parquet')
'''

def test_wheel_passes_the_demo(site, tmp_path):
    df = read('sample')
    df[df.patient_id.isin(df.patient_id.unique()[:160])].to_parquet(tmp_path/'stays.parquet', index=False)
    env = dict(PYTHONPATH=str(site), SEPSIS_KAFKA_BOOTSTRAP_SERVERS=f'127.0.0.1:{free_port()}',
               SEPSIS_MLFLOW_TRACKING_URI=f'sqlite:///{tmp_path}/mlflow.db', SEPSIS_PATHS_WORK=str(tmp_path/'work'),
               SEPSIS_PATHS_REPORTS=str(tmp_path/'reports'), SEPSIS_PATHS_CACHE=str(load_settings().cache))
    out = python('-c', DEMO, tmp_path/'stays.parquet', cwd=tmp_path, **env)
    assert out.startswith(str(site)), out[:500]
    assert 'Champion: sepsis version 1' in out and 'Everything that was started is stopped again' in out, out
    assert (tmp_path/'work/demo/02_train.html').is_file()
