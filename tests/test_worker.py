"The worker as an operator runs it: processes, signals, a real broker"
import os, re, shutil, signal, socket, time
from contextlib import suppress
import orjson, psutil, pytest
from kafka.admin import ConfigResource
from sepsis_nb import load_scorer
from sepsis_nb.data import read
from sepsis_nb.model.registry import at_store
from sepsis_nb.prove.harness import SUPERVISED, Line
from sepsis_nb.settings import load_settings
from sepsis_nb.stream import doctor
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import read_topic
from sepsis_nb.stream.outputs import read_outputs
from sepsis_nb.stream.progress import unpack_progress
from sepsis_nb.worker import STATES_READ

def held_out():
    "Stays that the toy champion was not fitted on, interleaved by time"
    df = read('sample')
    return df[df.patient_id.isin(set(df.patient_id.unique()[200:280]))].sort_values('time', kind='stable')

@pytest.fixture(scope='module')
def rows(): return held_out()

def origin(o): return o['source']['partition'], o['source']['offset']

def check_rows(outputs, df, scorer):
    "Every row has one of the outputs, with risk, alert and mark of the table"
    got = {(o['patient_id'], o['original_data']['time']):
           (o['prediction_probabilities'][1], o['alert'], o['quality']['indeterminate']) for o in outputs}
    want = {(o.patient_id, o.time):(o.risk, o.alert, o.indeterminate) for o in scorer.score(df).itertuples()}
    assert all(abs(sum(o['prediction_probabilities'])-1) < 1e-12 for o in outputs)
    assert got == want and len(outputs) == len(df)

def check_line(line, df, scorer):
    "Every input offset has one output, as in the table, and the alerts topic has the alerts; returns the outputs"
    found = read_outputs(line.s.topics.output, line.s.kafka)
    outputs = list(found)
    assert found.differing == 0
    assert {origin(o) for o in outputs} == {(p, n) for p,end in line.ends().items() for n in range(end)}
    check_rows(outputs, df, scorer)
    alerts = {origin(o) for o in read_outputs(line.s.topics.alerts, line.s.kafka)}
    assert alerts == {origin(o) for o in outputs if o['alert']}
    return outputs

def test_restarts_lose_nothing(line, store, rows):
    first = line.start()
    line.send(rows[:1000], 1000)
    line.wait(1)
    assert line.stop(first) == 0 # mid-stream: some rows can still wait
    after = line.committed()
    second = line.start()
    line.send(rows[1000:2000], 1000)
    line.wait(1100)
    line.kill(second)
    third = line.start()
    line.send(rows[2000:], 2000)
    line.wait(len(rows))
    assert line.stop(third, signal.SIGINT) == 0
    outputs = check_line(line, rows, store.scorer())
    assert line.committed() == line.ends()
    assert all(after[p] <= end for p,end in line.committed().items())
    quality = [str(o['quality']) for o in outputs]
    assert sum(o['alert'] for o in outputs) > 5 and any('outside-training' in o for o in quality), 'too plain a test'

def test_sigterm_repeats_nothing(line, store, rows):
    "A clean stop commits exactly: no output is repeated. A port that is taken does not stop the worker"
    rows = rows[:1500]
    line.send(rows[:1200])
    p = line.start(SEPSIS_WORKER_BATCH_ROWS='100')
    line.wait(1)
    assert line.stop(p) == 0
    line.send(rows[1200:])
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        p = line.start(SEPSIS_WORKER_WEB_PORT=str(port))
        line.wait(len(rows))
        assert line.stop(p) == 0
    assert f'web port {port} cannot be used' in line.text()
    assert line.count() == len(rows)
    check_line(line, rows, store.scorer())

def test_two_workers_share_and_take_over(line, store, rows):
    a = line.start()
    line.send(rows[:800])
    line.wait(800)
    b = line.start()
    line.wait_log(STATES_READ, 3) # by the first alone, then by both after the rebalance
    line.send(rows[800:2000], 500)
    line.wait(2000)
    line.kill(a)
    line.send(rows[2000:])
    line.wait(len(rows))
    line.wait_log(STATES_READ, 4)
    assert line.stop(b) == 0
    check_line(line, rows, store.scorer())

ID = b'secret-7'
BAD = {
    'not-json':b'{"patient_id": "secret-7", ',
    'not-an-object':b'["secret-7"]',
    'no-patient-id':b'{"HR": 77.125}',
    'not-a-number':b'{"patient_id":"secret-7","HR":"77.125"}',
    'bad-patient-id':b'{"patient_id": 7, "HR": 77.125}',
    'no-signal':b'{"patient_id": "secret-7"}',
    'too-large':b'{"patient_id":"secret-7","HR":77.125,"x":"%s"}' % (b'x'*600_000)}

