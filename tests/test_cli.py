"The command line as a user runs it: what bad input says, and that a signal leaves nothing running"
import json, os, re, signal, subprocess, sys, time, urllib.request
import psutil, pytest
from sepsis_nb.stream.kafka import create_topics, topic_ends
from sepsis_nb.stream.broker import free_port
from sepsis_nb.settings import load_settings
from sepsis_nb.rows.simulate import simulate

SEPSIS = [sys.executable, '-c', 'from sepsis_nb.cli import main; main()']

def sepsis(*args, seconds=60, **env):
    "The finished process; its output in one text"
    return subprocess.run([*SEPSIS, *args], env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)

@pytest.fixture(scope='module')
def csv(tmp_path_factory): return simulate(tmp_path_factory.mktemp('synthetic'), rows=(300, 300))[-1]

@pytest.mark.parametrize('args,env,says', [
    (('produce', 'nowhere.csv'), {}, 'nowhere.csv: no such file'),
    (('produce', '{csv}'), dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='127.0.0.1:9'), '127.0.0.1:9 does not answer'),
    (('consume', 'output-topic'), dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='127.0.0.1:9'), 'no Kafka at 127.0.0.1:9'),
    (('topics', 'create'), dict(SEPSIS_TOPICS_INPUT='bad topic'), "'bad topic' contains"),
    (('topics', 'create'), dict(SEPSIS_TOPICS_PARTITIONS='four'), "SEPSIS_TOPICS_PARTITIONS is 'four'"),
    (('doctor',), dict(SEPSIS_SETTINGS='none.ini'), 'SEPSIS_SETTINGS=none.ini: no such file'),
    (('worker',), dict(SEPSIS_MLFLOW_TRACKING_URI='http://127.0.0.1:9'), 'MLflow server http://127.0.0.1:9 does not answer'),
    (('train', '-p', 'fold', '3'), {}, "unknown parameter 'fold', did you mean 'folds'"),
    (('gate', '{csv}', '{csv}'), {}, 'is not JSON'),
    (('ui',), dict(SEPSIS_MLFLOW_TRACKING_URI='sqlite:////nowhere/m.db'), 'folder /nowhere does not exist'),
    (('train', '-p', 'tracking_uri', 'http://u:hunter2@127.0.0.1:9'), {}, 'MLFLOW_TRACKING_PASSWORD'),
], ids=lambda o: '-'.join(o) if isinstance(o, tuple) else None)
def test_an_error_is_one_line(csv, args, env, says):
    began = time.monotonic()
    r = sepsis(*(a.format(csv=csv) for a in args), **env)
    assert r.returncode != 0 and says in r.stdout and 'Traceback' not in r.stdout
    assert time.monotonic()-began < 30

def run_file(path, auprc, **gate):
    "A metrics JSON as a training run leaves it"
    value = dict(utility=.41, auroc=.82, auprc=auprc)
    record = dict(evaluation='0123456789abcdef', model='LightGBM', value=value, draws={m:[v+d/100 for d in range(-5, 6)] for m,v in value.items()})
    path.write_text(json.dumps(dict(protocol='patient', gate=record | gate)))
    return str(path)

def test_gate_names_what_got_worse(tmp_path):
    base,lost = run_file(tmp_path/'base.json', .12),run_file(tmp_path/'lost.json', .11)
    worse,better = sepsis('gate', base, lost),sepsis('gate', lost, base)
    assert (worse.returncode, better.returncode) == (1, 0)
    assert re.findall(r'^(\w+) got worse', worse.stdout, re.M) == ['auprc'] and 'Nothing got worse' not in worse.stdout
    assert 'auprc got better' in better.stdout and 'Nothing got worse' in better.stdout

def test_gate_refuses_what_cannot_be_compared(tmp_path):
    r = sepsis('gate', run_file(tmp_path/'base.json', .12), run_file(tmp_path/'new.json', .12, evaluation='fedcba9876543210'))
    assert r.returncode == 2 and 'train both on the same' in r.stdout and 'Traceback' not in r.stdout

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda o: o.name)
def test_produce_says_two_lines_and_its_account(csv, number):
    topics = dict(SEPSIS_TOPICS_INPUT=f'two-lines-{number.name.lower()}')
    s = load_settings(env={k:v for k,v in (os.environ | topics).items() if k.startswith('SEPSIS_')})
    create_topics(s.kafka, s.topics)
    p = subprocess.Popen([*SEPSIS, 'produce', str(csv), '--pause', '0.1'], env=os.environ | topics, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [p.stdout.readline(), p.stdout.readline()]
    time.sleep(1)
    p.send_signal(number)
    rest = p.communicate(timeout=20)[0]
    assert p.returncode == 0
    n = int(re.match(r'Streaming (\d+) records', lines[1])[1])
    assert lines == ['Patient data loaded and validated successfully.\n', f"Streaming {n} records to Kafka topic '{s.topics.input}'...\n"]
    account = re.fullmatch(rf"Sent (\d+) records to Kafka topic '{s.topics.input}' after {number.name}: (\d+) acknowledged, 0 failed, 0 unknown, .*\n", rest)
    assert account[1] == account[2] == str(sum(topic_ends(s.topics.input, s.kafka).values()))

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda o: o.name)
def test_ui_serves_this_machine_and_leaves_nothing(number, tmp_path):
    port = free_port()
    p = subprocess.Popen([*SEPSIS, 'ui', '--port', str(port)], env=os.environ | dict(SEPSIS_MLFLOW_TRACKING_URI=f'sqlite:///{tmp_path}/m.db'),
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until,answer = time.monotonic()+90, None
    while answer is None and time.monotonic() < until and p.poll() is None:
        try: answer = urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5).status
        except OSError: time.sleep(.3)
    family = psutil.Process(p.pid).children(recursive=True)
    listening = {c.laddr.ip for o in family for c in o.net_connections('tcp') if c.status == psutil.CONN_LISTEN}
    p.send_signal(number)
    p.wait(30)
    assert answer == 200 and listening == {'127.0.0.1'}
    left = psutil.wait_procs(family, timeout=10)[1]
    assert not left
