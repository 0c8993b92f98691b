"Access on a secured broker, secrets in logs and files, and models that run code"
import os, pickle, re, socket, ssl, subprocess, sys, time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from threading import Thread
import psutil, pytest, skops.io, trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (BestAvailableEncryption, Encoding, NoEncryption,
    PrivateFormat, load_pem_private_key)
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import (GroupAuthorizationFailedError, MessageSizeTooLargeError, TopicAuthorizationFailedError,
    for_code)
from sklearn.preprocessing import FunctionTransformer
from sepsis_nb.cli import main
from sepsis_nb.data import read
from sepsis_nb.model.contract import read_model
from sepsis_nb.model.registry import RegistryError
from sepsis_nb import load_scorer
from sepsis_nb.prove.harness import Line
from sepsis_nb.settings import Kafka, load_settings
from sepsis_nb.stream.broker import Broker, Security
from sepsis_nb.stream.connect import check_address, client_args
from sepsis_nb.stream.kafka import wait_for
from sepsis_nb.stream.supervise import exit_code
from sepsis_nb.ward.forward import Forwarder

PASSWORDS = {u:f'hunter2-{u}-9Gx' for u in ('admin', 'monitor', 'worker', 'board', 'forward', 'nobody')}
KEY_PASSWORD = 'hunter2-key-7Qz'
SECRET = 'hunter2' # is in every secret here

def sepsis(*args, env):
    "Text and exit code of a command in this process"
    r = CliRunner(env=env).invoke(main, args)
    assert SECRET not in r.output and (r.exception is None or isinstance(r.exception, SystemExit)), r.output
    return r.output, r.exit_code

LOUD = 'import logging; logging.basicConfig(level=logging.DEBUG, force=True); from sepsis_nb.cli import main; main()'
TALKATIVE = [sys.executable, '-m', 'faust', '-A', 'sepsis_nb.worker', 'worker', '--loglevel=debug']

def process(*cmd, env, seconds=90):
    "The same of a process of its own"
    r = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    assert SECRET not in r.stdout
    return r.stdout, r.returncode

class Secured:
    "A broker that asks for logins, with certificates and settings for each of its users"
    def __init__(self, tmp):
        self.tmp,self.authority,self.ca = tmp, trustme.CA(), str(tmp/'ca.crt')
        self.authority.cert_pem.write_to_path(self.ca)
        security = Security(*self.issue('broker'), self.ca, PASSWORDS)
        self.broker = Broker(tmp/'kafka', cache=load_settings().cache, security=security)

    def issue(self, name, password=None):
        got = self.authority.issue_cert('127.0.0.1', common_name=name)
        cert,key = self.tmp/f'{name}.crt',self.tmp/f'{name}.key'
        cert.write_bytes(b''.join(o.bytes() for o in got.cert_chain_pems))
        hide = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        private = load_pem_private_key(got.private_key_pem.bytes(), None)
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hide))
        return str(cert), str(key)

    def kafka(self, port, protocol, **more):
        "Environment of the section [kafka]"
        more |= dict(bootstrap_servers=f'127.0.0.1:{port}', security_protocol=protocol, ssl_cafile=self.ca)
        return {f'SEPSIS_KAFKA_{k.upper()}':v for k,v in more.items()}

    def login(self, user):
        "Environment of a user with a password, which stands in a file"
        (self.tmp/user).write_text(PASSWORDS[user]+'\n')
        return self.kafka(self.broker.port, 'SASL_SSL', sasl_mechanism='SCRAM-SHA-256', sasl_username=user,
                          sasl_password_file=str(self.tmp/user))

    def certificate(self, user):
        "Environment of a user with a certificate, whose key has a password"
        cert,key = self.issue(user, KEY_PASSWORD)
        return self.kafka(self.broker.tls_port, 'SSL', ssl_certfile=cert, ssl_keyfile=key,
                          ssl_key_password=KEY_PASSWORD)

@pytest.fixture(scope='module')
def safe(apart, tmp_path_factory):
    o = Secured(tmp_path_factory.mktemp('safe'))
    with o.broker: yield o

@pytest.fixture(scope='module')
def rows():
    df = read('sample')
    return df[df.patient_id.isin(df.patient_id.unique()[:10])]

