"What an operator meets: no broker yet, a dead worker, floods of bad messages, letters to put back, a patient to forget"
import os, re, subprocess, time
import orjson, psutil, pytest
from click.testing import CliRunner
from kafka import KafkaProducer
from sepsis_nb.cli import main
from sepsis_nb.prove.harness import SEPSIS, SUPERVISED, Line
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.forget import states_held
from sepsis_nb.stream.kafka import client_args, read_topic
from sepsis_nb.stream.outputs import read_outputs
from sepsis_nb.stream.redrive import COPY_OF, RedrivePlan, plan_redrive, put_back

class Operated(Line):
    "A line whose worker is the command, hence supervised"
    def __init__(self, folder, store, **env): super().__init__(folder, SUPERVISED, **store.env, **env)

    def make_topics(self, **configs):
        "Make its topics, the input with these configurations"
        t = self.s.topics
        configs = {k.replace('_', '.'):v for k,v in configs.items()}
        if configs: self.admin.create_topics({t.input:dict(num_partitions=t.partitions, configs=configs)})
        Line.make_topics(self)

    def child(self, p, seconds=30):
        "The worker under the supervisor"
        until = time.monotonic()+seconds
        while not (found := psutil.Process(p.pid).children()):
            assert time.monotonic() < until
            time.sleep(.05)
        return found[0]

    def ended(self, p, seconds=60):
        "Exit code of a process that ends without a signal"
        code = p.wait(seconds)
        self.procs.remove(p)
        return code

    def command(self, *args):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen([*SEPSIS, *args], env=self.env, **pipes)

    def sepsis(self, *args):
        "Output and exit code of a command"
        r = CliRunner(env=self.env).invoke(main, args)
        assert r.exception is None or isinstance(r.exception, SystemExit), r.output
        return r.output, r.exit_code

    def answers(self):
        "Row of each output to the output, row of each dead letter to its headers"
        topics = self.s.topics
        outs = {(o['source']['partition'], o['source']['offset']):o for o in read_outputs(topics.output, self.s.kafka)}
        letters = [{k:v.decode() for k,v in r.headers} for r in read_topic(topics.dead_letter, self.s.kafka)]
        dead = {(int(h['partition']), int(h['offset'])):h for h in letters}
        assert not set(outs) & set(dead)
        return outs, dead

    def check_all_answered(self):
        "Outputs and dead letters, which together answer every row"
        outs,dead = self.answers()
        assert set(outs) | set(dead) == {(p, o) for p,end in self.ends().items() for o in range(end)}
        return outs, dead

@pytest.fixture
def operated(kafka, store, tmp_path):
    with Operated(tmp_path, store) as o: yield o

def row(pid, hour, note=''):
    at = f'2026-01-{1+hour//24:02d} {hour%24:02d}:00:00'
    values = dict(HR=60+hour%40, Resp=18, O2Sat=97, Temp=37.1)
    return pid.encode(), orjson.dumps(dict(patient_id=pid, time=at, note=note, **values))

def thin(pid):
    "A row with one signal: its answer depends on the patient's state"
    return pid.encode(), b'{"patient_id":"%s","Resp":18}' % pid.encode()

