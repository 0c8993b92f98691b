"The worker as an operator runs it: processes, signals, a real broker"
import os, re, signal, socket, subprocess, sys, time, uuid
import lightgbm as lgb, mlflow, numpy as np, orjson, pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import create_topics, read_outputs, read_topic, topic_ends
from sepsis_nb.data import encode, messages, read
from sepsis_nb.features import SEED_SPEC, SPECS, extract
from sepsis_nb.model.risk import Calibration, fit_training_range
from sepsis_nb.model.policy import Policy, table_alerts, clear_threshold
from sepsis_nb.model.scorer import load_scorer, indeterminate_rows
from sepsis_nb.model.contract import log_model, log_scaler
from sepsis_nb.model.registry import register, use_store
from sepsis_nb.stream.kafka import client_args
from sepsis_nb.settings import load_settings

SPEC = SPECS['monitor4']

@pytest.fixture(scope='module')
def rows():
    "Real stays; a late hour stands for the label, as a model's worth does not matter here"
    df = read('sample')
    ids = df.patient_id.unique()
    return [df[df.patient_id.isin(set(o))].sort_values('time', kind='stable') for o in (ids[:200], ids[200:280])]

@pytest.fixture(scope='module')
def store(rows, tmp_path_factory):
    "A store with a champion that has calibration, policy and support, and with a forest and its scaler in runs of their own, as the original study logs them"
    uri,was = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    y = (rows[0].groupby('patient_id').cumcount() > 30).astype(int)
    use_store(uri, 'worker')
    X,half = extract(rows[0], SPEC), (rows[0].patient_id.factorize()[0] < 100)
    terms = dict(calibration=Calibration(.9, .1), policy=Policy(.3, clear_threshold(.3), 6.), support=fit_training_range(X[half], SPEC.names, X[~half], rows[0].patient_id[~half], epsilon=.05, tail=.02))
    with mlflow.start_run() as run: log_model('LightGBM', lgb.LGBMClassifier(n_estimators=50, verbose=-1).fit(X, y), SPEC, .5, **terms)
    register(run.info.run_id, 'LightGBM', .4, 'here')
    X = extract(rows[0], SEED_SPEC).fillna(0.)
    scaler = StandardScaler().fit(X)
    with mlflow.start_run(): scaler_uri = log_scaler(scaler, SEED_SPEC)
    with mlflow.start_run(): forest = log_model('RandomForest', RandomForestClassifier(20, random_state=42).fit(scaler.transform(X), y), SEED_SPEC, .3, scaler_uri)
    mlflow.set_tracking_uri(was[0]); mlflow.set_registry_uri(was[1])
    return dict(uri=uri, forest=forest, scaler=scaler_uri)

class Line:
    "Topics of a test's own, and workers on them"
    def __init__(self, store, tmp, **env):
        tag = uuid.uuid4().hex[:8]
        names = {f'SEPSIS_TOPICS_{k.upper()}':f'{k}-{tag}' for k in ('input', 'output', 'dead_letter', 'alerts', 'state')}
        self.env = os.environ | names | dict(SEPSIS_MLFLOW_TRACKING_URI=store['uri'], SEPSIS_WORKER_APP_ID=tag, SEPSIS_WORKER_WEB_PORT='0',
                                             SEPSIS_PATHS_CACHE=str(tmp/'cache'), SEPSIS_PATHS_WORK=str(tmp/'work')) | env
        self.s = load_settings(env={k:v for k,v in self.env.items() if k.startswith('SEPSIS_')})
        self.log,self.procs = tmp/'worker.log', []

    def start(self, **env):
        cmd = [sys.executable, '-m', 'faust', '-A', 'sepsis_nb.worker', 'worker', '--loglevel=info']
        with open(self.log, 'ab') as out: self.procs.append(subprocess.Popen(cmd, env=self.env | env, stdout=out, stderr=subprocess.STDOUT, cwd=self.log.parent))
        return self.procs[-1]

    def stop(self, p, how=signal.SIGTERM):
        "Exit code after a signal"
        p.send_signal(how)
        return p.wait(30)

    def send(self, df, pause=0., key=True):
        with_key = lambda o: o['patient_id'].encode() if key else None
        producer = KafkaProducer(**client_args(self.s.kafka))
        for n,o in enumerate(messages(df)):
            producer.send(self.s.topics.input, encode(o), key=with_key(o))
            if pause and n%50 == 0: producer.flush(); time.sleep(pause)
        producer.flush(); producer.close()

    def raw(self, records):
        producer = KafkaProducer(**client_args(self.s.kafka))
        for key,value in records: producer.send(self.s.topics.input, value, key=key)
        producer.flush(); producer.close()

    def count(self, topic): return sum(topic_ends(topic, self.s.kafka).values())

    def wait(self, n, topic=None, seconds=60):
        "Until `n` records lie on the output topic"
        until = time.monotonic()+seconds
        while (found := self.count(topic or self.s.topics.output)) < n:
            assert time.monotonic() < until, f'{found} of {n} records after {seconds} s\n{self.text()[-3000:]}'
            assert any(p.poll() is None for p in self.procs), self.text()[-3000:]
            time.sleep(.2)

    def said(self, words, n, seconds=60):
        "Until the workers' log has `words` `n` times"
        until = time.monotonic()+seconds
        while self.text().count(words) < n:
            assert time.monotonic() < until, f'{words!r} fewer than {n} times after {seconds} s\n{self.text()[-3000:]}'
            time.sleep(.1)

    def text(self): return self.log.read_text()

    def close(self):
        for p in self.procs:
            if p.poll() is None: p.kill(); p.wait()

