"The command line as a user runs it: the messages on bad input, and that a signal leaves nothing running"
import json, os, re, signal, subprocess, sys, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
import psutil, pytest
from sepsis_nb.cli import main
from sepsis_nb.model.job import PARAMETERS, SITE_PARAMETERS
from sepsis_nb.prove.harness import SEPSIS
from sepsis_nb.rows.simulate import simulate
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import free_port
from sepsis_nb.stream.kafka import create_topics, topic_ends

PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def sepsis(*args, **env):
    "Exit code and output of a command"
    p = subprocess.run([*SEPSIS, *args], env=os.environ | env, timeout=60, **PIPES)
    return p.returncode, p.stdout

@pytest.fixture
def started():
    "Start a process, and kill what is left of it and its children at the end"
    found = []
    def start(*cmd, **env):
        found.append(psutil.Popen(cmd, env=os.environ | env, **PIPES))
        return found[-1]
    yield start
    for p in found:
        for o in [*p.children(recursive=True), p] if p.is_running() else []:
            with suppress(psutil.NoSuchProcess): o.kill()

@pytest.fixture(scope='module')
def csv(tmp_path_factory): return str(simulate(tmp_path_factory.mktemp('synthetic'), rows=(300, 300))[-1])

NOTHING = dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='127.0.0.1:9')
MISTAKES = [
    (('produce', 'nowhere.csv'), {}, 'nowhere.csv: no such file'),
    (('produce', '{csv}'), NOTHING, 'no Kafka at 127.0.0.1:9'),
    (('consume', 'output-topic'), NOTHING, 'no Kafka at 127.0.0.1:9'),
    (('topics', 'create'), dict(SEPSIS_TOPICS_INPUT='bad topic'), "'bad topic' contains"),
    (('topics', 'create'), dict(SEPSIS_TOPICS_PARTITIONS='four'), "SEPSIS_TOPICS_PARTITIONS is 'four'"),
    (('broker', 'start'), dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='kafka'), "'kafka': expected host:port"),
    (('doctor',), dict(SEPSIS_SETTINGS='none.ini'), 'SEPSIS_SETTINGS=none.ini: no such file'),
    (('worker', '--once'), dict(SEPSIS_MLFLOW_TRACKING_URI='http://127.0.0.1:9'), # else tried for ever
     'http://127.0.0.1:9: the server does not answer'),
    (('train', '-p', 'fold', '3'), {}, "unknown parameter 'fold', did you mean 'folds'"),
    (('gate', '{csv}', '{csv}'), {}, 'is not JSON'),
    (('ui',), dict(SEPSIS_MLFLOW_TRACKING_URI='sqlite:////nowhere/m.db'), 'folder /nowhere does not exist'),
    (('train', '-p', 'tracking_uri', 'http://u:hunter2@127.0.0.1:9'), {}, 'MLFLOW_TRACKING_PASSWORD'),
]

@pytest.fixture(scope='module')
def answers(csv):
    "Exit code, output and seconds of each mistake; two run at a time"
    def answer(args, env, words):
        began = time.monotonic()
        return *sepsis(*(a.format(csv=csv) for a in args), **env), time.monotonic()-began
    with ThreadPoolExecutor(2) as pool: yield [pool.submit(answer, *o) for o in MISTAKES]

@pytest.mark.parametrize('n', range(len(MISTAKES)), ids=['-'.join(o[0][:2]) for o in MISTAKES])
def test_an_error_is_one_line(answers, n):
    code,text,seconds = answers[n].result()
    assert code and MISTAKES[n][2] in text and 'Traceback' not in text
    assert seconds < 60, 'it was tried again and again'

NO_PEM = dict(SEPSIS_KAFKA_SSL_CAFILE=__file__, SEPSIS_KAFKA_SECURITY_PROTOCOL='SSL')
STARTS = [(dict(SEPSIS_WORKER_STOP_S='inf'), '', os.EX_CONFIG, 'SEPSIS_WORKER_STOP_S, section [worker]: stop_s inf'),
          (NO_PEM, '', os.EX_CONFIG, '[kafka] ssl_cafile'),
          ({}, "sys.modules['sepsis_nb.stream.transport'] = None; ", os.EX_SOFTWARE, 'the program cannot be loaded')]

@pytest.mark.parametrize('env,before,wanted,words', STARTS, ids=['setting', 'file', 'half-upgraded'])
def test_a_worker_that_cannot_even_begin(env, before, wanted, words):
    "One line, and the code by which its supervisor knows whether to start it again"
    code = f"import sys; {before}from sepsis_nb.cli import main; main(['worker', '--child'])"
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ | env, stdin=subprocess.PIPE, **PIPES)
    text = p.stdout.read() # with its stdin open, as a supervisor has it
    assert (p.wait(30), text.count('\n')) == (wanted, 1) and words in text, text
    p.stdin.close()

