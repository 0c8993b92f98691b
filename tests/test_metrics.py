"Metrics, readiness and what an operator makes of them, of a running worker on a real broker"
import json, time, urllib.error, urllib.request
import psutil, pytest
from sepsis_nb.data import read
from sepsis_nb.stream.outputs import read_outputs
from sepsis_nb.ward.check import check_workers, metric_values, worker_addresses
from sepsis_nb.worker import STATES_READ

def pages(p):
    "Address of a worker's pages, by the port that its process listens at"
    port, = {c.laddr.port for c in psutil.Process(p.pid).net_connections('tcp') if c.status == psutil.CONN_LISTEN}
    return f'http://127.0.0.1:{port}'

def get(url):
    "Status, type and body of an answer"
    try:
        with urllib.request.urlopen(url, timeout=10) as r: return r.status, r.headers['Content-Type'], r.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.headers['Content-Type'], e.read().decode()

def metrics(p): return metric_values(get(pages(p)+'/metrics')[2])

@pytest.fixture(scope='module')
def rows():
    df = read('sample')
    return df[df.patient_id.isin(set(df.patient_id.unique()[200:240]))].sort_values('time', kind='stable')[:900]

BAD = [(b'secret-7', b'no JSON'), (b'secret-7', b'{"HR":1}'), (b'secret-7', None)]

def test_metrics_of_a_line(line, store, rows):
    """Counts as on the topics; partitions go with a rebalance and their series with them; ready while it can score;
    no patient in any of it"""
    line.send(rows)
    line.send_raw(BAD)
    p = line.start(SEPSIS_WORKER_STUCK_S='5') # so the broker is asked each second
    line.wait(len(rows))
    line.wait(len(BAD), line.s.topics.dead_letter)
    line.until(lambda: line.committed() == line.ends(), 'commit')
    line.until(lambda: get(pages(p)+'/ready')[0] == 200, 'ready worker')
    status,kind,text = get(pages(p)+'/metrics')
    got,outputs = metric_values(text), list(read_outputs(line.s.topics.output, line.s.kafka))
    assert status == 200 and kind.startswith('text/plain; version=')
    assert got['sepsis_rows_total',] == len(rows)+len(BAD) and got['sepsis_scored_total',] == len(outputs) == len(rows)
    assert got['sepsis_alerts_total',] == sum(o['alert'] for o in outputs) > 0
    marked = [v for k,v in got.items() if k[0] == 'sepsis_indeterminate_total']
    assert sum(marked) == sum(o['quality']['indeterminate'] for o in outputs) > 0
    dead = {k[1]:v for k,v in got.items() if k[0] == 'sepsis_dead_letters_total'}
    assert dead == {'not-json':1, 'no-patient-id':1, 'forgotten':1}
    missing = {k[1]:v for k,v in got.items() if k[0] == 'sepsis_missing_values_total'}
    assert missing == {s:rows[s].isna().sum() for s in ('Temp', 'HR', 'Resp')} | dict(Pulse=rows.HR.isna().sum())
    assert got['sepsis_latency_seconds_count',] == got['sepsis_rows_total',] and 0 < got['sepsis_latency_seconds_sum',]
    assert time.time()-60 < got['sepsis_last_commit_timestamp_seconds',] <= time.time()
    assert got['sepsis_patients',]-rows.patient_id.nunique() in (0, 1) # one is to be forgotten
    assert got['sepsis_state_bytes',] > 1000
    for s in ('secret-7', *rows.patient_id.unique()): assert s not in text
    assert json.loads(get(pages(p)+'/health')[2]) == {'alive':True}
    other = line.start(SEPSIS_WORKER_STUCK_S='5')
    line.wait_log(STATES_READ, 3)
    def mine(p): return {k[1] for k in metrics(p) if k[0] == 'sepsis_lag_rows'}
    line.until(lambda: mine(p) and mine(other) and mine(p) | mine(other) == set('0123') and not mine(p) & mine(other),
               lambda: f'partition with one owner ({mine(p)}, {mine(other)})')
    assert sorted(worker_addresses(line.s)) == sorted(map(pages, (p, other)))
    assert check_workers(line.s) == '2 run on this machine, 0 rows wait'
    line.send_raw([(b'x', b'no JSON')]*50)
    line.wait(len(BAD)+50, line.s.topics.dead_letter)
    line.stop(other)
    with pytest.raises(RuntimeError, match='could not be scored, most of them: not-json'): check_workers(line.s)
    p.suspend() # it hangs: that is not the same as no worker
    try:
        with pytest.raises(RuntimeError, match='it has not answered for 5 s'): check_workers(line.s)
    finally: p.resume()
