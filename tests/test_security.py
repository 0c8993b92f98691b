"Who may do what on a secured broker, who sees a secret, what a poisoned model can do, and which doors are open"
import os, pickle, re, subprocess, sys, time
import lightgbm as lgb, mlflow, psutil, pytest, skops.io, trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import GroupAuthorizationFailedError, MessageSizeTooLargeError, TopicAuthorizationFailedError, for_code
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import FunctionTransformer
from sepsis_nb.stream.broker import Broker, Security
from sepsis_nb.stream.kafka import read_outputs, topic_ends
from sepsis_nb.cli import main
from sepsis_nb.data import read
from sepsis_nb.features import SPECS, extract
from sepsis_nb.model.registry import RegistryError, register, use_store
from sepsis_nb.model.scorer import load_scorer
from sepsis_nb.model.contract import log_model
from sepsis_nb.stream.kafka import client_args
from sepsis_nb.settings import load_settings
from test_worker import Line

SPEC = SPECS['monitor4']
PASSWORDS = {u:f'hunter2-{u}-9Gx' for u in ('admin', 'monitor', 'worker', 'board', 'nobody')}
KEY_PASSWORD = 'hunter2-key-7Qz'
SECRET = 'hunter2' # is in every secret here

def sepsis(*args, env):
    "Text and exit code of a command in this process"
    r = CliRunner(env=env).invoke(main, args)
    assert SECRET not in r.output and (r.exception is None or isinstance(r.exception, SystemExit)), r.output
    return r.output, r.exit_code

def process(*args, env, code='from sepsis_nb.cli import main; main()', seconds=90):
    "The same of a command in one of its own"
    r = subprocess.run([sys.executable, '-c', code, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    assert SECRET not in r.stdout
    return r.stdout, r.returncode

LOUD = 'import logging; logging.basicConfig(level=logging.DEBUG, force=True); from sepsis_nb.cli import main; main()'

class Secured:
    "A broker that asks for logins, with certificates and settings for each of its users"
    def __init__(self, tmp):
        self.tmp,self.authority,self.ca = tmp, trustme.CA(), str(tmp/'ca.crt')
        self.authority.cert_pem.write_to_path(self.ca)
        self.broker = Broker(tmp/'kafka', cache=load_settings().cache, security=Security(*self.issue('broker'), self.ca, PASSWORDS))

    def issue(self, name, password=None):
        got,cert,key = self.authority.issue_cert('127.0.0.1', common_name=name), self.tmp/f'{name}.crt', self.tmp/f'{name}.key'
        cert.write_bytes(b''.join(o.bytes() for o in got.cert_chain_pems))
        hide = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        key.write_bytes(load_pem_private_key(got.private_key_pem.bytes(), None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hide))
        return str(cert), str(key)

    def login(self, user):
        "Environment of a user with a password, which lies in a file"
        (self.tmp/user).write_text(PASSWORDS[user]+'\n')
        return dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS=self.broker.bootstrap, SEPSIS_KAFKA_SECURITY_PROTOCOL='SASL_SSL', SEPSIS_KAFKA_SASL_MECHANISM='SCRAM-SHA-256',
                    SEPSIS_KAFKA_SASL_USERNAME=user, SEPSIS_KAFKA_SASL_PASSWORD_FILE=str(self.tmp/user), SEPSIS_KAFKA_SSL_CAFILE=self.ca)

    def certificate(self, user):
        "Environment of a user with a certificate, whose key has a password"
        cert,key = self.issue(user, KEY_PASSWORD)
        return dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS=f'127.0.0.1:{self.broker.tls_port}', SEPSIS_KAFKA_SECURITY_PROTOCOL='SSL', SEPSIS_KAFKA_SSL_CAFILE=self.ca,
                    SEPSIS_KAFKA_SSL_CERTFILE=cert, SEPSIS_KAFKA_SSL_KEYFILE=key, SEPSIS_KAFKA_SSL_KEY_PASSWORD=KEY_PASSWORD)

@pytest.fixture(scope='module')
def safe(apart, tmp_path_factory):
    o = Secured(tmp_path_factory.mktemp('safe'))
    with o.broker: yield o

@pytest.fixture(scope='module')
def store(tmp_path_factory, rows):
    "A store whose champion is a small LightGBM, with a scikit-learn model beside it"
    tmp = tmp_path_factory.mktemp('store')
    uri,was = f'sqlite:///{tmp}/mlflow.db', (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    use_store(uri, 'security')
    X,y = extract(rows, SPEC), (rows.groupby('patient_id').cumcount() > 20).astype(int)
    with mlflow.start_run() as run:
        log_model('LightGBM', lgb.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, y), SPEC, .5)
        plain = log_model('Plain', RandomForestClassifier(3).fit(X.to_numpy(copy=True), y), SPEC, .5)
    register(run.info.run_id, 'LightGBM', .4, 'here')
    mlflow.set_tracking_uri(was[0]); mlflow.set_registry_uri(was[1])
    return dict(uri=uri, plain=plain, folder=tmp)