def test_bad_messages_are_dead_letters(line):
    good = b'{"patient_id":"secret-7","HR":77.125,"Resp":0,"bed":"12a"}'
    nan = b'{"patient_id":"secret-7","HR":NaN}'
    line.send_raw([(ID, v) for v in BAD.values()])
    line.send_raw([(ID, None), (None, b''), (b'k', good), (ID, nan), (ID, good), (None, good)])
    p,topics = line.start(), line.s.topics
    line.wait(2)
    line.wait(len(BAD)+4, topics.dead_letter)
    assert line.stop(p) == 0
    dead = list(read_topic(topics.dead_letter, line.s.kafka))
    headers = [{k:v.decode() for k,v in r.headers} for r in dead]
    assert {h['reason'].split(':')[0] for h in headers} == set(BAD) | {'key-mismatch', 'forgotten'}
    sent = {(r.partition, r.offset):r for r in read_topic(topics.input, line.s.kafka)}
    for r,h in zip(dead, headers):
        original = sent[int(h['partition']), int(h['offset'])]
        assert h['topic'] == topics.input and r.key == original.key
        value,length = original.value or b'', int(h.get('length', len(r.value)))
        assert length == len(value) and value.startswith(r.value) and (r.value == value or 'length' in h)
    outputs = list(read_outputs(topics.output, line.s.kafka))
    reasons = [o['quality']['reasons'] for o in outputs]
    assert {o['patient_id'] for o in outputs} == {'secret-7'}
    assert all('out-of-range: Resp' in o for o in reasons) and all(o['quality']['indeterminate'] for o in outputs)
    assert sum('no-key' in o for o in reasons) == 1
    assert all(o['original_data'] == orjson.loads(good) for o in outputs)
    assert 'secret-7' not in line.text() and '77.125' not in line.text(), 'a log holds counts, no patients'

def states_end(line):
    "Partition to the offset up to which the state topic has all"
    ends = dict.fromkeys(line.ends(), 0)
    for r in read_topic(line.s.topics.state, line.s.kafka):
        if not r.key: ends[r.partition] = max(ends[r.partition], unpack_progress(r.value).end)
    return ends

def test_another_model_continues_the_stream(line, store, rows):
    """A forest and its scaler by two runs:/ addresses, with the original study's features, after the champion:
    states are set aside, which the log reports, and no row is answered twice"""
    ids = rows.patient_id.unique()
    known,new = (rows[rows.patient_id.isin(o)] for o in (ids[:40], ids[40:]))
    p = line.start()
    line.send(known[:400])
    line.wait(400)
    until = time.monotonic()+60
    while states_end(line) != line.ends(): assert time.monotonic() < until
    line.kill(p) # mostly before the commit, so the rows come again
    uris = dict(SEPSIS_MODEL_URI=store.forest, SEPSIS_MODEL_SCALER_URI=store.scaler)
    p = line.start(**uris)
    line.send(known[400:500])
    line.send(new[:300])
    line.wait(800)
    assert line.stop(p) == 0 and line.count() == 800
    assert re.search(r'states set aside patients=\d+', line.text())
    assert re.search('model fits .*scaler=yes', line.text())
    outputs = [o for o in read_outputs(line.s.topics.output, line.s.kafka) if o['patient_id'] in set(ids[40:])]
    check_rows(outputs, new[:300], load_scorer(*uris.values(), store.uri, store.cache))
    assert outputs[0]['model'] == {'name':'RandomForest', 'version':'', 'run_id':store.forest.split('/')[1]}

