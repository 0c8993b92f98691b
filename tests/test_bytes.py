"Whatever bytes: hostile messages without a broker, and batches that a real broker takes and a client cannot read"
import gzip, json, random, re
from collections import namedtuple
from dataclasses import replace
from io import BytesIO
import cramjam, orjson, pandas as pd
from kafka import KafkaProducer
from kafka.admin import ConfigResource
from sepsis_nb.data import encode, messages
from sepsis_nb.prove.audit import audit_topic, undisturbed
from sepsis_nb.prove.wire import raw_batch, raw_record, send_batches
from sepsis_nb.stream.kafka import client_args, read_topic
from sepsis_nb.stream.redrive import plan_redrive
from sepsis_nb.stream.scoring import score_batch
from sepsis_nb.stream.states import Patients
from test_operate import Operated, row
from test_worker import check_line, held_out

LIMIT = 850*1024       # [worker] max_message_kb, at most
MOST = 1_048_588-100   # Kafka's default of max.message.bytes, less a batch's head and a record's lengths
Msg = namedtuple('Msg', 'topic partition offset key value timestamp', defaults=[1_700_000_000_000])
IDS = ['', 'p1', 'é'*199, '\U0001f3e5'*200, '\x01'*200, 'x'*201, '\x00', '\x1b[2J', 'a\nb', '\u202e', '\x7f\x9b',
       '__proto__', '\ufeff', ' ', '"', '\\', '\u2028', 'NaN', 'p'*100_000]
NUMBERS = ['0', '-0', '-0.0', '1e400', '1E-400', '-1e308', '1'*19, '9'*20, '1'*300, '1'*5000, '0.'+'1'*400, '-1', '1e5',
           '18446744073709551615', '9007199254740993', '00', '1.', '.5', '+1', 'NaN', 'Infinity', '0x1F', 'true',
           'null']
ESCAPES = ['"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x"', '"\t"', '"\\ud83c\\udfe5"']
DEPTHS = 1, 5, 60, 70, 1000, 1100, 100_000
NESTED = [t for n in DEPTHS for t in ('['*n+']'*n, '{"a":'*n+'1'+'}'*n, '['*n)]
MANY = [f'[{",".join([o]*n)}]' for o in ('{}', '[]', '1', '"a"') for n in (10, 100_000)]
NAMES = 'HR', 'HR', 'Temp', 'Resp', 'O2Sat', 'time', 'ICULOS', 'MDC_TEMP_Result', 'patient_id', 'bed', '\x7f'

class Hostile:
    "Messages from a seed"
    def __init__(self, seed): self.r = random.Random(seed)
    def value(self):
        text = json.dumps(self.r.choice(IDS), ensure_ascii=self.r.random() < .5)
        kinds = [self.r.choice(o) for o in (NUMBERS, [text], ESCAPES, NESTED, MANY)]
        return self.r.choices(kinds, [9, 5, 1, 1, .1])[0]
    def pair(self):
        plain = str(self.r.choice([80, 36.6, 18, 1e7]))
        colon = self.r.choice([':', ' : ', ':\n', '\t:'])
        return json.dumps(self.r.choice(NAMES))+colon+self.r.choices([plain, self.value()], [3, 2])[0]
    def row(self, pid):
        found = [f'"patient_id":{json.dumps(pid, ensure_ascii=False)}'][self.r.random() < .1:]
        found += [self.pair() for _ in range(self.r.choice([1, 2, 5, 40]))]
        return '{'+self.r.choice([',', ' ,\r\n']).join(found)+'}'
    def damage(self, raw):
        "Some messages with other bytes in them, cut, or made large; most as they are"
        filler = self.r.choice([b'y', b'\xf0\x9f\x8f\xa5', b'\\u001b'])*self.r.choice([10_000, 120_000])
        cut = self.r.randrange(len(raw)+1)
        return self.r.choices([raw, b'\xef\xbb\xbf'+raw, raw[:cut], raw.replace(b'a', b'\xff\xc0'),
                               raw[:-1]+b',"x":"'+filler+b'"}', None], [80, 4, 4, 4, 4, 1])[0]
    def message(self):
        pid = self.r.choice(IDS)
        raw = self.r.choices([self.row(pid), self.value(), '', 'p1,80'], [20, 1, .2, .2])[0].encode()
        key = self.r.choices([pid.encode(), None, b'', b'k'*500_000, b'\xff\xfe'], [15, 1, 1, .3, 1])[0]
        return key, self.damage(raw)

