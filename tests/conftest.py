"One broker and one toy champion for the whole run; the user's store, work folder and reports stay as they are"
import fcntl, json, os, signal, subprocess, sys, time
from dataclasses import asdict
from pathlib import Path
import pytest
from sepsis_nb.prove.harness import Line, ToyStore, toy_store
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
os.umask(0o077) # as the commands do, which `sepsis doctor` checks
signal.signal(signal.SIGINT, signal.default_int_handler) # `nohup make test &` ignores it, and children inherit that

# What takes longest, in this order, so that nothing long is left for one process at the end
LONG = ('test_train.py', 'test_cluster.py', 'test_wheel.py', 'notebook[prove/2', 'notebook[how_to', 'notebook[run',
        'notebook[prove/32_chaos', 'notebook[prove/40', 'test_chaos.py::test_nothing_', 'test_grow.py', 'test_deploy',
        'test_security.py', 'test_topics.py', 'test_cli.py', 'notebook[0', 'notebook[stream/', 'test_bytes.py',
        'test_board', 'test_producer.py', 'test_broker.py', 'notebook[prove/', 'test_operate.py', 'test_worker.py',
        'test_model.py', 'test_metrics.py', 'test_forward.py', 'test_lives.py', 'notebook[')
ALONE = 'test_notebook[', 'test_chaos.py::test_nothing_', 'test_operate.py', 'test_worker.py', 'test_bytes.py'

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((n for n,o in enumerate(LONG) if o in item.nodeid), len(LONG)))

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Tests of a module share what they make, so they run in one process; those of `ALONE` in any"
    from xdist.scheduler import LoadScopeScheduling
    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if any(o in nodeid for o in ALONE) else nodeid.split('::')[0]
    config.option.loadscopereorder = False # as they are sorted
    return Scheduler(config, log)

@pytest.fixture(scope='session', autouse=True)
def apart(tmp_path_factory):
    "A folder for everything that tests and notebooks write, named to them by the environment as an operator would"
    tmp = tmp_path_factory.mktemp('sepsis')
    os.environ |= {'SEPSIS_PATHS_WORK':f'{tmp}/work', 'SEPSIS_PATHS_REPORTS':f'{tmp}/reports',
                   'SEPSIS_MLFLOW_TRACKING_URI':f'sqlite:///{tmp}/mlflow.db', 'SEPSIS_WORKER_WEB_PORT':'0'}
    os.environ.setdefault('NUMBA_CACHE_DIR', str(load_settings().cache/'numba')) # a new cache would compile anew
    return tmp

@pytest.fixture(scope='session', autouse=True)
def kafka(apart):
    "The embedded Kafka on a free port; `SEPSIS_KAFKA_BOOTSTRAP_SERVERS` names it to child processes"
    with Broker(apart/'kafka', cache=load_settings().cache) as broker:
        os.environ['SEPSIS_KAFKA_BOOTSTRAP_SERVERS'] = broker.bootstrap
        yield broker

@pytest.fixture(scope='session')
def store(apart, tmp_path_factory):
    """A `ToyStore`, made once for all test processes and only read: a champion (monitor4), and the original study's
    forest with its scaler"""
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: shared = shared.parent # of this run
    note = shared/'toy_store.json'
    with open(shared/'toy_store.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists(): note.write_text(json.dumps(asdict(toy_store(shared/'toy_store')), default=str))
    found = json.loads(note.read_text())
    return ToyStore(**found | dict(folder=Path(found['folder'])))

@pytest.fixture(scope='session')
def kernels(apart):
    "A folder for `JUPYTER_PATH` whose kernel starts from loaded packages, see `forked_kernel`"
    program,path,folder = ROOT/'tests/forked_kernel.py', apart/'kernel.sock', apart/'jupyter/kernels/python3'
    folder.mkdir(parents=True)
    argv = [sys.executable, str(program), str(path), '-f', '{connection_file}']
    (folder/'kernel.json').write_text(json.dumps(dict(argv=argv, display_name='forked', language='python')))
    with subprocess.Popen([sys.executable, program, 'serve', path]) as server:
        while not path.exists(): assert server.poll() is None and not time.sleep(.1)
        yield folder.parent.parent
        server.terminate()

@pytest.fixture(scope='module')
def forked(kernels):
    "Pages that this module runs start from loaded packages"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JUPYTER_PATH', str(kernels))
        yield

@pytest.fixture
def line(kafka, store, tmp_path):
    "A `Line` with topics of its own on the session's broker and store, in a folder with an odd name"
    with Line(tmp_path/'ä ö,b:c#50%20?{x}\\ x', **store.env) as o: yield o