@pytest.fixture(scope='module')
def line(safe, store, rows, tmp_path_factory):
    "Topics with access rules, made by the commands that an operator uses; some 400 rows sent by the monitor"
    tmp = tmp_path_factory.mktemp('line')
    o = Line(tmp, TALKATIVE, SEPSIS_MLFLOW_TRACKING_URI=store.uri, **safe.login('admin'))
    made,_ = sepsis('topics', 'create', env=o.env)
    assert made.count(': created') == 6, made
    users = '--producer', 'User:monitor', '--worker', 'User:worker', '--consumer', 'User:board'
    ruled,_ = sepsis('topics', 'grant', *users, '--forwarder', 'User:forward', env=o.env)
    assert f'User:monitor may WRITE topic {o.s.topics.input}\n' in ruled and 'there before' not in ruled, ruled
    rows.drop(columns='label').to_parquet(tmp/'rows.parquet')
    send = 'produce', str(tmp/'rows.parquet'), '--loops', '1', '--quiet'
    sent,_ = sepsis(*send, env=o.env | safe.login('monitor'))
    assert f'{len(rows)} acknowledged, 0 failed' in sent, sent
    yield o
    o.close()

def kafka_of(env): return load_settings(env={k:v for k,v in env.items() if k.startswith('SEPSIS_')}).kafka

def write(kafka, topic, value=b'{}', **more):
    # with idempotence the refusal would come earlier, and would not name the topic
    p = KafkaProducer(**client_args(kafka), enable_idempotence=False, **more)
    try: p.send(topic, value, key=b'p1').get(15)
    finally: p.close(timeout=1)

def look(kafka, topic, group=None):
    "Read a record, or raise the broker's refusal"
    admin = KafkaAdminClient(**client_args(kafka))
    try: found, = admin.describe_topics([topic])
    finally: admin.close()
    if found['error_code']: raise for_code(found['error_code'])(topic)
    c = KafkaConsumer(**client_args(kafka), group_id=group, auto_offset_reset='earliest', enable_auto_commit=False)
    try:
        if group: c.subscribe([topic])
        else: c.assign([TopicPartition(topic, o['partition_index']) for o in found['partitions']])
        until = time.monotonic()+15
        while not (got := c.poll(timeout_ms=500)): assert time.monotonic() < until, f'nothing in {topic}'
        return got
    finally: c.close()

REFUSED = [('monitor', look, 'input output'), ('monitor', write, 'output state'), ('worker', write, 'input'),
           ('worker', look, 'output dead_letter'), ('board', look, 'input state dead_letter'),
           ('board', write, 'input output'), ('forward', look, 'input output state dead_letter'),
           ('forward', write, 'input output alerts state'), ('nobody', look, 'output'), ('nobody', write, 'input')]

@pytest.mark.parametrize('user,deed,topics', REFUSED, ids=lambda o: getattr(o, '__name__', o))
def test_what_no_rule_allows_is_refused(line, safe, user, deed, topics):
    kafka = kafka_of(safe.login(user))
    for t in topics.split():
        with pytest.raises(TopicAuthorizationFailedError): deed(kafka, getattr(line.s.topics, t))

def test_nobody_joins_the_worker_or_asks_for_more(line, safe):
    board = kafka_of(safe.login('board'))
    with pytest.raises(GroupAuthorizationFailedError): look(board, line.s.topics.output, line.s.worker.app_id)
    for args in ('topics', 'create'), ('topics', 'grant', '--consumer', 'User:nobody'):
        text,code = sepsis(*args, env=line.env | safe.login('worker') | dict(SEPSIS_TOPICS_INPUT='another'))
        assert code == 1 and 'uthorization' in text, text

def test_a_forwarder_passes_alerts_on_with_just_its_rights(line, safe):
    "What it reads, commits and sets aside; the endpoint refuses it, so each alert becomes a dead letter"
    alerts = line.s.topics.alerts
    write(kafka_of(safe.login('worker')), alerts, b'no alert')
    env = line.env | safe.login('forward')
    s = load_settings(env={k:v for k,v in env.items() if k.startswith('SEPSIS_')})
    until = time.monotonic()+60
    with closing(Forwarder(s, 'http://127.0.0.1:9/')) as f:
        while not f.counts['dead_letters']:
            assert time.monotonic() < until, f.counts
            f.step()
    found = line.admin.list_group_offsets(s.forward.group)[s.forward.group]
    assert sum(o.offset for tp,o in found.items() if tp.topic == alerts) == 1
    with pytest.raises(GroupAuthorizationFailedError): look(s.kafka, alerts, 'another-group')