def largest():
    "The longest ids in the largest messages, every signal out of range"
    for pid in IDS[2:5]:
        head = orjson.dumps(dict(patient_id=pid, **dict.fromkeys(NAMES[1:5], 1e7)))[:-1]+b',"x":"'
        key = pid.encode()
        yield key, head+b'y'*(LIMIT-len(head)-len(key)-2)+b'"}'

def size(*parts, headers=()): return sum(len(o or b'') for o in parts)+sum(len(k)+len(v)+10 for k,v in headers)

def check_answers(batch, sent, patients):
    "Each message has one answer, and each record fits its topic; the reasons of the dead letters"
    reasons = [(p, dict(h)) for p,*_,h in batch.dead]
    answered = [(p, orjson.loads(v)['source']['offset']) for p,_,v in batch.outputs]
    answered += [(p, int(h['offset'])) for p,h in reasons]
    assert sorted(answered) == sorted((m.partition, m.offset) for m in sent)
    assert max(size(k, v) for _,k,v in batch.outputs+batch.alerts) <= MOST
    assert max(size(k, v, headers=h) for _,k,v,h in batch.dead) <= MOST
    assert all(size(k, v) <= MOST for _,k,v in batch.states(patients))
    assert all(h['reason'].decode().isprintable() for _,h in reasons)
    return [h['reason'] for _,h in reasons]

def test_hostile_messages(store):
    "Nothing raises; each message has one answer; each record fits its topic; each output is JSON to everybody"
    scorer = replace(store.scorer(), name='\U0001f3e5'*255)
    hostile,patients = Hostile(7),{p:Patients(scorer.spec) for p in range(2)}
    messages = [*largest(), *(hostile.message() for _ in range(2500))]
    sent = [Msg('t'*249, n%2, n, *m) for n,m in enumerate(messages)]
    outputs,reasons = [],[]
    for i in range(0, len(sent), 500):
        batch = score_batch(scorer, patients, sent[i:i+500], LIMIT)
        reasons += check_answers(batch, sent[i:i+500], patients)
        outputs += [v for *_,v in batch.outputs]
    assert len(outputs) > 200 and len(outputs[0]) > LIMIT
    for v in outputs: assert b'\n' not in v and json.loads(v)['patient_id'] == orjson.loads(v)['patient_id']
    for v in outputs[::5]: assert len(pd.read_json(BytesIO(v), lines=True)) == 1
    slugs = {r.split(b':')[0].decode() for r in reasons}
    assert slugs >= set('''not-json not-an-object no-patient-id bad-patient-id not-a-number no-signal bad-time empty
        key-mismatch duplicate-name long-number too-deep too-large forgotten'''.split()), slugs

def records(n, pid='p1', note='', headers=()):
    "Bytes of rows of a patient"
    return b''.join(raw_record(i, *row(pid, i, note), headers) for i in range(n))

def zstd(data): return bytes(cramjam.zstd.compress(data))
def lz4(data):
    packer = cramjam.lz4.Compressor(block_linked=False) # a broker takes no other
    packer.compress(data)
    return bytes(packer.finish())
def xerial(block): return b'\x82SNAPPY\0'+bytes((0, 0, 0, 2, 0, 0, 0, 1))+len(block).to_bytes(4, 'big')+block

BOMB = raw_batch(zstd(raw_record(0, b'p1', bytes(200_000_000))), 1, 4)
BAD = [ # batch, how many of its records are read, how many are not
    (raw_batch(gzip.compress(records(3))+b'xxx', 3, 1), 0, 3),
    (raw_batch(lz4(records(2))+b'xxx', 2, 3), 0, 2),
    (raw_batch(records(1, 'p4')+raw_record(1, *row('p1', 0), [(b'\xff', b'')]), 2), 1, 1),
    (raw_batch(raw_record(2**30, *row('p1', 0))), 0, 1),
    (raw_batch(records(1, 'p5')+raw_record(-1, *row('p1', 0)), 2), 1, 1),
    (raw_batch(raw_record(1, *row('p1', 0))*2, 2), 0, 2),
    (raw_batch(records(1, headers=[(b'', b'')]*40_000)), 0, 1),
    *[(BOMB, 0, 1)]*20]

def peak_mb(p):
    "The most memory that a process has held"
    return int(re.search(r'VmHWM:\s+(\d+) kB', open(f'/proc/{p.pid}/status').read())[1])/1024

