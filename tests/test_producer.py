"A producer whose broker crashes, whose supervisor stops it, whose broker never comes back: what was acknowledged is what is there"
import json, signal, subprocess, sys, time
import pytest
from kafka.admin import KafkaAdminClient
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import read_topic
from sepsis_nb.data import read
from sepsis_nb.stream.kafka import client_args
from sepsis_nb.rows.simulate import simulate

RUN = '''
import json, sys
from dataclasses import asdict
from sepsis_nb.producer import DeliveryError, produce
from sepsis_nb.settings import Kafka
o = json.loads(sys.argv[1])
try: sent = produce(o.pop('paths'), Kafka(o.pop('bootstrap')), quiet=True, echo=lambda line: print(line, flush=True), **o)
except DeliveryError as e: sent = e.sent
print(json.dumps(asdict(sent)))
'''

@pytest.fixture(scope='module')
def broker(tmp_path_factory, kafka):
    "A broker of these tests alone, since they kill it"
    with Broker(tmp_path_factory.mktemp('crash')/'kafka', cache=kafka.cache) as b: yield b

@pytest.fixture(scope='module')
def files(tmp_path_factory): return [str(p) for p in simulate(tmp_path_factory.mktemp('synthetic'), rows=(8_000, 8_000))]

class Streaming:
    "A producer in a process of its own, into a topic of its own"
    def __init__(self, broker, files, topic, **options):
        self.kafka,self.topic,self.files = broker.kafka,topic,files
        admin = KafkaAdminClient(**client_args(broker.kafka))
        admin.create_topics({topic:dict(num_partitions=4)})
        admin.wait_for_topics([topic])
        admin.close()
        args = dict(paths=files, bootstrap=broker.bootstrap, topic=topic, **options)
        self.process = subprocess.Popen([sys.executable, '-c', RUN, json.dumps(args)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == 'Patient data loaded and validated successfully.\n'
        assert self.process.stdout.readline().startswith('Streaming 16000 records')

    def end(self, timeout=120):
        "Wait for its account"
        out,_ = self.process.communicate(timeout=timeout)
        print(out)
        return json.loads(out.splitlines()[-1])

    def arrived(self):
        "Times of each patient's rows in the topic, in the order of offsets, none of which is there twice"
        records = list(read_topic(self.topic, self.kafka, timeout_s=30))
        places = {(r.partition, r.offset) for r in records}
        assert len(places) == len(records)
        for p in {p for p,_ in places}: assert sorted(o for q,o in places if q == p) == list(range(sum(q == p for q,_ in places)))
        times = {}
        for r in sorted(records, key=lambda r: (r.partition, r.offset)): times.setdefault(r.key.decode(), []).append(json.loads(r.value)['time'])
        return times

    def expected(self):
        df = read(self.files)
        return {who:[t.isoformat() for t in rows.time] for who,rows in df.groupby('patient_id')}

def n_rows(times): return sum(map(len, times.values()))

def test_broker_crashes_and_comes_back(broker, files):
    s = Streaming(broker, files, 'crash', loops=1, rate=4000)
    time.sleep(1.5)
    broker.kill()
    time.sleep(2)
    broker.start()
    sent = s.end()
    assert (sent['sent'], sent['acknowledged'], sent['failed'], sent['passes']) == (16_000, 16_000, 0, 1)
    assert s.arrived() == s.expected() # nothing lost, nothing twice, each patient in order

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_reports_what_arrived(broker, files, number):
    s = Streaming(broker, files, f'stop-{number.name}', rate=4000)
    time.sleep(1)
    s.process.send_signal(number)
    sent = s.end(timeout=20)
    assert (sent['stopped'], sent['failed'], sent['sent']) == (number.name, 0, sent['acknowledged'])
    assert n_rows(s.arrived()) == sent['acknowledged'] > 0

def test_broker_that_stays_away(broker, files):
    stopped,given_up = (Streaming(broker, files, t, rate=2000, patience_s=8) for t in ('away-stop', 'away-fail'))
    time.sleep(1.5)
    broker.kill()
    time.sleep(.5)
    start = time.monotonic()
    stopped.process.send_signal(signal.SIGTERM)
    a,b = stopped.end(timeout=30),given_up.end(timeout=60)
    assert time.monotonic()-start < 40
    assert a['stopped'] == 'SIGTERM' and b['error']
    broker.start()
    for s,sent in (stopped, a), (given_up, b):
        assert sent['acknowledged'] < sent['sent'] # somewhat more may have arrived: the crash took the broker's answers with it
        assert sent['acknowledged'] <= n_rows(s.arrived()) <= sent['sent']
