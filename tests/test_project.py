"What must stay true of the project as a whole: rooms, exports, clean pages, README from the index, no machine paths"
import ast, re, shutil, subprocess, sys, tempfile, tomllib
from pathlib import Path
from pkgutil import resolve_name
import nbformat, pytest
from conftest import ROOT

PKG,NBS = ROOT/'sepsis_nb', ROOT/'nbs'
MODULES = {p.relative_to(PKG).with_suffix('').as_posix().replace('/', '.'):p for p in PKG.rglob('*.py')
           if p.stem not in ('__init__', '_modidx')}
FOLDERS = 'rows', 'model', 'report', 'stream', 'ward', 'prove'
# folder, or room at the top, to what it may import of the others; the design's table
BELOW = {'data', 'features', 'model', 'rows', 'settings', 'terminal'}
MAY = dict(settings=set(), terminal=set(), commands={'terminal'}, rows={'settings'}, data={'rows'},
           features={'data', 'rows', 'settings'},
           model=BELOW, report=BELOW, stream=BELOW, producer={'data', 'rows', 'settings', 'stream', 'terminal'},
           ward=BELOW | {'stream'}, worker=BELOW | {'stream', 'ward'}, train=BELOW | {'report'})
_FAUST = 'stream.transport', 'stream.delivery', 'stream.kafka', 'worker', 'prove'
FOREIGN = dict(kafka=('stream', 'producer', 'prove', 'cli'), aiokafka=_FAUST, faust=_FAUST,
               dask=('model.cluster',), distributed=('model.cluster',), matplotlib=('report', 'prove'))

def imports(path):
    "Modules that a file imports, anywhere in it, as (absolute name, names)"
    here = path.relative_to(PKG).parts[:-1]
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.Import): yield from ((a.name, ()) for a in n.names)
        if not isinstance(n, ast.ImportFrom): continue
        up = here[:len(here)-n.level+1] if n.level else ()
        yield '.'.join(('sepsis_nb', *up, n.module or '') if n.level else (n.module,)), tuple(a.name for a in n.names)

def inner(path):
    "Modules of the package that a file imports"
    for name,names in imports(path):
        if not name.startswith('sepsis_nb.'): continue
        name = name.removeprefix('sepsis_nb.')
        yield from [name] if name in MODULES else [f'{name}.{n}' for n in names]

def part(module): return module.split('.')[0]

@pytest.mark.parametrize('module', MODULES)
def test_rooms(module):
    if part(module) not in MAY: return # prove and cli may import all
    wrong = {o for o in map(part, inner(MODULES[module])) if o != part(module)}-MAY[part(module)]
    assert not wrong, f'{module} may not import {wrong}: move the shared part down'

def test_imports_make_no_circle():
    left = {m:set(inner(p)) for m,p in MODULES.items()}
    while free := [m for m,needs in left.items() if not needs & set(left)]:
        for m in free: del left[m]
    assert not left, f'these import each other: {", ".join(left)}'

@pytest.mark.parametrize('library', FOREIGN)
def test_who_knows_a_library(library):
    users = {m for m,p in MODULES.items() if any(name.split('.')[0] == library for name,_ in imports(p))}
    wrong = {m for m in users if m not in FOREIGN[library] and part(m) not in FOREIGN[library]}
    assert not wrong, f'{library} is used in {", ".join(sorted(wrong))}'

def test_worker_starts_light():
    "What brings scikit-learn, SciPy or plots at import costs every worker a second at its start"
    # numba imports scipy's root
    heavy = ('sklearn', 'scipy.linalg', 'scipy.stats', 'matplotlib', 'mlflow', 'lightgbm', 'xgboost', 'dask',
             'distributed')
    code = f'import sys, sepsis_nb.worker; print(*[o for o in {heavy} if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []

def test_training_without_a_cluster_needs_no_dask():
    "Dask is an extra: nothing imports it before a cluster is asked for"
    code = '''
import sys, sepsis_nb.train, sepsis_nb.cli
from sepsis_nb.model.cluster import open_cluster
from sepsis_nb.model.search import cross_validate
print(*[o for o in ('dask', 'distributed') if o in sys.modules])'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split() == []

def test_supervisor_stays_light():
    "It waits beside each worker for as long as that lives, and the worker's start waits for it"
    assert {name.split('.')[0] for name,_ in imports(MODULES['stream.supervise'])} <= sys.stdlib_module_names

def test_imports_are_in_order():
    "Whole modules, then names of other packages, then of this one, each by name"
    for m,p in MODULES.items():
        body = [n for n in ast.parse(p.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        def rank(n): return (0, '') if isinstance(n, ast.Import) else (1+bool(n.level), '.'*-n.level+(n.module or ''))
        kinds = [rank(n)[0] for n in body]
        assert kinds == sorted(kinds), f'{m}: imports of this package come last, whole modules first'

def test_size():
    "A room has one idea, and a line 120 columns at most (but nbdev's own)"
    lines = {m:p.read_text().splitlines() for m,p in MODULES.items()}
    assert not {m:len(l) for m,l in lines.items() if len(l) > 450}
    assert not [f'{m}:{n}' for m,l in lines.items() for n,o in enumerate(l, 1)
                if len(o) > 120 and not o.startswith(('# %%', '__all__', "           '"))]

def test_a_name_means_one_thing():
    "No public name is defined in two modules"
    owners = {}
    for m,p in MODULES.items():
        tree = ast.parse(p.read_text())
        assigned = [n for n in tree.body if isinstance(n, ast.Assign)]
        names = next(ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], 'id', '') == '__all__')
        defined = {t.id for n in assigned for t in n.targets if isinstance(t, ast.Name)}
        defined |= {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
        for name in set(names) & defined-{'log'}: owners.setdefault(name, []).append(m)
    assert not {n:o for n,o in owners.items() if len(o) > 1}

def copy(tmp):
    "The notebooks, the package and the configuration in a folder of their own"
    left = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for d in 'nbs', 'sepsis_nb': shutil.copytree(ROOT/d, tmp/d, ignore=left)
    for f in 'pyproject.toml', 'README.md', 'settings.ini', 'constraints.txt': shutil.copy(ROOT/f, tmp/f)
    return tmp

def run(*cmd, cwd):
    full = [str(Path(sys.executable).parent/cmd[0]), *cmd[1:]]
    return subprocess.run(full, cwd=cwd, check=True, capture_output=True, text=True)

def same(a, b, pattern):
    "Files under `a` that differ from those under `b`"
    names = {p.relative_to(a) for p in a.rglob(pattern)} | {p.relative_to(b) for p in b.rglob(pattern)}
    def read(p): return p.read_bytes() if p.exists() else None
    left = {'__pycache__', '.ipynb_checkpoints'}
    return sorted(str(n) for n in names if not set(n.parts) & left and read(a/n) != read(b/n))

def test_export_is_fresh(tmp_path):
    for old in (copy(tmp_path)/'sepsis_nb').rglob('*.py'):
        if old.name != '__init__.py': old.unlink()
    run('nbdev-export', cwd=tmp_path)
    assert not same(tmp_path/'sepsis_nb', PKG, '*.py'), 'stale export: run `make page`'

def test_pages_are_clean(tmp_path):
    subprocess.run([sys.executable, str(ROOT/'.ci/clean.py'), str(copy(tmp_path)/'nbs')], cwd=ROOT, check=True)
    assert not same(tmp_path/'nbs', NBS, '*.ipynb'), 'unclean notebooks: run `make page`'

def test_readme_is_the_index(tmp_path):
    subprocess.run([sys.executable, str(ROOT/'.ci/readme.py'), str(tmp_path)], cwd=ROOT, check=True)
    made = (tmp_path/'README.md').read_text()
    assert made == (ROOT/'README.md').read_text(), 'README.md is not nbs/index.ipynb: run `make page`'

def test_ruff():
    "Unused and undefined names, likely bugs, import order, 120 columns, in notebooks, package and tests"
    cmd = [sys.executable, '-m', 'ruff', 'check', 'nbs', 'sepsis_nb', 'tests', '.ci']
    r = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    assert not r.returncode, r.stdout[-3000:]

def test_types():
    "Calls fit the signatures; see [tool.ty.rules] for what is left out"
    cmd = [str(Path(sys.executable).parent/'ty'), 'check', 'sepsis_nb']
    r = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    assert not r.returncode, r.stdout[-3000:]

@pytest.mark.parametrize('page', ['02_train', 'original_study', 'site'])
def test_parameters_are_tagged(page):
    cells = nbformat.read(NBS/f'{page}.ipynb', 4).cells
    tagged = [c for c in cells if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1, 'papermill would ignore every parameter'

def tracked():
    "Texts of the files that git has, or would take"
    cmd = ['git', 'ls-files', '-co', '--exclude-standard']
    names = subprocess.run(cmd, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\n')
    return {n:(ROOT/n).read_text(errors='ignore') for n in names if (ROOT/n).is_file()}

def test_names_no_machine():
    "No page, output or module carries a path of the machine it was made on"
    places = [str(ROOT), str(Path.home()), tempfile.gettempdir()+'/']
    assert not {n:p for n,t in tracked().items() for p in places if p in t}

@pytest.mark.parametrize('name', ['README.md', 'SECURITY.md', 'CONTRIBUTING.md'])
def test_texts_name_what_there_is(name):
    "A module, or a thing in it, that a text names can be imported"
    assert all(resolve_name(o) for o in re.findall(r'\bsepsis_nb(?:\.\w+)+', (ROOT/name).read_text()))

def test_version_pins_name_every_dependency():
    pins = {re.split('==', l)[0].lower() for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l}
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    named = project['dependencies']+sum(project['optional-dependencies'].values(), [])
    wanted = {re.split(r'[\[<>=; ]', d)[0].lower() for d in named}-{project['name']}
    assert wanted <= pins, f'constraints.txt does not pin {wanted-pins}'

def test_no_pickle():
    "Tasks of a cluster are pickles, as all of Dask's are, in a folder that is checked to be the owner's"
    for m,p in MODULES.items():
        if m == 'model.cluster': continue
        used = re.search(r'\b(import (cloud)?pickle|joblib\.(load|dump)|pickle\.(load|dump)s?\()', p.read_text())
        assert not used, f'{m} uses pickle'