def test_batches_that_stop_a_client(kafka, store, tmp_path):
    """What a Kafka takes and no client can read, or is deceived by: one letter for its offsets, and the partition moves
    on. Twenty bombs of 200 MB take no memory to speak of, and every command reads past them"""
    snappy = bytes(cramjam.snappy.compress_raw(records(5, 'p3')))
    batches = [raw_batch(records(5, 'p2'), 5), *(raw for raw,*_ in BAD), raw_batch(xerial(snappy), 5, 2)]
    with Operated(tmp_path, store) as line:
        p = line.start()
        line.send_raw([row('p0', 0)])
        line.wait(1)
        before = peak_mb(line.child(p))
        assert {why for why,_ in send_batches(line.s.kafka, line.s.topics.input, 0, batches)} == {'NoError'}
        line.wait(13)
        line.until(lambda: line.committed() == line.ends(), 'commits of all rows')
        taken = peak_mb(line.child(p))-before
        assert taken < 100, f'{taken:.0f} MB'
        check_letters(line, store.scorer())
        check_commands(line)
        flood(line, p, before)
        assert line.stop(p) == 0

def flood(line, p, before):
    "Rows of 500 kB, which the sender has packed a thousand times smaller: what a worker holds is not what waits"
    done,many = line.count(), raw_batch(zstd(records(20, 'p1', 'x'*500_000)), 20, 4)
    send_batches(line.s.kafka, line.s.topics.input, 0, [many]*60)
    line.wait(done+1200)
    taken = peak_mb(line.child(p))-before
    assert taken < 400, f'{taken:.0f} of 600 MB'

def check_letters(line, scorer):
    letters = [(r, {k:v.decode() for k,v in r.headers}) for r in read_topic(line.s.topics.dead_letter, line.s.kafka)]
    assert [int(h['last_offset'])-int(h['offset'])+1 for _,h in letters] == [n for *_,n in BAD]
    for (r,h),(raw,*_) in zip(letters, BAD): # the broker sets the head
        assert (r.key, r.value[61:], h['partition']) == (None, raw[61:], '0') and 'length' not in h
    assert [h['reason'].split(':')[0] for _,h in letters] == ['undecodable']*6+['too-large']*21
    rows = read_topic(line.s.topics.input, line.s.kafka, undecodable=True) # with kafka-python, the worker with aiokafka
    want = undisturbed(scorer, rows, line.s.worker.max_message_kb*1024)
    found = audit_topic(want.dead, [r for r,_ in letters])
    assert (found.expected, found.missing, found.diverged, found.unexpected) == (len(BAD), 0, 0, 0)

def check_commands(line):
    line.send_raw([(b'x', '\x1b[2J\x9b31m\u202e\n{"patient_id": 1}'.encode())])
    text,code = line.sepsis('consume', line.s.topics.input, '--from-beginning', '--timeout', '2')
    assert code == 0 and text.count('"patient_id":') == 14
    assert all(o.isprintable() for o in text.split('\n')) and r'\u001b[2J\u009b31m\u202e {"patient_id": 1}' in text
    table = plan_redrive(line.s).table()
    assert table.loc['undecodable'].to_dict() == dict(ready=0, undecodable=6) and table.undecodable.sum() == len(BAD)
    text,code = line.sepsis('forget', 'p2', '--yes')
    assert code == 0 and 'Forgotten' in text

CODECS = 'gzip', 'snappy', 'lz4', 'zstd', 'uncompressed'

def test_senders_and_topics_compress_as_they_like(kafka, store, tmp_path):
    "Each codec of a sender, and each `compression.type` of every topic: scored, and read by every command"
    rows,senders = held_out(), (*CODECS[1:4], None, 'gzip')
    with Operated(tmp_path, store) as line:
        t,p = line.s.topics, line.start()
        for i,(sender,topic) in enumerate(zip(senders, CODECS)): # each with its own patients, in order
            line.admin.alter_configs([ConfigResource('topic', o, {'compression.type':topic}) for o in t.names()])
            part = rows[rows.patient_id.isin(rows.patient_id.unique()[i::len(CODECS)])]
            with KafkaProducer(**client_args(line.s.kafka), compression_type=sender) as producer:
                for m in messages(part): producer.send(t.input, encode(m), m['patient_id'].encode())
        line.wait(len(rows))
        check_line(line, rows, store.scorer())
        line.send_raw([(b'x', b'no row')])
        line.wait(1, t.dead_letter)
        text,code = line.sepsis('consume', t.output, '--from-beginning', '--unique', '--timeout', '1')
        assert code == 0 and text.count('"source":') == len(rows)
        assert line.sepsis('redrive', '--yes')[1] == 0 and line.count(t.dead_letter) == 2
        assert line.sepsis('forget', rows.patient_id.iloc[0], '--yes')[1] == 0
        assert line.stop(p) == 0