@pytest.fixture(scope='module')
def rows():
    df = read('sample')
    return df[df.patient_id.isin(set(df.patient_id.unique()[:10]))]

@pytest.fixture(scope='module')
def line(safe, store, rows, tmp_path_factory):
    "Topics with rules, made by the commands that an operator uses; 400 rows or so sent by the monitor"
    tmp = tmp_path_factory.mktemp('line')
    o = Line(store, tmp, **safe.login('admin'))
    made,_ = sepsis('topics', 'create', env=o.env)
    assert made.count(': created') == 5, made
    ruled,_ = sepsis('topics', 'grant', '--producer', 'User:monitor', '--worker', 'User:worker', '--consumer', 'User:board', env=o.env)
    assert f'User:monitor may WRITE topic {o.s.topics.input}\n' in ruled and 'there before' not in ruled, ruled
    rows.drop(columns='label').to_parquet(tmp/'rows.parquet')
    sent,_ = sepsis('produce', str(tmp/'rows.parquet'), '--loops', '1', '--quiet', env=o.env | safe.login('monitor'))
    assert f'{len(rows)} acknowledged, 0 failed' in sent, sent
    yield o
    o.close()

def kafka_of(env): return load_settings(env={k:v for k,v in env.items() if k.startswith('SEPSIS_')}).kafka

def write(kafka, topic, value=b'{}', **more):
    p = KafkaProducer(**client_args(kafka), enable_idempotence=False, **more) # else the refusal comes earlier and does not name the topic
    try: p.send(topic, value, key=b'p1').get(15)
    finally: p.close(timeout=1)

def look(kafka, topic, group=None):
    "Read a record, or raise what the broker has against that"
    admin = KafkaAdminClient(**client_args(kafka))
    try: found, = admin.describe_topics([topic])
    finally: admin.close()
    if found['error_code']: raise for_code(found['error_code'])(topic)
    c = KafkaConsumer(**client_args(kafka), group_id=group, auto_offset_reset='earliest', enable_auto_commit=False)
    try:
        c.subscribe([topic]) if group else c.assign([TopicPartition(topic, o['partition_index']) for o in found['partitions']])
        until = time.monotonic()+15
        while not (got := c.poll(timeout_ms=500)): assert time.monotonic() < until, f'nothing in {topic}'
        return got
    finally: c.close()

REFUSED = [('monitor', look, 'input'), ('monitor', look, 'output'), ('monitor', write, 'output'), ('monitor', write, 'state'),
           ('worker', write, 'input'), ('worker', look, 'output'), ('worker', look, 'dead_letter'),
           ('board', look, 'input'), ('board', look, 'state'), ('board', look, 'dead_letter'), ('board', write, 'input'), ('board', write, 'output'),
           ('nobody', look, 'output'), ('nobody', write, 'input')]

@pytest.mark.parametrize('user,deed,topic', REFUSED, ids=lambda o: getattr(o, '__name__', o))
def test_what_no_rule_allows_is_refused(line, safe, user, deed, topic):
    with pytest.raises(TopicAuthorizationFailedError): deed(kafka_of(safe.login(user)), getattr(line.s.topics, topic))

def test_nobody_joins_the_worker_or_asks_for_more(line, safe):
    board = kafka_of(safe.login('board'))
    with pytest.raises(GroupAuthorizationFailedError): look(board, line.s.topics.output, line.s.worker.app_id)
    for args in ('topics', 'create'), ('topics', 'grant', '--consumer', 'User:nobody'):
        said,code = sepsis(*args, env=line.env | safe.login('worker') | dict(SEPSIS_TOPICS_INPUT='another'))
        assert code == 1 and 'uthorization' in said, said

def test_a_message_above_the_limit_is_refused(line, safe):
    with pytest.raises(MessageSizeTooLargeError): write(kafka_of(safe.login('monitor')), line.s.topics.input, bytes(1_100_000), max_request_size=2_000_000)

def listening(pid):
    "Addresses at which a process and its children listen"
    p = psutil.Process(pid)
    return {c.laddr.ip.removeprefix('::ffff:') for o in (p, *p.children(recursive=True)) for c in o.net_connections() if c.status == psutil.CONN_LISTEN}

def talkative(line, **env):
    "A worker that logs all it can"
    with open(line.log, 'ab') as out: p = subprocess.Popen([sys.executable, '-m', 'faust', '-A', 'sepsis_nb.worker', 'worker', '--loglevel=debug'],
                                                          env=line.env | env, stdout=out, stderr=subprocess.STDOUT, cwd=line.log.parent)
    line.procs.append(p)
    return p