@pytest.fixture
def line(kafka, store, tmp_path):
    o = Line(store, tmp_path)
    create_topics(o.s.kafka, o.s.topics)
    yield o
    o.close()

def check(line, df, scorer=None):
    "Every input offset once among outputs and dead letters, every risk and every call that of the batch; returns the outputs"
    scorer = scorer or load_scorer('models:/sepsis@champion', '', line.s.tracking_uri, line.s.cache)
    outs = read_outputs(line.s.topics.output, line.s.kafka)
    got = list(outs)
    assert outs.differing == 0
    places = {(o['source']['partition'], o['source']['offset']) for o in got}
    assert len(got) == len(places) == len(df)
    assert places == {(p, n) for p,end in topic_ends(line.s.topics.input, line.s.kafka).items() for n in range(end)}
    now = np.empty(len(df))
    X = extract(df, scorer.spec, now).to_numpy()
    P,blind = scorer.predict(X), indeterminate_rows(scorer.spec, scorer.support, X)
    alerts = table_alerts(scorer.policy, df.patient_id, now, P[:,1], blind)
    want = {(m['patient_id'], m['time']):o for m,*o in zip(messages(df), P.tolist(), alerts.tolist(), blind.tolist())}
    assert all([o['prediction_probabilities'], o['alert'], o['quality']['indeterminate']] == want[o['patient_id'], o['original_data']['time']] for o in got)
    alerts = {(o['source']['partition'], o['source']['offset']) for o in read_outputs(line.s.topics.alerts, line.s.kafka)}
    assert alerts == {(o['source']['partition'], o['source']['offset']) for o in got if o['alert']}
    return got

def committed(line):
    c = KafkaConsumer(**client_args(line.s.kafka), group_id=line.s.worker.app_id, enable_auto_commit=False)
    try: return {p:c.committed(TopicPartition(line.s.topics.input, p)) or 0 for p in range(line.s.topics.partitions)}
    finally: c.close()

def test_restarts_lose_nothing(line, rows):
    df = rows[1]
    first = line.start()
    line.send(df.iloc[:1000], pause=.05)
    line.wait(1)
    assert line.stop(first) == 0 # mid-stream: some rows may still wait
    after = committed(line)
    second = line.start()
    line.send(df.iloc[1000:2000], pause=.05)
    line.wait(1100)
    second.kill(); second.wait()
    third = line.start()
    line.send(df.iloc[2000:], pause=.05)
    line.wait(len(df))
    assert line.stop(third, signal.SIGINT) == 0
    got = check(line, df)
    assert committed(line) == topic_ends(line.s.topics.input, line.s.kafka)
    assert all(after[p] <= end for p,end in committed(line).items())
    assert sum(o['alert'] for o in got) > 5 and any('outside-training' in str(o['quality']) for o in got), 'the data must have something to get wrong'

def test_sigterm_repeats_nothing(line, rows):
    "A clean stop commits exactly: not even a repeated output"
    df = rows[1].iloc[:1500]
    line.send(df.iloc[:1200])
    p = line.start(SEPSIS_WORKER_BATCH_ROWS='100')
    line.wait(1)
    assert line.stop(p) == 0
    line.send(df.iloc[1200:])
    p = line.start()
    line.wait(len(df))
    assert line.stop(p) == 0
    assert line.count(line.s.topics.output) == len(df)
    check(line, df)

def test_two_workers_share_and_take_over(line, rows):
    df = rows[1]
    a = line.start()
    line.send(df.iloc[:800])
    line.wait(800)
    b = line.start()
    line.said('states read', 3) # by the first alone, then by both after the rebalance
    line.send(df.iloc[800:2000], pause=.2)
    line.wait(2000)
    a.kill(); a.wait()
    line.send(df.iloc[2000:])
    line.wait(len(df))
    assert line.stop(b) == 0
    check(line, df)
    line.said('states read', 4)

BAD = {'not-json':b'{"patient_id": "secret-7", ', 'not-an-object':b'["secret-7"]', 'no-patient-id':b'{"HR": 77.125}', 'not-a-number':b'{"patient_id":"secret-7","HR":"77.125"}',
       'bad-patient-id':b'{"patient_id": 7, "HR": 77.125}', 'no-signal':b'{"patient_id": "secret-7"}', 'too-large':b'{"patient_id":"secret-7","HR":77.125,"x":"%s"}' % (b'x'*600_000)}

