"Topics got more partitions by hand: every row has one answer, and every history goes on"
import os, random, subprocess, time
from collections import Counter
import numpy as np, orjson, pandas as pd
from kafka import KafkaProducer
from sepsis_nb.prove.harness import SEPSIS, SUPERVISED, Line
from sepsis_nb.stream.kafka import client_args, default_partition, read_topic, topic_ends
from sepsis_nb.stream.outputs import Outputs
from sepsis_nb.stream.progress import GROWTH_KEY, Growth

IDS = [f'p{n}' for n in range(60)]

class Growing(Line):
    "A supervised line, its senders, and the command"
    def __init__(self, folder, store, partitions):
        env = dict(SEPSIS_TOPICS_PARTITIONS=str(partitions), SEPSIS_WORKER_STUCK_S='10')
        super().__init__(folder, SUPERVISED, **store.env, **env)
        self.sent,self.hour = [], Counter()

    def ends(self, topic=None): return topic_ends(topic or self.s.topics.input, self.s.kafka)

    def committed(self): return {p:o for p,o in Line.committed(self).items() if p in self.ends()}

    def grow(self, partitions, settle):
        args = 'topics', 'grow', '--partitions', str(partitions), '--yes', '--settle', str(settle)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen([*SEPSIS, *args], env=self.env, **pipes)

    def row(self, pid, rng):
        "The patient's next row, as key and value"
        values = dict(HR=round(rng.normal(95, 12), 1), Resp=round(rng.normal(18, 3), 1), Temp=37.1)
        self.sent.append(dict(patient_id=pid, time=self.hour[pid]) | values)
        self.hour[pid] += 1
        return pid.encode(), orjson.dumps(self.sent[-1])

    def send_some(self, times, partitions):
        "Rows of all patients by a sender that knows of so many partitions"
        rng = np.random.default_rng(times)
        with KafkaProducer(**client_args(self.s.kafka)) as producer:
            for key,value in [self.row(pid, rng) for _ in range(times) for pid in IDS]:
                producer.send(self.s.topics.input, value, key, partition=default_partition(key, partitions))

    def check(self, scorer):
        "Each row that was sent has one distinct output, and it is that of the table"
        self.until(lambda: self.committed() == self.ends(), 'the commit of all rows')
        found,df = Outputs(read_topic(self.s.topics.output, self.s.kafka)), pd.DataFrame(self.sent)
        outputs,table = list(found), scorer.score(df)
        got = {(o['patient_id'], o['original_data']['time']):(o['prediction_probabilities'][1], o['alert'])
               for o in outputs}
        want = dict(zip(zip(df.patient_id, df.time), zip(table.risk.tolist(), table.alert.tolist())))
        assert found.differing == 0 and len(outputs) == len(got) == len(want)
        assert not {k:(got.get(k), want[k]) for k in want if got.get(k) != want[k]}
        assert not [o for o in outputs if 'misplaced' in str(o['quality'])]

def said(command, words):
    "Wait until the command has said that"
    while words not in (text := command.stdout.readline()): assert text, f'it ended before it said: {words}'

def test_topics_that_were_grown_by_hand(kafka, store, tmp_path):
    "One that runs goes on, one that starts refuses; the command dies in its move, is run again, and all goes on"
    with Growing(tmp_path, store, 4) as line:
        p = line.start()
        line.send_some(5, partitions=4)
        line.wait(300)
        line.admin.create_partitions(dict.fromkeys(line.s.topics.names(), 8))
        line.send_some(2, partitions=4) # by a sender that has not noticed
        line.send_some(3, partitions=8)
        q = line.start() # now the partitions are shared anew
        assert q.wait(60) == os.EX_CONFIG
        line.procs.remove(q)
        assert 'by 4 partitions, and the topic has 8; `sepsis topics grow --partitions 8 --yes`' in q.log.read_text()
        command = line.grow(8, settle=0)
        said(command, 'workers stop')
        time.sleep(after := random.uniform(0, 8))
        command.kill()
        command.wait()
        assert 'ended' not in p.log.read_text().split('states are moved')[0]
        command = line.grow(8, settle=0)
        text,_ = command.communicate(timeout=90)
        assert command.returncode == 0, (after, text)
        g = Growth(4, 8, moving=True) # as a command leaves it that dies behind the last state; the worker goes on
        with KafkaProducer(**client_args(line.s.kafka)) as producer:
            producer.send(line.s.topics.state, g.pack(), GROWTH_KEY, partition=g.home)
        assert line.grow(8, settle=0).communicate(timeout=60) and p.poll() is None
        line.check(store.scorer())
        assert line.stop(p) == 0
