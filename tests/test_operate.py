"What an operator meets: no broker yet, a dead worker, floods of rubbish, letters to put back, a patient to forget"
import os, re, signal, subprocess, sys, time
import lightgbm as lgb, mlflow, orjson, psutil, pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from test_worker import Line
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import create_topics, read_outputs, read_topic, topic_ends
from sepsis_nb.data import read
from sepsis_nb.features import SPECS, extract
from sepsis_nb.stream.redrive import COPY_OF, RedrivePlan, plan_redrive, put_back
from sepsis_nb.stream.forget import states_held
from sepsis_nb.model.contract import log_model
from sepsis_nb.model.registry import register, use_store
from sepsis_nb.stream.kafka import client_args
from sepsis_nb.settings import load_settings

SEPSIS = [sys.executable, '-c', 'from sepsis_nb.cli import main; main()']

@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "A store with a small champion; its worth does not matter here"
    uri,was = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    df = read('sample').iloc[:3000]
    use_store(uri, 'operate')
    fitted = lgb.LGBMClassifier(n_estimators=20, verbose=-1).fit(extract(df, SPECS['monitor4']), df.groupby('patient_id').cumcount() > 30)
    with mlflow.start_run() as run: log_model('LightGBM', fitted, SPECS['monitor4'], .5)
    register(run.info.run_id, 'LightGBM', .4, 'here')
    mlflow.set_tracking_uri(was[0]); mlflow.set_registry_uri(was[1])
    return dict(uri=uri)

