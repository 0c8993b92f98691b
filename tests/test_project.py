"What must stay true of the project as a whole: rooms, exports, clean pages, a README that is the index, no paths of a machine"
import re, shutil, subprocess, sys, tempfile, tomllib
from pathlib import Path
import nbformat, pytest
from conftest import ROOT

PKG,NBS = ROOT/'sepsis_nb', ROOT/'nbs'
MAY = dict(settings=set(), data={'settings'}, features={'data'}, metrics=set(), policy={'features'}, simulate={'data'}, broker={'settings'}, producer={'data', 'settings'},
           registry={'data', 'features', 'metrics', 'policy', 'settings'}, worker={'data', 'features', 'policy', 'registry', 'settings', 'transport'}, transport=set(),
           report={'data', 'features', 'metrics', 'policy'}, train={'data', 'features', 'metrics', 'policy', 'registry', 'settings'},
           compare={'features', 'metrics', 'train'}, chaos={'bench', 'broker', 'data', 'demo', 'features', 'producer', 'registry', 'settings', 'worker'}, supervise=set(), operate={'broker', 'settings'},
           bench={'broker', 'data', 'features', 'policy', 'producer', 'registry', 'settings'})

def imports(room): return set(re.findall(r'^\s*from (?:\.|sepsis_nb\.)(\w+) import', (PKG/f'{room}.py').read_text(), re.M))

@pytest.mark.parametrize('room', MAY)
def test_rooms(room):
    assert imports(room) <= MAY[room], f'{room} may not import {imports(room)-MAY[room]}: move the shared part down'

def test_pure_rooms():
    for room in 'data', 'features', 'metrics', 'policy':
        assert not re.search(r'^\s*(from|import) (kafka|faust|mlflow)', (PKG/f'{room}.py').read_text(), re.M), f'{room} must run anywhere'

def test_worker_starts_light():
    "What brings scikit-learn, SciPy or plots at import costs every worker a second at its start"
    for room in 'features', 'policy', 'registry', 'worker':
        assert not re.search(r'^(from|import) (sklearn|scipy|matplotlib|mlflow|\.metrics|sepsis_nb\.metrics)', (PKG/f'{room}.py').read_text(), re.M), f'{room}: import it inside the function'

def test_supervisor_stays_light():
    "It waits beside each worker for as long as that lives, and the worker's start waits for it"
    names = re.findall(r'^(?:from|import) (.+?)(?: import .*)?$', (PKG/'supervise.py').read_text(), re.M)
    assert {o.strip() for n in names for o in n.split(',')} <= sys.stdlib_module_names

def copy(tmp):
    "The notebooks, the package and the configuration in a folder of their own"
    for d in 'nbs', 'sepsis_nb': shutil.copytree(ROOT/d, tmp/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in 'pyproject.toml', 'README.md', 'settings.ini', 'constraints.txt': shutil.copy(ROOT/f, tmp/f)
    return tmp

def run(*cmd, cwd): return subprocess.run([str(Path(sys.executable).parent/cmd[0]), *cmd[1:]], cwd=cwd, check=True, capture_output=True, text=True)

def same(a, b, pattern):
    "Files under `a` that differ from those under `b`"
    names = {p.relative_to(a) for p in a.rglob(pattern)} | {p.relative_to(b) for p in b.rglob(pattern)}
    read = lambda p: p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if not set(n.parts) & {'__pycache__', '.ipynb_checkpoints'} and read(a/n) != read(b/n))

def test_export_is_fresh(tmp_path):
    for old in (copy(tmp_path)/'sepsis_nb').glob('*.py'):
        if old.name != '__init__.py': old.unlink()
    run('nbdev-export', cwd=tmp_path)
    assert not same(tmp_path/'sepsis_nb', PKG, '*.py'), 'stale export: run `make page`'

def test_pages_are_clean(tmp_path):
    run('nbdev-clean', cwd=copy(tmp_path))
    assert not same(tmp_path/'nbs', NBS, '*.ipynb'), 'unclean notebooks: run `make page`'

def test_readme_is_the_index(tmp_path):
    subprocess.run([sys.executable, str(ROOT/'.ci/readme.py'), str(tmp_path)], cwd=ROOT, check=True)
    assert (tmp_path/'README.md').read_text() == (ROOT/'README.md').read_text(), 'README.md is not nbs/index.ipynb: run `make page`'

def test_parameters_are_tagged():
    tagged = [c for c in nbformat.read(NBS/'02_train.ipynb', 4).cells if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1, 'papermill would ignore every parameter'

def test_names_no_machine():
    "No page, output or module carries a path of the machine it was made on"
    places = [str(ROOT), str(Path.home()), tempfile.gettempdir()+'/']
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    texts = {n:(ROOT/n).read_text(errors='ignore') for n in names if (ROOT/n).is_file()}
    assert not {n:p for n,t in texts.items() for p in places if p in t}

def test_version_pins_name_every_dependency():
    pins = {re.split('==', l)[0].lower() for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l}
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    wanted = {re.split(r'[\[<>=; ]', d)[0].lower() for d in (*project['dependencies'], *project['optional-dependencies']['dev'])}
    assert wanted <= pins, f'constraints.txt does not pin {wanted-pins}'

def test_no_pickle():
    for p in PKG.glob('*.py'):
        assert not re.search(r'\b(import (cloud)?pickle|joblib\.(load|dump)|pickle\.(load|dump)s?\()', p.read_text()), f'{p.name} uses pickle'
