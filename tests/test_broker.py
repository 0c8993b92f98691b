"What the broker's page cannot show in one process: mirrors, races, signals, and the end of a parent"
import http.server, os, shutil, signal, subprocess, sys, threading, time
from contextlib import suppress
import psutil, pytest
from kafka import KafkaProducer
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import Broker, broker_status, fetch_jars, free_port, jar_name, pinned, stop_broker
from sepsis_nb.stream.connect import answers_kafka, client_args
from sepsis_nb.stream.kafka import create_topics

ODD = 'ä ö,b:c#50%20?\\ x' # a name that lists with commas or colons, addresses and Latin-1 would take apart

@pytest.fixture(scope='module')
def jars(): return fetch_jars()

def repository_path(coord):
    group,artifact,version = coord.split(':')
    return f"/{group.replace('.', '/')}/{artifact}/{version}/{jar_name(coord)}"

@pytest.fixture
def mirror(jars, tmp_path):
    "A Maven repository on this machine, made of the cached jars: environment that uses it, and the paths it served"
    files,served = {repository_path(c):jars/jar_name(c) for c in pinned()},[]
    class Maven(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = files[self.path].read_bytes() if self.path in files else b''
            if body: served.append(self.path)
            self.send_response(200 if body else 404)
            self.send_header('content-length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Maven)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path/'jgo.conf').write_text(f'[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n')
    yield dict(os.environ, JGO_CONFIG_FILE=str(tmp_path/'jgo.conf')), served
    server.shutdown()

@pytest.fixture(scope='module')
def run():
    "Start Python code in a process of its own, which is killed at the end if it still runs"
    started = []
    def start(code, env=None, **kwargs):
        pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(subprocess.Popen([sys.executable, '-c', code], env=env, **pipes, **kwargs))
        return started[-1]
    yield start
    for p in started: p.kill()

def done(process, seconds=60):
    out,err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out

def soon(claim, seconds=20):
    until = time.monotonic()+seconds
    while not claim() and time.monotonic() < until: time.sleep(.1)
    return claim()

def gone(pid): return soon(lambda: not psutil.pid_exists(pid))

def test_two_processes_fetch_at_once(mirror, run, tmp_path):
    env,served = mirror
    cache = tmp_path/ODD
    fetch = f'from sepsis_nb.stream.broker import fetch_jars; fetch_jars({str(cache)!r})'
    for p in [run(fetch, env) for _ in range(2)]: done(p)
    assert [o.name for o in cache.iterdir()] == ['kafka-4.3.1']
    names = sorted(o.name for o in (cache/'kafka-4.3.1').iterdir())
    assert names == sorted(map(jar_name, pinned()))
    for o in names[:3]: (cache/'kafka-4.3.1'/o).unlink()
    served.clear()
    done(run(fetch, env))
    assert sorted(o.rpartition('/')[2] for o in served) == names[:3], 'only what is missing is fetched'
    env['JGO_CONFIG_FILE'] = os.devnull
    done(run('import sys; sys.modules["jgo"] = None; '+fetch, env))

PARENT = '''
import time
from kafka import KafkaProducer
from sepsis_nb.settings import Topics
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import client_args, create_topics, read_topic
with Broker() as b:
    create_topics(b.kafka, Topics())
    p = KafkaProducer(**client_args(b.kafka))
    print(b.pid, b.port, b.data, flush=True)
    try: time.sleep(60)
    finally:
        p.send('input-topic', b'last')
        p.flush()
        p.close()
        print(len(list(read_topic('input-topic', b.kafka))), flush=True)
'''
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL

@pytest.fixture(scope='module')
def parents(run, jars):
    "A process with a broker of its own for each signal, all started at once"
    return {s:run(PARENT, start_new_session=True) for s in SIGNALS}

@pytest.mark.parametrize('number', SIGNALS, ids=lambda o: o.name)
def test_broker_ends_with_its_parent(number, parents):
    p = parents[number]
    pid,port,data = p.stdout.readline().split()
    assert answers_kafka(int(port))
    os.killpg(p.pid, number) # to the whole group, as a terminal does with Ctrl-C
    assert gone(int(pid)), 'the broker outlived its parent'
    assert answers_kafka(int(port)) is None
    out,err = p.communicate(timeout=20)
    if number == signal.SIGINT:
        assert out.strip() == '1' and 'KeyboardInterrupt' in err, 'the client could not flush and read'
    assert soon(lambda: not os.path.exists(data)), 'the temporary folder was left behind'

@pytest.fixture(scope='module')
def archived(jars):
    "The jars with the archive of their classes, which the first broker of a machine makes"
    with Broker(): return jars

@pytest.mark.parametrize('damage', ['cut', 'changed', 'none'])
def test_a_damaged_archive_of_classes_is_not_read(archived, damage, tmp_path):
    "A broker starts, as without one"
    cache = tmp_path/'cache'
    shutil.copytree(archived, cache/archived.name, copy_function=os.link)
    archive, = (cache/archived.name).glob('classes-*.jsa')
    whole = archive.read_bytes()
    archive.unlink()
    half = len(whole)//2
    archive.write_bytes(dict(cut=whole[:half], changed=whole[:half]+bytes(1000)+whole[half+1000:], none=b'')[damage])
    with Broker(cache=cache) as b:
        assert answers_kafka(b.port)
        assert ('hecksum verification failed' in b.log.read_text()) == (damage == 'changed')

START = '''
import os
os.umask(0)
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import start_broker
print(start_broker(load_settings()).state)
'''

@pytest.fixture
def background(tmp_path, jars):
    "Environment and settings with a broker address and odd folders of their own; the broker is stopped at the end"
    work,cache = tmp_path/ODD/'work', tmp_path/ODD/'cache'
    shutil.copytree(jars, cache/jars.name, copy_function=os.link)
    env = dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS=f'127.0.0.1:{free_port()}', SEPSIS_PATHS_WORK=str(work),
               SEPSIS_PATHS_CACHE=str(cache), LC_ALL='C')
    s = load_settings(env=env)
    yield os.environ | env,s
    stop_broker(s)

def readable_by_others(folder): return [p for p in folder.rglob('*') if not p.is_symlink() and p.stat().st_mode & 0o077]

def test_two_commands_start_at_once(run, background):
    "In folders with odd names, which hold all that is written, for their owner alone whatever the umask"
    env,s = background
    both = [run(START, env) for _ in range(2)]
    assert sorted(done(p).strip() for p in both) == ['running', 'started']
    create_topics(s.kafka, s.topics)
    with KafkaProducer(**client_args(s.kafka)) as producer: # a partition's folder exists once it has taken a row
        for n in range(4): producer.send(s.topics.input, b'{}', b'p1', partition=n).get(10)
    data = s.work/'kafka'
    assert len(list(data.glob('topics/input-topic-?/*.log'))) == 4 and data.stat().st_mode & 0o777 == 0o700
    assert not readable_by_others(data) and {o.name for o in s.work.parent.iterdir()} == {'work', 'cache'}
    assert [f(s).state for f in (broker_status, stop_broker, broker_status)] == ['running', 'stopped', 'stopped']

def test_ctrl_c_during_a_start_leaves_nothing(run, background):
    env,s = background
    p,java = run(START, env, start_new_session=True),[]
    while p.poll() is None and not java:
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess): # the format tool, which has just ended
            java = [c for c in psutil.Process(p.pid).children() if 'kafka.Kafka' in c.cmdline()]
        time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    assert 'KeyboardInterrupt' in p.communicate(timeout=40)[1]
    assert java and gone(java[0].pid)
    assert broker_status(s).state == 'stopped'
