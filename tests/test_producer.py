"A producer whose broker crashes, that a supervisor stops, or whose broker stays away: the account matches the topic"
import json, signal, subprocess, sys, time
import pytest
from kafka.admin import KafkaAdminClient
from sepsis_nb.data import read
from sepsis_nb.rows.simulate import simulate
from sepsis_nb.stream.broker import Broker
from sepsis_nb.stream.kafka import client_args, read_topic

RUN = '''
import json, sys
from dataclasses import asdict
from sepsis_nb.producer import DeliveryError, produce
from sepsis_nb.settings import Kafka
o = json.loads(sys.argv[1])
try: sent = produce(o.pop('paths'), Kafka(o.pop('bootstrap')), quiet=True, **o)
except DeliveryError as e: sent = e.sent
print(json.dumps(asdict(sent)))
'''

@pytest.fixture(scope='module')
def broker(tmp_path_factory, kafka):
    "A broker of these tests alone, since they kill it"
    with Broker(tmp_path_factory.mktemp('crash')/'kafka', cache=kafka.cache) as b: yield b

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return [str(p) for p in simulate(tmp_path_factory.mktemp('synthetic'), rows=(8_000, 8_000))]

class Streaming:
    "A producer in a process of its own, into a topic of its own"
    def __init__(self, broker, files, topic, **options):
        self.kafka,self.topic,self.files = broker.kafka,topic,files
        admin = KafkaAdminClient(**client_args(broker.kafka))
        admin.create_topics({topic:dict(num_partitions=4)})
        admin.wait_for_topics([topic])
        admin.close()
        args = json.dumps(dict(paths=files, bootstrap=broker.bootstrap, topic=topic, **options))
        self.process = subprocess.Popen([sys.executable, '-c', RUN, args], stdout=subprocess.PIPE, text=True)

    def until_streaming(self):
        assert self.process.stdout.readline() == 'Patient data loaded and validated successfully.\n'
        assert self.process.stdout.readline().startswith('Streaming 16000 records')
        return self

    def end(self, timeout=120):
        "Wait for its account"
        out,_ = self.process.communicate(timeout=timeout)
        print(out)
        return json.loads(out.splitlines()[-1])

    def arrived(self):
        "Times of each patient's rows in the topic, in the order of offsets, which have neither gap nor repeat"
        records = sorted(read_topic(self.topic, self.kafka, timeout_s=30), key=lambda r: (r.partition, r.offset))
        offsets,times = {},{}
        for r in records:
            offsets.setdefault(r.partition, []).append(r.offset)
            times.setdefault(r.key.decode(), []).append(json.loads(r.value)['time'])
        for found in offsets.values(): assert found == list(range(len(found)))
        return times

    def expected(self):
        return {who:[t.isoformat() for t in rows.time] for who,rows in read(self.files).groupby('patient_id')}

def n_rows(times): return sum(map(len, times.values()))

def test_broker_crashes_and_comes_back(broker, files):
    s = Streaming(broker, files, 'crash', loops=1, rate=4000).until_streaming()
    time.sleep(1.5)
    broker.kill()
    time.sleep(1)
    broker.start()
    sent = s.end()
    assert (sent['sent'], sent['acknowledged'], sent['failed'], sent['passes']) == (16_000, 16_000, 0, 1)
    assert s.arrived() == s.expected() # nothing lost, nothing repeated, each patient in order

def test_signal_reports_what_arrived(broker, files):
    numbers = signal.SIGINT, signal.SIGTERM
    producers = [Streaming(broker, files, f'stop-{n.name}', rate=4000) for n in numbers]
    for s in producers: s.until_streaming()
    time.sleep(1)
    for s,n in zip(producers, numbers): s.process.send_signal(n)
    for s,n in zip(producers, numbers):
        sent = s.end(timeout=20)
        assert (sent['stopped'], sent['failed'], sent['sent']) == (n.name, 0, sent['acknowledged'])
        assert n_rows(s.arrived()) == sent['acknowledged'] > 0

def test_broker_that_stays_away(broker, files):
    producers = [Streaming(broker, files, t, rate=2000, patience_s=6) for t in ('away-stop', 'away-fail')]
    for s in producers: s.until_streaming()
    time.sleep(1)
    broker.kill()
    time.sleep(.5)
    start = time.monotonic()
    producers[0].process.send_signal(signal.SIGTERM)
    stopped,failed = producers[0].end(timeout=30),producers[1].end(timeout=60)
    assert time.monotonic()-start < 40
    assert stopped['stopped'] == 'SIGTERM' and failed['error']
    broker.start()
    for s,sent in zip(producers, (stopped, failed)):
        assert sent['acknowledged'] < sent['sent'] # more may have arrived: a crash loses some of the broker's answers
        assert sent['acknowledged'] <= n_rows(s.arrived()) <= sent['sent']