class Ward(Line):
    "A line whose worker is the command, hence supervised"
    def start(self, **env):
        with open(self.log, 'ab') as out: self.procs.append(subprocess.Popen([*SEPSIS, 'worker'], env=self.env | env, stdout=out, stderr=subprocess.STDOUT, cwd=self.log.parent))
        return self.procs[-1]

    def topics(self, **configs):
        "Make its topics, the input with these configurations"
        t,admin = self.s.topics, KafkaAdminClient(**client_args(self.s.kafka))
        admin.create_topics({t.input:dict(num_partitions=t.partitions, configs={k.replace('_', '.'):v for k,v in configs.items()})})
        admin.close()
        create_topics(self.s.kafka, t)

    def child(self, p, seconds=30):
        "The worker under the supervisor"
        until = time.monotonic()+seconds
        while not (found := psutil.Process(p.pid).children()): assert time.monotonic() < until; time.sleep(.05)
        return found[0]

    def command(self, *args, **kw): return subprocess.Popen([*SEPSIS, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)

    def sepsis(self, *args):
        "Exit code and output of a command"
        r = self.command(*args)
        return r.communicate(timeout=90)[0], r.returncode

    def answers(self):
        "Place of each row that was answered to what came of it; each place once"
        outs = {(o['source']['partition'], o['source']['offset']):o for o in read_outputs(self.s.topics.output, self.s.kafka)}
        dead = {}
        for r in read_topic(self.s.topics.dead_letter, self.s.kafka):
            h = {k:v.decode() for k,v in r.headers}
            dead[int(h['partition']), int(h['offset'])] = h
        assert not set(outs) & set(dead)
        return outs, dead

    def inputs(self): return {(p, o) for p,end in topic_ends(self.s.topics.input, self.s.kafka).items() for o in range(end)}

@pytest.fixture
def ward(kafka, store, tmp_path):
    o = Ward(store, tmp_path)
    create_topics(o.s.kafka, o.s.topics)
    yield o
    o.close()

def row(pid, hour, note=''): return pid.encode(), orjson.dumps(dict(patient_id=pid, time=f'2026-01-{1+hour//24:02d} {hour%24:02d}:00:00', HR=60+hour%40, Resp=18, O2Sat=97, Temp=37.1, note=note))

def thin(pid):
    "A row that says little, so that the answer depends on what is known of the patient"
    return pid.encode(), b'{"patient_id":"%s","Resp":18}' % pid.encode()

def test_a_worker_waits_for_its_broker_and_is_started_again(store, tmp_path):
    with Broker(tmp_path/'kafka', cache=load_settings().cache) as broker:
        ward = Ward(store, tmp_path, SEPSIS_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap)
        create_topics(ward.s.kafka, ward.s.topics)
        broker.kill()
        try:
            p = ward.start()
            ward.said('worker ended code=69: EX_UNAVAILABLE, no broker answers', 1)
            broker.start()
            ward.raw(row(f'p{i%7}', i//7) for i in range(140))
            ward.wait(140)
            ward.child(p).kill()
            ward.said('worker ended code=-9: killed by SIGKILL', 1)
            ward.raw(row(f'p{i%7}', i//7) for i in range(140, 280))
            ward.wait(280)
            last = ward.child(p)
            assert ward.stop(p) == 0 and not last.is_running()
            outs,dead = ward.answers()
            assert set(outs) == ward.inputs() and not dead
        finally: ward.close()

def test_a_worker_that_cannot_start_is_not_tried_again(ward):
    p = ward.start(SEPSIS_MODEL_URI='models:/sepsis/99')
    assert p.wait(60) == os.EX_CONFIG
    assert 'cannot be found' in ward.text() and ward.text().count('worker ended') == 1 and 'starting again' not in ward.text()

FLOOD = 10_000

def test_floods_and_odd_messages(kafka, store, tmp_path):
    "10 MB, a request to forget, a later schema, then as many bad messages as good ones: all are answered, and the pace is kept"
    ward = Ward(store, tmp_path)
    t = ward.s.topics
    ward.topics(max_message_bytes='12000000', message_timestamp_type='LogAppendTime')
    later = b'{"schema":99,"patient_id":"q1","HR":80,"unheard_of":{"a":[1,2]}}'
    producer = KafkaProducer(**client_args(ward.s.kafka), max_request_size=12_000_000, linger_ms=20)
    for key,value in [(b'q1', b'{"patient_id":"q1","HR":77,"x":"%s"}' % (b'x'*10_000_000)), (b'q1', later), (b'q1', None)]: producer.send(t.input, value, key)
    for i in range(FLOOD): producer.send(t.input, *row(f'p{i%200}', i//200)[::-1])
    for i in range(FLOOD): producer.send(t.input, b'{"patient_id":"secret-9", %d' % i, b'p%d' % (i%200))
    producer.flush(); producer.close()
    try:
        p = ward.start()
        ward.wait(FLOOD+2, t.dead_letter)
        ward.wait(FLOOD+1)
        child = ward.child(p)
        p.kill() # nobody passes a signal on now, and yet the worker must not outlive its supervisor
        child.wait(20)
        outs,dead = ward.answers()
        assert set(outs) | set(dead) == ward.inputs() and len(outs) == FLOOD+1
        slugs = [h['reason'].split(':')[0] for h in dead.values()]
        assert {s:slugs.count(s) for s in set(slugs)} == {'not-json':FLOOD, 'too-large':1, 'forgotten':1}
        assert [h['length'] for h in dead.values() if 'length' in h] == [str(10_000_000+len(b'{"patient_id":"q1","HR":77,"x":""}'))]
        assert [o['original_data'] for o in outs.values() if o['patient_id'] == 'q1'] == [orjson.loads(later)]
        said = ward.text()
        assert 'the supervisor is gone' in said
        assert sum(map(int, re.findall(r'not-json=(\d+)', said))) == FLOOD and 'too-large=1' in said and 'secret-9' not in said
        span = lambda at: max(at)-min(at)
        good = span([r.timestamp for r in read_topic(t.output, ward.s.kafka)])
        bad = span([r.timestamp for r in read_topic(t.dead_letter, ward.s.kafka) if b'not-json' in dict(r.headers)['reason']])
        print(f'good rows {FLOOD/good:.1f} a ms, bad ones {FLOOD/bad:.1f} a ms')
        assert bad < 4*good+1000, f'{FLOOD} bad messages took {bad} ms, as many good rows {good} ms'
        resume(ward)
    finally: ward.close()

def resume(ward):
    "A redrive that dies half-way is taken up where it ended"
    p,calls = plan_redrive(ward.s, ['not-json']), iter(range(2))
    assert len(p.ready) == FLOOD
    with pytest.raises(StopIteration): put_back(ward.s, p, still=lambda: next(calls))
    rest = plan_redrive(ward.s)
    assert rest.table().loc['not-json'].to_dict() == dict(ready=FLOOD-1000, done=1000, request=0)
    assert rest.table().loc['forgotten'].to_dict() == dict(ready=0, done=0, request=1)
    large = next(row for row,l in rest.letters.items() if l.reason == 'too-large')
    assert list(put_back(ward.s, RedrivePlan(rest.letters, {large:'ready'}, 0)).values()) == [large]
    copies = [(dict(r.headers)[COPY_OF], len(r.value)) for r in read_topic(ward.s.topics.input, ward.s.kafka) if r.headers]
    assert len({c for c,_ in copies}) == len(copies) == 1001 and max(n for _,n in copies) > 10_000_000, 'the row goes back whole'

def test_redrive_by_two_operators(ward):
    "Dead under a limit of 1 kB, put back once by two who did not know of each other, scored whole under a higher limit"
    good,large = [row(f'p{i%20}', i//20) for i in range(200)], [row(f'p{i%20}', 10+i//20, 'x'*2000) for i in range(60)]
    broken = [(b'p3', b'{"patient_id":')]*5
    ward.raw(good+large+broken)
    p = ward.start(SEPSIS_WORKER_MAX_MESSAGE_KB='1')
    ward.wait(200); ward.wait(65, ward.s.topics.dead_letter)
    assert ward.stop(p) == 0
    said,code = ward.sepsis('redrive')
    assert code == 0 and re.search(r'too-large +60\b', said) and '65 rows of 20 patients can be put back. Nothing was sent' in said
    said,code = ward.sepsis('redrive', '--reason', 'to-large')
    assert code == 1 and 'it has not-json, too-large' in said
    assert sum(topic_ends(ward.s.topics.input, ward.s.kafka).values()) == 265
    p = ward.start()
    both = [ward.command('redrive', '--reason', 'too-large', '--yes', '--timeout', '40') for _ in range(2)]
    said = sorted((o.communicate(timeout=90)[0] for o in both), key=lambda text: 'Nothing to put back' not in text) # a client's warning may make either the longer
    assert [o.returncode for o in both] == [0, 0] and 'Nothing to put back' in said[0]
    assert re.search(r'sent +scored\n.*\ntoo-large +60 +60\n', said[1]), said[1]
    said,code = ward.sepsis('redrive', '--yes')
    assert code == 0 and re.search(r'sent +dead again: not-json\n.*\nnot-json +5 +5\n', said), said
    outs,dead = ward.answers()
    assert set(outs) | set(dead) == ward.inputs() and len(outs) == 260 and len(dead) == 70
    copies = [(r, dict(r.headers)[COPY_OF]) for r in read_topic(ward.s.topics.input, ward.s.kafka) if r.headers]
    assert len(copies) == len({c for _,c in copies}) == 65
    assert sorted(r.value for r,_ in copies) == sorted(v for _,v in large+broken)
    forget(ward)
    assert ward.stop(p) == 0

def forget(ward):
    "The state goes in the order of the rows; the next row begins a new stay; what stays is said"
    before = ward.answers()[0]
    assert states_held(ward.s, 'p1')
    said,code = ward.sepsis('forget', 'p1')
    assert code == 0 and 'There is a state of this patient. Nothing was changed' in said
    said,code = ward.sepsis('forget', 'p1', '--yes')
    assert code == 0 and 'Forgotten' in said, said+ward.text()[-2000:]
    assert not states_held(ward.s, 'p1') and states_held(ward.s, 'p2')
    assert re.search(r'input-\w+: 17 records; all deleted between', said) and re.search(r'output-\w+: 13 records', said) and re.search(r'alerts-\w+: \d+ records', said), said
    ward.raw(map(thin, ('p1', 'p2', 'new')))
    ward.wait(len(before)+3)
    outs,dead = ward.answers()
    assert set(outs) | set(dead) == ward.inputs() and [h['reason'].split(':')[0] for h in dead.values()].count('forgotten') == 1
    known = {o['patient_id']:(o['prediction_probabilities'], o['quality']) for k,o in outs.items() if k not in before}
    assert known['p1'] == known['new'] != known['p2'], 'who was forgotten is like somebody new'

def test_a_silent_patient_is_dropped(kafka, store, tmp_path):
    "Ten hours without a row at `forget_h = 1`: the record goes from the state topic, and who comes back is like somebody new, also after a restart"
    ward = Ward(store, tmp_path, SEPSIS_TOPICS_PARTITIONS='1', SEPSIS_WORKER_FORGET_H='1')
    t,now,hour = ward.s.topics, int(time.time()*1000), 3_600_000
    ward.topics(message_timestamp_type='CreateTime') # so that the test may say when a row came
    def send(at, *rows):
        with KafkaProducer(**client_args(ward.s.kafka)) as producer:
            for key,value in rows: producer.send(t.input, value, key, timestamp_ms=at)
    try:
        p = ward.start()
        send(now-10*hour, *[row(pid, h) for h in range(3) for pid in ('gone', 'back', 'soon')])
        send(now-hour//2, row('soon', 3))
        ward.wait(10)
        send(now, row('here', 0))
        ward.said('left=2', 1)
        assert {r.key for r in read_topic(t.state, ward.s.kafka) if r.value is None} == {b'gone', b'back'}
        send(now+1000, *map(thin, ('back', 'soon', 'new')))
        ward.wait(14)
        assert ward.stop(p) == 0
        p = ward.start()
        send(now+2000, *map(thin, ('gone', 'newer')))
        ward.wait(16)
        assert ward.stop(p) == 0 and 'states read partitions=0 patients=4' in ward.text(), 'soon, here, back, new'
        outs,dead = ward.answers()
        assert set(outs) == ward.inputs() and not dead
        said = {o['patient_id']:(o['prediction_probabilities'], o['quality']) for _,o in sorted(outs.items())}
        assert said['back'] == said['new'] == said['gone'] == said['newer'] != said['soon']
    finally: ward.close()

def test_states_of_a_later_version_are_left_alone(ward):
    "An older worker must neither begin these patients anew nor write over their records"
    with KafkaProducer(**client_args(ward.s.kafka)) as producer:
        for part in range(ward.s.topics.partitions): producer.send(ward.s.topics.state, b'\x03'+bytes(200), b'p1', partition=part)
    ward.raw([row('p1', 0)])
    p = ward.start()
    assert p.wait(60) == os.EX_CONFIG, ward.text()[-3000:]
    assert 'version 3' in ward.text() and ward.text().count('worker ended') == 1
    assert ward.count(ward.s.topics.state) == ward.s.topics.partitions and ward.count(ward.s.topics.output) == 0

def test_consume_unique(ward):
    out = lambda n,risk=.5: orjson.dumps(dict(patient_id='p1', risk=risk, source=dict(topic='in', partition=0, offset=n)))
    sent = [out(0), out(1), out(0), out(2), out(1, .7), b'{"patient_id": "p1",  "source": {"topic":"in","partition":1,"offset":0}}']
    with KafkaProducer(**client_args(ward.s.kafka)) as producer:
        for o in sent: producer.send(ward.s.topics.output, o, b'p1', partition=0)
    r = subprocess.run([*SEPSIS, 'consume', ward.s.topics.output, '--from-beginning', '--unique', '--timeout', '2'], env=ward.env, capture_output=True, timeout=60)
    assert r.stdout.splitlines() == [sent[0], sent[1], sent[3], sent[5]]
    assert r.stderr.decode().strip().endswith('2 repeats left out, 1 of them not the same as the first')