def test_a_worker_waits_for_its_broker_and_is_started_again(store, tmp_path):
    with Broker(tmp_path/'kafka', cache=load_settings().cache) as broker:
        with Operated(tmp_path, store, SEPSIS_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap) as line:
            broker.kill()
            p = line.start()
            line.wait_log('worker ended code=69: EX_UNAVAILABLE, Kafka, a name in DNS or the model store does not')
            broker.start()
            line.send_raw(row(f'p{i%7}', i//7) for i in range(140))
            line.wait(140)
            line.child(p).kill()
            line.wait_log('worker ended code=-9: killed by SIGKILL')
            line.send_raw(row(f'p{i%7}', i//7) for i in range(140, 280))
            line.wait(280)
            last = line.child(p)
            assert line.stop(p) == 0 and not last.is_running()
            assert not line.check_all_answered()[1]

def test_a_worker_that_cannot_start_is_not_tried_again(operated):
    assert operated.ended(operated.start(SEPSIS_MODEL_URI='models:/sepsis/99')) == os.EX_CONFIG
    text = operated.text()
    assert 'cannot be found' in text and text.count('worker ended') == 1 and 'starting again' not in text

FLOOD = 10_000

def test_floods_and_odd_messages(kafka, store, tmp_path):
    "10 MB, a request to forget, a later schema, then as many bad messages as good ones: all answered, at a steady pace"
    line = Operated(tmp_path, store)
    t = line.s.topics
    line.make_topics(max_message_bytes='12000000', message_timestamp_type='LogAppendTime')
    large = b'{"patient_id":"q1","HR":77,"x":"%s"}' % (b'x'*10_000_000)
    later = b'{"schema":99,"patient_id":"q1","HR":80,"unheard_of":{"a":[1,2]}}'
    with KafkaProducer(**client_args(line.s.kafka), max_request_size=12_000_000, linger_ms=20) as producer:
        for value in large, later, None: producer.send(t.input, value, b'q1')
        for i in range(FLOOD): producer.send(t.input, *row(f'p{i%200}', i//200)[::-1])
        for i in range(FLOOD): producer.send(t.input, b'{"patient_id":"secret-9", %d' % i, b'p%d' % (i%200))
    try:
        p = line.start()
        line.wait(FLOOD+2, t.dead_letter)
        line.wait(FLOOD+1)
        child = line.child(p)
        line.kill(p) # nothing passes a signal on now, and yet the worker must not outlive its supervisor
        child.wait(20)
        check_flood(line, *line.check_all_answered(), later, len(large))
        resume(line)
    finally: line.close()

def check_flood(line, outs, dead, later, length):
    slugs = [h['reason'].split(':')[0] for h in dead.values()]
    assert len(outs) == FLOOD+1
    assert {s:slugs.count(s) for s in set(slugs)} == {'not-json':FLOOD, 'too-large':1, 'forgotten':1}
    assert [h['length'] for h in dead.values() if 'length' in h] == [str(length)]
    assert [o['original_data'] for o in outs.values() if o['patient_id'] == 'q1'] == [orjson.loads(later)]
    text = line.text()
    assert 'the supervisor is gone' in text and 'too-large=1' in text and 'secret-9' not in text
    assert sum(map(int, re.findall(r'not-json=(\d+)', text))) == FLOOD
    def span(times): return max(times)-min(times)
    t,letters = line.s.topics, read_topic(line.s.topics.dead_letter, line.s.kafka)
    good = span([r.timestamp for r in read_topic(t.output, line.s.kafka)])
    bad = span([r.timestamp for r in letters if b'not-json' in dict(r.headers)['reason']])
    assert bad < 4*good+1000, f'{FLOOD} bad messages took {bad} ms, as many good rows {good} ms'

def resume(line):
    "A redrive that dies halfway is continued where it ended"
    plan,calls = plan_redrive(line.s, ['not-json']), iter(range(2))
    assert len(plan.ready) == FLOOD
    with pytest.raises(StopIteration): put_back(line.s, plan, lambda: next(calls))
    rest = plan_redrive(line.s)
    assert rest.table().loc['not-json'].to_dict() == dict(ready=FLOOD-1000, done=1000, request=0)
    assert rest.table().loc['forgotten'].to_dict() == dict(ready=0, done=0, request=1)
    large = next(row for row,l in rest.letters.items() if l.reason == 'too-large')
    assert list(put_back(line.s, RedrivePlan(rest.letters, {large:'ready'})).values()) == [large]
    rows = read_topic(line.s.topics.input, line.s.kafka)
    copies = [(dict(r.headers)[COPY_OF], len(r.value)) for r in rows if r.headers]
    assert len({c for c,_ in copies}) == len(copies) == 1001
    assert max(n for _,n in copies) > 10_000_000, 'the row goes back whole'

def test_redrive_by_two_operators(operated):
    "Dead under a limit of 1 kB, put back once by two at the same time, scored whole under a higher limit"
    line,t = operated, operated.s.topics
    good = [row(f'p{i%20}', i//20) for i in range(200)]
    large,broken = [row(f'p{i%20}', 10+i//20, 'x'*2000) for i in range(60)], [(b'p3', b'{"patient_id":')]*5
    line.send_raw(good+large+broken)
    p = line.start(SEPSIS_WORKER_MAX_MESSAGE_KB='1')
    line.wait(200)
    line.wait(65, t.dead_letter)
    assert line.stop(p) == 0
    text,code = line.sepsis('redrive')
    assert code == 0 and re.search(r'too-large +60\b', text)
    assert '65 rows of 20 patients can be put back. Nothing was sent' in text
    text,code = line.sepsis('redrive', '--reason', 'to-large')
    assert code == 1 and 'it has not-json, too-large' in text
    assert line.count(t.input) == 265
    p = line.start()
    both = [line.command('redrive', '--reason', 'too-large', '--yes', '--timeout', '40') for _ in range(2)]
    texts = sorted((o.communicate(timeout=90)[0] for o in both), key=lambda text: 'Nothing to put back' not in text)
    assert [o.returncode for o in both] == [0, 0] and 'Nothing to put back' in texts[0], texts
    assert re.search(r'sent +scored\n.*\ntoo-large +60 +60\n', texts[1]), texts[1]
    text,code = line.sepsis('redrive', '--yes')
    assert code == 0 and re.search(r'sent +dead again: not-json\n.*\nnot-json +5 +5\n', text), text
    outs,dead = line.check_all_answered()
    assert len(outs) == 260 and len(dead) == 70
    copies = [(r, dict(r.headers)[COPY_OF]) for r in read_topic(t.input, line.s.kafka) if r.headers]
    assert len(copies) == len({c for _,c in copies}) == 65
    assert sorted(r.value for r,_ in copies) == sorted(v for _,v in large+broken)
    forget(line, outs)
    assert line.stop(p) == 0

def forget(line, before):
    "The state goes in the order of the rows; the next row begins a new stay; the command lists what stays"
    assert states_held(line.s, 'p1')
    text,code = line.sepsis('forget', 'p1')
    assert code == 0 and 'There is a state of this patient. Nothing was changed' in text
    text,code = line.sepsis('forget', 'p1', '--yes')
    assert code == 0 and 'Forgotten' in text, text+line.text()[-2000:]
    assert not states_held(line.s, 'p1') and states_held(line.s, 'p2')
    for found in r'input-\w+: 17 records; all deleted between', r'output-\w+: 13 records', r'alerts-\w+: \d+ records':
        assert re.search(found, text), text
    line.send_raw(map(thin, ('p1', 'p2', 'new')))
    line.wait(len(before)+3)
    outs,dead = line.check_all_answered()
    assert [h['reason'].split(':')[0] for h in dead.values()].count('forgotten') == 1
    known = {o['patient_id']:(o['prediction_probabilities'], o['quality']) for k,o in outs.items() if k not in before}
    assert known['p1'] == known['new'] != known['p2'], 'a forgotten patient is like a new one'

def test_a_silent_patient_is_dropped(kafka, store, tmp_path):
    "Ten hours without a row at `forget_h = 1`: the state goes, and the patient is like a new one, also after a restart"
    line = Operated(tmp_path, store, SEPSIS_TOPICS_PARTITIONS='1', SEPSIS_WORKER_FORGET_H='1')
    t,hour = line.s.topics, 3_600_000
    now = int(time.time()*1000)-100*hour # Kafka refuses what is over an hour ahead
    line.make_topics(message_timestamp_type='CreateTime') # so that the test sets the time of a row
    def send(at, *rows):
        with KafkaProducer(**client_args(line.s.kafka)) as producer:
            for key,value in rows: producer.send(t.input, value, key, timestamp_ms=int(at))
    try:
        p = line.start()
        send(now-10*hour, *[row(pid, h) for h in range(3) for pid in ('gone', 'back', 'soon')])
        for n in range(60): send(now+(n-59)*hour//6, row('here', n)) # a step of more than 10 minutes does not count
        send(now-hour//2, row('soon', 3))
        line.wait(70)
        line.wait_log('left=2')
        assert {r.key for r in read_topic(t.state, line.s.kafka) if r.value is None} == {b'gone', b'back'}
        send(now+1000, *map(thin, ('back', 'soon', 'new')))
        line.wait(73)
        assert line.stop(p) == 0
        p = line.start()
        send(now+2000, *map(thin, ('gone', 'newer')))
        line.wait(75)
        assert line.stop(p) == 0 and 'states read partitions=0 patients=4' in line.text(), 'soon, here, back, new'
        send(now+80*hour, thin('soon')) # the broker's clock was set, or it was the sender's
        p = line.start()
        send(now+3000, *map(thin, ('here', 'new')))
        line.wait(78)
        assert line.stop(p) == 0 and 'time stamps of topic' in line.text() and line.text().count('left=') == 1
        outs,dead = line.check_all_answered()
        last = {o['patient_id']:(o['prediction_probabilities'], o['quality']) for _,o in sorted(outs.items())}
        assert last['back'] == last['new'] == last['gone'] == last['newer'] != last['soon'] and not dead
    finally: line.close()

def test_states_of_a_later_version_are_left_alone(operated):
    "An older worker must neither begin these patients anew nor write over their records"
    line,t = operated, operated.s.topics
    with KafkaProducer(**client_args(line.s.kafka)) as producer:
        for p in range(t.partitions): producer.send(t.state, b'\x05'+bytes(200), b'p1', partition=p)
    line.send_raw([row('p1', 0)])
    assert line.ended(line.start()) == os.EX_CONFIG, line.text()[-3000:]
    assert 'version 5' in line.text() and line.text().count('worker ended') == 1
    assert line.count(t.state) == t.partitions and line.count(t.output) == 0

def test_consume_unique(operated):
    def out(n, risk=.5):
        return orjson.dumps(dict(patient_id='p1', risk=risk, source=dict(topic='in', partition=0, offset=n)))
    other = b'{"patient_id": "p1",  "source": {"topic":"in","partition":1,"offset":0}}'
    sent = [out(0), out(1), out(0), out(2), out(1, .7), other]
    topic = operated.s.topics.output
    with KafkaProducer(**client_args(operated.s.kafka)) as producer:
        for o in sent: producer.send(topic, o, b'p1', partition=0)
    command = [*SEPSIS, 'consume', topic, '--from-beginning', '--unique', '--timeout', '2']
    r = subprocess.run(command, env=operated.env, capture_output=True, timeout=60)
    assert r.stdout.splitlines() == [sent[0], sent[1], sent[3], sent[4], sent[5]], 'other bytes are no repeat'
    text = r.stderr.decode().strip()
    assert text.endswith('1 repeats left out; 1 outputs of a row that had another one before')
    assert text.count('two outputs of one row') == 1