def test_the_alias_moves(store, rows, tmp_path):
    """`follow = off` says it, and a crash keeps the version; an operator's restart takes the new one, and says so.
    `restart` starts again by itself; no row is lost or answered in two ways"""
    uri,champion = f'sqlite:///{tmp_path}/mlflow.db', 'models:/sepsis@champion'
    shutil.copy(store.uri.removeprefix('sqlite:///'), tmp_path)
    with at_store(uri) as client: # the same model as version 2
        client.copy_model_version('models:/sepsis/1', 'sepsis')
    def move(version):
        with at_store(uri) as client: client.set_registered_model_alias('sepsis', 'champion', version)
    rows,fits = rows[:600], 'model fits model=sepsis version={} '.format
    with Line(tmp_path/'line', SUPERVISED, **store.env | dict(SEPSIS_MLFLOW_TRACKING_URI=uri)) as line:
        line.restarts = True
        p = line.start()
        line.send(rows[:200])
        line.wait(200)
        move('2')
        line.wait_log(f'{champion} names version 2 of run')
        found = doctor._model(line.s)
        assert re.search(r'scores with sepsis version 1 of run .* names another one now', found), found
        p.children()[0].kill()
        line.wait_log(fits(1), 2) # what it had
        line.stop(p)
        p = line.start(SEPSIS_MODEL_FOLLOW='restart')
        line.wait_log('before this start it was version 1 of run')
        line.send(rows[200:400])
        line.wait(400)
        move('1')
        line.wait_log('model moved: ending, to be started again with version 1')
        line.send(rows[400:])
        line.wait(600)
        assert line.stop(p) == 0 and f'ended code={os.EX_TEMPFAIL}' in line.text()
        versions = [o['model']['version'] for o in check_line(line, rows, store.scorer())]
        assert {v:versions.count(v) for v in '12'} == {'1':400, '2':200}

WRONG = [
    (dict(SEPSIS_MODEL_URI='models:/sepsis/99'), "model URI 'models:/sepsis/99' cannot be found"),
    (dict(SEPSIS_MODEL_URI='runs:/abc/LightGBM'), "model URI 'runs:/abc/LightGBM' cannot be fetched"),
    (dict(SEPSIS_MLFLOW_TRACKING_URI='http://127.0.0.1:9'), 'store http://127.0.0.1:9: the server does not answer'),
    (dict(SEPSIS_TOPICS_INPUT='missing'), 'topics missing do not exist', os.EX_CONFIG),
    ({}, 'has max.message.bytes=300000, and messages of up to 512 kB need 557056', os.EX_CONFIG),
    (dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='127.0.0.1:9'), 'no Kafka at 127.0.0.1:9', os.EX_UNAVAILABLE),
    (dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS='nowhere.invalid:9'), 'nowhere.invalid does not resolve', os.EX_UNAVAILABLE),
    (dict(SEPSIS_WORKER_WEB_HOST='192.0.2.1', SEPSIS_WORKER_WEB_PORT='6066'), 'web_host 192.0.2.1 is no address',
     os.EX_CONFIG),
    (dict(SEPSIS_PATHS_WORK='/dev/null/work'), 'set [paths] work to one that can', os.EX_CONFIG),
    (dict(SEPSIS_TOPICS_PARTITIONS='four'), "SEPSIS_TOPICS_PARTITIONS is 'four'", 1)] # Faust's own command ends with 1

def test_reports_what_is_wrong(line):
    "A worker that cannot start ends, and its log has the reason in one line"
    line.admin.alter_configs([ConfigResource('topic', line.s.topics.alerts, {'max.message.bytes':'300000'})])
    for p,(env,reason,*code) in [(line.start(**wrong[0]), wrong) for wrong in WRONG]:
        assert p.wait(90) in (code or range(1, 100)), env
        text = p.log.read_text()
        assert reason in text and 'Traceback' not in text, text

def full_pipe():
    "A pipe that takes nothing more, as (end that nobody reads, end to write to)"
    there,here = os.pipe()
    os.set_blocking(here, False)
    with suppress(BlockingIOError):
        while True: os.write(here, bytes(4096))
    os.set_blocking(here, True)
    return there, here

def test_nobody_reads_the_log(line, rows):
    "The rows are answered all the same, and the worker ends when it is told, or when it has a reason of its own"
    there,here = full_pipe()
    line.send(rows[:100])
    p = psutil.Popen(SUPERVISED, env=line.env, stdout=here, stderr=here, cwd=line.folder)
    line.procs.append(p)
    line.wait(100)
    assert line.stop(p, timeout_s=20) == 0
    p = psutil.Popen(SUPERVISED, env=line.env | dict(SEPSIS_MODEL_URI='models:/sepsis/99'), stdout=here, stderr=here)
    assert p.wait(60) == os.EX_CONFIG
    for o in there, here: os.close(o)

def test_stop_ends_without_a_broker(store, rows, tmp_path):
    with Broker(tmp_path/'kafka', cache=load_settings().cache) as broker:
        env = dict(SEPSIS_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap, SEPSIS_WORKER_STOP_S='4')
        with Line(tmp_path/'line', **store.env, **env) as line:
            p = line.start()
            line.send(rows[:100])
            line.wait(100)
            broker.kill()
            began = time.monotonic()
            line.stop(p)
            assert time.monotonic()-began < 10