def test_a_message_above_the_limit_is_refused(line, safe):
    monitor = kafka_of(safe.login('monitor'))
    with pytest.raises(MessageSizeTooLargeError):
        write(monitor, line.s.topics.input, bytes(1_100_000), max_request_size=2_000_000)

def listening(pid):
    "Addresses at which a process and its children listen"
    p = psutil.Process(pid)
    found = [c for o in (p, *p.children(recursive=True)) for c in o.net_connections()]
    return {c.laddr.ip.removeprefix('::ffff:') for c in found if c.status == psutil.CONN_LISTEN}

@pytest.mark.parametrize('way', ['login', 'certificate'])
def test_the_line_runs_with_just_its_rights(line, safe, rows, way):
    "Worker, consumer and doctor over SASL_SSL or mutual TLS, each as its own user; no debug log shows a secret"
    worker,board = (line.env | getattr(safe, way)(o) for o in ('worker', 'board'))
    n = line.count()
    if n: write(kafka_of(safe.certificate('monitor')), line.s.topics.input, b'{"patient_id": "p1", "HR": 80}')
    p = line.start(**worker)
    line.wait(n+1 if n else len(rows))
    assert listening(p.pid) == listening(safe.broker.pid) == {'127.0.0.1'}
    assert line.stop(p) == 0
    consume = 'consume', line.s.topics.output, '--from-beginning', '--max', '3', '--timeout', '20'
    seen,_ = process(sys.executable, '-c', LOUD, *consume, env=board)
    assert sum(o.startswith('{"patient_id"') for o in seen.splitlines()) == 3 and 'DEBUG' in seen, seen[-2000:]
    text,_ = sepsis('doctor', env=worker)
    assert text.count('ok    ') == 10 and text.count('LACKS ') == 1 and 'LACKS jars' in text, text # not in this cache
    assert SECRET not in line.text()
    seconds = re.findall(r'states read .* seconds=([0-9.]+)', line.text())
    assert max(map(float, seconds)) < 20, 'closing a TLS connection waited for its time limit'

WRONG = dict(SEPSIS_KAFKA_SASL_PASSWORD='hunter2-wrong', SEPSIS_KAFKA_SASL_PASSWORD_FILE='')
FAILURES = dict(
    wrong=('worker', WRONG, 'it refuses sasl_username or its password', os.EX_CONFIG),
    rights=('board', {}, 'this login may not use the consumer group', os.EX_CONFIG),
    twice=('worker', dict(SEPSIS_KAFKA_SASL_PASSWORD='hunter2-twice'), 'both give the secret', 1),
    address=('worker', dict(SEPSIS_MLFLOW_TRACKING_URI='http://u:hunter2@127.0.0.1:9'), 'MLFLOW_TRACKING_PASSWORD', 1))

@pytest.mark.parametrize('mistake', FAILURES)
def test_a_failure_shows_no_secret(line, safe, mistake):
    "A worker that cannot start, at level DEBUG, and the doctor"
    user,env,words,wanted = FAILURES[mistake]
    env = line.env | safe.login(user) | env
    text,code = process(*TALKATIVE, env=env, seconds=60)
    assert code == wanted and words in text, text[-2000:]
    assert sepsis('doctor', env=env)[1] == 1

def at(port, host='127.0.0.1'): return dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS=f'{host}:{port}')
def other_ca(safe): # an authority that has signed nothing here
    trustme.CA().cert_pem.write_to_path(str(safe.tmp/'other.crt'))
    return dict(SEPSIS_KAFKA_SSL_CAFILE=str(safe.tmp/'other.crt'))

# what is wrong with a login: its words, and whether waiting could help
FAULTS = dict(
    password=(lambda o, _: WRONG, 'it refuses sasl_username or its password', False),
    mechanism=(lambda o, _: dict(SEPSIS_KAFKA_SASL_MECHANISM='SCRAM-SHA-512'), 'it knows SCRAM-SHA-256', False),
    no_tls=(lambda o, _: dict(SEPSIS_KAFKA_SECURITY_PROTOCOL='SASL_PLAINTEXT'), 'it speaks TLS', False),
    tls=(lambda o, plain: at(plain), 'it speaks no TLS', False),
    no_login=(lambda o, _: dict(SEPSIS_KAFKA_SECURITY_PROTOCOL='SSL'), 'it asks for a login', False),
    certificate=(lambda o, _: at(o.broker.tls_port), 'it refuses our certificate, or asks for one', False),
    authority=(lambda o, _: other_ca(o), 'is not trusted (unable to get local issuer', False),
    name=(lambda o, _: at(o.broker.port, 'localhost'), 'Hostname mismatch', False),
    closed=(lambda o, _: at(9), 'Connection refused', True),
    dns=(lambda o, _: at(9093, 'nowhere.invalid'), 'nowhere.invalid does not resolve', True))