def metrics_file(path, auprc, **gate):
    "A metrics JSON as a training run leaves it"
    value = dict(utility=.41, auroc=.82, auprc=auprc)
    draws = {m:[v+d/100 for d in range(-5, 6)] for m,v in value.items()}
    record = dict(evaluation='0123456789abcdef', model='LightGBM', value=value, draws=draws)
    path.write_text(json.dumps(dict(protocol='patient', gate=record | gate)))
    return str(path)

def test_gate_names_what_got_worse(tmp_path):
    base,lost = metrics_file(tmp_path/'base.json', .12),metrics_file(tmp_path/'lost.json', .11)
    code,text = sepsis('gate', base, lost)
    assert code == 1 and re.findall(r'^(\w+) got worse', text, re.M) == ['auprc'] and 'Nothing got worse' not in text
    code,text = sepsis('gate', lost, base)
    assert code == 0 and 'auprc got better' in text and 'Nothing got worse' in text

def test_gate_refuses_what_cannot_be_compared(tmp_path):
    other = metrics_file(tmp_path/'new.json', .12, evaluation='fedcba9876543210')
    code,text = sepsis('gate', metrics_file(tmp_path/'base.json', .12), other)
    assert code == 2 and 'train both on the same' in text and 'Traceback' not in text

SIGNALS = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda o: o.name)

@SIGNALS
def test_produce_prints_two_lines_and_its_account(csv, number, started):
    topics = dict(SEPSIS_TOPICS_INPUT=f'two-lines-{number.name.lower()}')
    s = load_settings(env={k:v for k,v in (os.environ | topics).items() if k.startswith('SEPSIS_')})
    create_topics(s.kafka, s.topics)
    p = started(*SEPSIS, 'produce', csv, '--pause', '0.1', **topics)
    lines = [p.stdout.readline(), p.stdout.readline()]
    time.sleep(1)
    p.send_signal(number)
    rest = p.communicate(timeout=20)[0]
    assert p.returncode == 0
    n = int(re.match(r'Streaming (\d+) records', lines[1])[1])
    assert lines == ['Patient data loaded and validated successfully.\n',
                     f"Streaming {n} records to Kafka topic '{s.topics.input}'...\n"]
    sent = rf"Sent (\d+) records to Kafka topic '{s.topics.input}' after {number.name}: "
    last = 'Kafka producer stopped by user.\nKafka producer closed.\n' # the original's own
    assert rest.startswith(last)
    account = re.fullmatch(sent+r'(\d+) acknowledged, 0 failed, 0 unknown, .*\n', rest.removeprefix(last))
    assert account[1] == account[2] == str(sum(topic_ends(s.topics.input, s.kafka).values()))

def opens(url, p, seconds=90):
    "Status of a page, once the process serves it; None if it does not"
    until = time.monotonic()+seconds
    while time.monotonic() < until and p.poll() is None:
        try: return urllib.request.urlopen(url, timeout=5).status
        except OSError: time.sleep(.3)

def test_ui_serves_this_machine_and_leaves_nothing(tmp_path, started):
    port = free_port()
    p = started(*SEPSIS, 'ui', '--port', str(port), SEPSIS_MLFLOW_TRACKING_URI=f'sqlite:///{tmp_path}/m.db')
    assert opens(f'http://127.0.0.1:{port}/', p) == 200
    children = p.children(recursive=True)
    listening = {c.laddr.ip for o in children for c in o.net_connections('tcp') if c.status == psutil.CONN_LISTEN}
    p.send_signal(signal.SIGINT)
    assert p.wait(30) == 0 and listening == {'127.0.0.1'}
    assert not psutil.wait_procs(children, timeout=10)[1]

FAMILY = """
from sepsis_nb.cli import _until_stopped
raise SystemExit(_until_stopped(['sh', '-c', 'sleep 60 & trap "" TERM; echo ready; sleep 60; sleep 60']))
"""

@SIGNALS
def test_a_signal_ends_a_command_and_its_children(number, started):
    p = started(sys.executable, '-c', FAMILY)
    assert p.stdout.readline() == 'ready\n'
    children = p.children(recursive=True)
    p.send_signal(number)
    assert p.wait(30) == 0 and len(children) >= 2
    assert not psutil.wait_procs(children, timeout=10)[1]

@pytest.mark.parametrize('command, known', [('train', PARAMETERS), ('site', SITE_PARAMETERS)])
def test_the_help_names_every_parameter_of_the_page(command, known):
    params = main.commands[command].params
    own = {o.removeprefix('--') for p in params for o in p.opts} # those that have an option of their own
    text = next(p.help for p in params if p.name == 'params')
    named = re.search(r'NAME: ([^.]+)\.', text)[1].replace('\n', ' ').split(', ')
    assert set(named) == set(known)-own