@pytest.mark.parametrize('way', ['login', 'certificate'])
def test_the_line_runs_with_just_its_rights(line, safe, rows, way):
    "Worker, consumer and doctor over SASL_SSL or mutual TLS, each as the user it should be; logs at their most talkative show no secret"
    me,board = (getattr(safe, way)(o) for o in ('worker', 'board'))
    n = line.count(line.s.topics.output)
    if n: write(kafka_of(line.env | safe.certificate('monitor')), line.s.topics.input, b'{"patient_id": "p1", "HR": 80}')
    p = talkative(line, **me)
    line.wait(n+1 if n else len(rows))
    assert listening(p.pid) == listening(safe.broker.pid) == {'127.0.0.1'}
    assert line.stop(p) == 0
    seen,_ = process('consume', line.s.topics.output, '--from-beginning', '--max', '3', '--timeout', '20', env=line.env | board, code=LOUD)
    assert sum(o.startswith('{"patient_id"') for o in seen.splitlines()) == 3 and 'DEBUG' in seen, seen[-2000:]
    well,_ = sepsis('doctor', env=line.env | me)
    assert well.count('ok    ') == 6 and well.count('LACKS ') == 1 and 'LACKS jars' in well, well # the embedded broker's, not in this test's cache
    assert SECRET not in line.text()
    assert max(float(o) for o in re.findall(r'states read .* seconds=([0-9.]+)', line.text())) < 20, 'closing a TLS connection waited for its time limit'

@pytest.mark.parametrize('env,says', [(dict(SEPSIS_KAFKA_SASL_PASSWORD='hunter2-wrong', SEPSIS_KAFKA_SASL_PASSWORD_FILE=''), 'no Kafka can be used'),
                                      (dict(SEPSIS_KAFKA_SASL_PASSWORD='hunter2-twice'), 'both give the secret'),
                                      (dict(SEPSIS_MLFLOW_TRACKING_URI='http://ward:hunter2@127.0.0.1:9'), 'MLFLOW_TRACKING_PASSWORD')], ids=['wrong', 'twice', 'address'])
def test_a_failure_shows_no_secret(line, safe, env, says):
    "The worker at its most talkative when it cannot start, and the doctor"
    env = line.env | safe.login('worker') | env
    r = subprocess.run([sys.executable, '-m', 'faust', '-A', 'sepsis_nb.worker', 'worker', '--loglevel=debug'], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert r.returncode and says in r.stdout and SECRET not in r.stdout, r.stdout[-2000:]
    assert sepsis('doctor', env=env)[1] == 1

def test_no_secret_reaches_a_file(line, store, safe):
    "Neither MLflow's database nor an artifact, the worker's log nor the broker's topics and log have one; for training see test_train.py"
    files = [p for o in (store['folder'], safe.broker.data, line.log.parent) for p in o.rglob('*') if p.is_file()]
    assert {'mlflow.db', 'broker.log', 'worker.log', 'MLmodel'} <= {p.name for p in files}
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]

class Poison:
    "Runs a command when it is unpickled"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f'touch {self.mark}',)

@pytest.fixture
def cached(store, tmp_path):
    "The scikit-learn model as a worker has fetched it"
    load_scorer(store['plain'], '', store['uri'], tmp_path)
    return next((tmp_path/'models').iterdir())

def test_a_pickle_is_not_loaded(store, tmp_path, cached):
    (cached/'model.pkl').write_bytes(pickle.dumps(Poison(tmp_path/'mark')))
    (cached/'MLmodel').write_text((cached/'MLmodel').read_text().replace('model.skops', 'model.pkl'))
    with pytest.raises(RegistryError, match='is a pickle, which is never loaded'): load_scorer(store['plain'], '', store['uri'], tmp_path)
    assert not (tmp_path/'mark').exists()

@pytest.mark.parametrize('name', ['model.skops', 'model.bin'])
def test_a_pickle_under_another_name_is_not_loaded(store, tmp_path, cached, name):
    (cached/'model.skops').unlink()
    (cached/name).write_bytes(pickle.dumps(Poison(tmp_path/'mark')))
    (cached/'MLmodel').write_text((cached/'MLmodel').read_text().replace('model.skops', name))
    with pytest.raises(RegistryError, match='cannot be read'): load_scorer(store['plain'], '', store['uri'], tmp_path)
    assert not (tmp_path/'mark').exists()

def test_skops_types_that_run_code_are_refused(store, tmp_path, cached):
    poison = FunctionTransformer(func=os.system)
    (cached/'model.skops').write_bytes(skops.io.dumps(poison))
    with pytest.raises(RegistryError, match=r'not trusted.*\n?.*system'): load_scorer(store['plain'], '', store['uri'], tmp_path)