@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_a_connection_are_told_apart(safe, kafka, fault):
    "One line, for commands and doctor, and the exit code that a worker would end with"
    change,words,may_pass = FAULTS[fault]
    env = safe.login('worker') | change(safe, kafka.port)
    for command in () if may_pass else (('topics', 'create'), ('consume', 'output-topic')): # else they wait
        text,code = sepsis(*command, env=env)
        assert code == 1 and words in text and text.count('\n') == 1, text
    if not may_pass: assert words in sepsis('doctor', env=env)[0]
    with pytest.raises(ConnectionError) as e: wait_for(kafka_of(env), .1)
    assert exit_code(e.value) == (os.EX_UNAVAILABLE if may_pass else os.EX_CONFIG)

@pytest.mark.parametrize('days,words', [(-9, 'expired'), (9, 'not yet valid')])
def test_a_certificate_out_of_its_dates(safe, days, words):
    "may become valid by a clock or by its renewal"
    server,now = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), datetime.now(UTC)
    dates = dict(not_before=now+timedelta(days), not_after=now+timedelta(days+5))
    safe.authority.issue_cert('127.0.0.1', **dates).configure_cert(server)
    def serve():
        with suppress(OSError): server.wrap_socket(listener.accept()[0], server_side=True)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        Thread(target=serve, daemon=True).start()
        kafka = Kafka(f'127.0.0.1:{listener.getsockname()[1]}', 'SSL', ssl_cafile=safe.ca)
        with pytest.raises(ConnectionError, match=words) as e: check_address(kafka, *kafka.addresses[0])
    assert exit_code(e.value) == os.EX_UNAVAILABLE

def test_no_secret_reaches_a_file(line, store, safe):
    "Not MLflow's database, an artifact, the worker's log, the broker's topics or its log; test_train.py has training"
    files = [p for o in (store.folder, safe.broker.data, line.folder) for p in o.rglob('*') if p.is_file()]
    assert {'mlflow.db', 'broker.log', 'MLmodel'} <= {p.name for p in files} # and a worker's log, if one ran before
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]

class Poison:
    "Runs a command when it is unpickled"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)

class Fetched:
    "A scikit-learn model as a worker has fetched it"
    def __init__(self, store, cache):
        self.store,self.cache,self.mark = store,cache,cache/'mark'
        self.load()
        forest = max(cache.glob('models/*/model.skops'), key=lambda o: o.stat().st_size) # the other one is its scaler
        self.folder = forest.parent

    def load(self): return load_scorer(self.store.forest, self.store.scaler, self.store.uri, self.cache)

    def poison(self, name):
        "Put a pickle that runs a command in place of the model"
        (self.folder/'model.skops').unlink()
        (self.folder/name).write_bytes(pickle.dumps(Poison(self.mark)))
        described = self.folder/'MLmodel'
        described.write_text(described.read_text().replace('model.skops', name))

@pytest.fixture
def fetched(store, tmp_path): return Fetched(store, tmp_path)

@pytest.mark.parametrize('name,why', [('model.pkl', 'is a pickle, which is never loaded'),
                                      ('model.skops', 'cannot be read'), ('model.bin', 'cannot be read')])
def test_a_pickle_is_not_loaded_under_any_name(fetched, name, why):
    fetched.poison(name)
    with pytest.raises(RegistryError, match=why): read_model(fetched.folder)
    fetched.load() # finds that these are not the files of the store
    assert not fetched.mark.exists()

def test_skops_types_that_run_code_are_refused(fetched):
    (fetched.folder/'model.skops').write_bytes(skops.io.dumps(FunctionTransformer(func=os.system)))
    with pytest.raises(RegistryError, match=r'not trusted.*\n?.*system'): read_model(fetched.folder)