def test_bad_messages_are_dead_letters(line):
    good = b'{"patient_id":"secret-7","HR":77.125,"Resp":0,"bed":"12a"}'
    line.raw([(b'secret-7', v) for v in BAD.values()]+[(b'secret-7', None), (None, b''), (b'k', good), (b'secret-7', b'{"patient_id":"secret-7","HR":NaN}')])
    line.raw([(b'secret-7', good), (None, good)])
    p = line.start()
    line.wait(2)
    line.wait(len(BAD)+4, line.s.topics.dead_letter)
    assert line.stop(p) == 0
    dead = list(read_topic(line.s.topics.dead_letter, line.s.kafka))
    reasons = {dict(r.headers)['reason'].decode().split(':')[0] for r in dead}
    assert reasons == set(BAD) | {'key-mismatch', 'forgotten'}
    sent = {(r.partition, r.offset):r for r in read_topic(line.s.topics.input, line.s.kafka)}
    for r in dead:
        h = {k:v.decode() for k,v in r.headers}
        came = sent[int(h['partition']), int(h['offset'])]
        assert h['topic'] == line.s.topics.input and r.key == came.key
        assert (r.value == (came.value or b'')) if 'length' not in h else (len(came.value) == int(h['length']) and came.value.startswith(r.value))
    outs = list(read_outputs(line.s.topics.output, line.s.kafka))
    assert {o['patient_id'] for o in outs} == {'secret-7'}
    assert all('out-of-range: Resp' in o['quality']['reasons'] and o['quality']['indeterminate'] for o in outs)
    assert sum('no-key' in o['quality']['reasons'] for o in outs) == 1
    assert all(o['original_data'] == orjson.loads(good) for o in outs)
    assert 'secret-7' not in line.text() and '77.125' not in line.text(), 'a log holds counts, no patients'

def test_the_original_way(line, store, rows):
    "A forest and its scaler by two runs:/ addresses, with the original study's features"
    df = rows[1].iloc[:300]
    p = line.start(SEPSIS_MODEL_URI=store['forest'], SEPSIS_MODEL_SCALER_URI=store['scaler'])
    line.send(df)
    line.wait(len(df))
    assert line.stop(p) == 0
    got = check(line, df, load_scorer(store['forest'], store['scaler'], line.s.tracking_uri, line.s.cache))
    assert got[0]['model'] == {'name':'RandomForest', 'version':'', 'run_id':store['forest'].split('/')[1]}
    assert re.search(r'model fits .*scaler=yes classes=\[0, 1\]', line.text())

def test_another_model_goes_on_with_the_stream(line, store, rows):
    "A change of features sets states aside and says so; no row is answered twice"
    df = rows[1].iloc[:400]
    p = line.start()
    line.send(df)
    line.wait(len(df))
    p.kill(); p.wait()
    p = line.start(SEPSIS_MODEL_URI=store['forest'])
    line.send(rows[1].iloc[400:500])
    line.wait(500)
    assert line.stop(p) == 0
    assert line.count(line.s.topics.output) == 500
    assert re.search(r'states set aside patients=\d+', line.text())

@pytest.mark.parametrize('env,says', [
    (dict(SEPSIS_MODEL_URI='models:/sepsis/99'), "model URI 'models:/sepsis/99' cannot be found"),
    (dict(SEPSIS_MODEL_URI='runs:/abc/LightGBM'), "model URI 'runs:/abc/LightGBM' cannot be fetched"),
    (dict(SEPSIS_MLFLOW_TRACKING_URI='http://127.0.0.1:9'), 'MLflow server http://127.0.0.1:9 does not answer'),
    (dict(SEPSIS_TOPICS_INPUT='elsewhere'), 'topics elsewhere do not exist'),
    (dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='127.0.0.1:9'), 'no Kafka can be used at 127.0.0.1:9'),
    (dict(SEPSIS_TOPICS_PARTITIONS='four'), "SEPSIS_TOPICS_PARTITIONS is 'four'"),
], ids=['version', 'run', 'store', 'topics', 'broker', 'settings'])
def test_says_what_is_wrong(line, env, says):
    assert line.start(**env).wait(60) != 0
    assert says in line.text()
    assert 'Traceback' not in line.text()

def test_status_port_is_taken(line, rows):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0)); taken.listen()
        port = taken.getsockname()[1]
        p = line.start(SEPSIS_WORKER_WEB_PORT=str(port))
        line.send(rows[1].iloc[:50])
        line.wait(50)
        assert line.stop(p) == 0
    assert f'web port {port} cannot be used' in line.text()

def test_stop_ends_without_a_broker(store, rows, tmp_path):
    with Broker(tmp_path/'kafka', cache=load_settings().cache) as broker:
        line = Line(store, tmp_path, SEPSIS_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap, SEPSIS_WORKER_STOP_S='4')
        try:
            create_topics(line.s.kafka, line.s.topics)
            p = line.start()
            line.send(rows[1].iloc[:100])
            line.wait(100)
            broker.kill()
            began = time.monotonic()
            line.stop(p)
            assert time.monotonic()-began < 10
        finally: line.close()
