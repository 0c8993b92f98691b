"What other senders and clusters do to topics: transactions, topics made again, rows that left, offsets that moved"
import asyncio, os, signal, time
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource
import orjson
from sepsis_nb.prove.harness import Line
from sepsis_nb.stream.kafka import client_args, default_partition, read_topic
from sepsis_nb.stream.outputs import Outputs
from sepsis_nb.stream.watch import account

def row(pid, hour):
    return pid.encode(), orjson.dumps(dict(patient_id=pid, time=hour, HR=60+hour%40, Resp=18, Temp=37.1))
def some(pid, n, first=0): return [row(pid, first+h) for h in range(n)]

def outputs(line):
    "(patient, hour) of each output, and its risk; without repeats, which are the same bytes"
    found = map(orjson.loads, dict.fromkeys(r.value for r in read_topic(line.s.topics.output, line.s.kafka)))
    return [((o['patient_id'], o['original_data']['time']), o['prediction_probabilities'][1]) for o in found]

def letters(line):
    return [{k:v.decode() for k,v in r.headers} for r in read_topic(line.s.topics.dead_letter, line.s.kafka)]

def in_transactions(line, *parts):
    "Send each part as a transaction that ends as it says: commit, abort, or open"
    async def go():
        for n,(how,records) in enumerate(parts):
            p = AIOKafkaProducer(bootstrap_servers=line.s.kafka.bootstrap_servers, transactional_id=f'gateway-{n}')
            await p.start()
            await p.begin_transaction()
            for key,value in records: await p.send_and_wait(line.s.topics.input, value, key=key)
            if how == 'commit': await p.commit_transaction()
            if how == 'abort': await p.abort_transaction()
            if how != 'open': await p.stop()
    asyncio.run(go())

def test_transactions(line):
    "What is committed is answered, what is aborted never is, and then there is no lag"
    p = line.start()
    line.send_raw(some('plain', 3))
    in_transactions(line, ('commit', some('a', 4)), ('abort', some('b', 4)), ('commit', some('a', 4, 4)))
    line.wait(11)
    line.until(lambda: line.committed() == line.ends(), 'the commit of all offsets')
    assert line.stop(p) == 0
    p = line.start()
    in_transactions(line, ('abort', some('b', 2)), ('commit', some('b', 1, 9)))
    line.wait(12)
    line.until(lambda: line.committed() == line.ends(), 'the commit of all offsets')
    assert line.stop(p) == 0 and 'stuck' not in line.text()
    found = sorted(o for o,_ in outputs(line))
    assert found == sorted([('plain', h) for h in range(3)]+[('a', h) for h in range(8)]+[('b', 9)])
    assert line.text().count('repeated=0') == line.text().count('repeated=')

def remake(line, n=4):
    "Delete the input topic and make it again under its name"
    t = line.s.topics.input
    line.admin.delete_topics([t])
    line.until(lambda: t not in line.admin.list_topics(), 'the end of the topic')
    line.admin.create_topics({t:dict(num_partitions=n, configs={'message.timestamp.type':'LogAppendTime'})})
    line.admin.wait_for_topics([t])

def test_a_topic_made_again(line, store):
    "All rows of the new topic are answered in order, and the histories go on, though the worker did not see it"
    p = line.start()
    line.send_raw(some('p1', 5)+some('p2', 5))
    line.wait(10)
    p.send_signal(signal.SIGSTOP)
    remake(line)
    line.send_raw(some('p1', 8, 5)+some('p2', 2, 5)+some('p3', 3))
    p.send_signal(signal.SIGCONT)
    assert p.wait(60) == os.EX_TEMPFAIL and 'was made again; ending' in line.text()
    line.procs.remove(p)
    p = line.start()
    line.until(lambda: len(outputs(line)) == 23 and line.committed() == line.ends(), 'all answers')
    assert line.stop(p) == 0 and 'was made again partitions=' in line.text()
    with Line(line.folder/'twin', **store.env) as twin: # the same rows in one topic
        twin.start()
        twin.send_raw(some('p1', 13)+some('p2', 7)+some('p3', 3))
        twin.wait(23)
        assert dict(outputs(twin)) == dict(outputs(line))

def test_rows_that_left_before_they_were_answered(line):
    "They are counted, logged and kept as ranges, and the rest is answered; also while a worker runs"
    tps = [TopicPartition(line.s.topics.input, n) for n in range(4)]
    p = line.start()
    line.send_raw(some('p1', 5))
    line.wait(5)
    p.send_signal(signal.SIGSTOP)
    line.send_raw(some('p1', 5, 5)) # these are on their way to it
    time.sleep(1)
    line.send_raw(some('p1', 20, 10))
    line.admin.delete_records({tp:line.ends()[tp.partition] for tp in tps if line.ends()[tp.partition]})
    line.send_raw(some('p1', 3, 30))
    p.send_signal(signal.SIGCONT)
    def lost(): return sum(int(h['last_offset'])-int(h['offset'])+1 for h in letters(line))
    line.until(lambda: lost()+len(outputs(line)) == 33, 'an account of all rows')
    assert lost() >= 20 and {h['reason'].split(':')[0] for h in letters(line)} == {'unanswered'}
    assert line.stop(p) == 0
    assert f'lost rows before they were answered offsets={lost()}' in line.text()
    assert account(line.s.kafka, line.s.topics) == dict(done=33, wait=0, unanswered=lost())

def test_an_offset_that_was_moved_skips_nothing(line):
    p = line.start()
    line.send_raw(some('p1', 5))
    line.wait(5)
    assert line.stop(p) == 0
    line.send_raw(some('p1', 5, 5))
    group = line.s.worker.app_id
    ends = {TopicPartition(line.s.topics.input, n):OffsetAndMetadata(end, '', -1) for n,end in line.ends().items()}
    line.admin.alter_group_offsets(group, ends)
    p = line.start()
    line.wait(10)
    assert line.stop(p) == 0 and len(outputs(line)) == 10 and line.committed() == line.ends()

def test_an_input_topic_that_is_compacted_is_refused(line):
    t = line.s.topics.input
    line.admin.alter_configs([ConfigResource('topic', t, {'cleanup.policy':'compact'})])
    assert line.start().wait(60) == os.EX_CONFIG
    line.procs.clear()
    assert f'topic {t} has cleanup.policy=compact' in line.text()

def test_rows_by_another_partitioner_are_reported(line):
    p = line.start()
    with KafkaProducer(**client_args(line.s.kafka)) as producer:
        for key,value in some('p1', 3)+some('p2', 3):
            producer.send(line.s.topics.input, value, key, partition=(default_partition(key, 4)+(key == b'p2'))%4)
    line.wait(6)
    assert line.stop(p) == 0 and 'misplaced=3' in line.text()
    found = Outputs(read_topic(line.s.topics.output, line.s.kafka))
    assert [o['patient_id'] for o in found if any('misplaced' in r for r in o['quality']['reasons'])] == ['p2']*3
