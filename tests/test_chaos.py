"Delivery under faults: what nbs/31_chaos shows at length, short, and that its comparison can fail"
import logging
import pytest
from sepsis_nb.prove.faults import BAD, plan_faults, silence
from sepsis_nb.prove.audit import Record, as_records, audit_run, log_champion, undisturbed, unlike_table
from sepsis_nb.prove.chaos import chaos
from sepsis_nb.data import read
from sepsis_nb.features import SPECS
from sepsis_nb.model.scorer import load_scorer

@pytest.fixture(scope='module')
def place(apart, tmp_path_factory):
    "A folder, and a store with a champion in it"
    folder,df = tmp_path_factory.mktemp('chaos'), read('sample')
    uri = f'sqlite:///{folder}/mlflow.db'
    log_champion(uri, df[df.patient_id.isin(df.patient_id.unique()[:200])], SPECS['vitals'])
    return folder, uri, load_scorer('models:/sepsis@champion', '', uri, folder/'cache')

def test_nothing_is_lost(place):
    folder,uri,_ = place
    logging.getLogger('kafka').setLevel(logging.CRITICAL)
    counts = dict(kill_worker=3, kill_broker=1, rebalance=1, freeze_worker=1)
    run = chaos(folder/'run', uri, 'sample', plan_faults(counts, seed=3, pause_s=1.), rows=4000, rate=150, seed=3)
    a = run.audit
    assert (a.lost, a.diverged, a.states, a.differing, a.behind, run.unlike) == (0, 0, 0, 0, 0, 0), run.table().to_string()
    assert len(a.inputs) >= run.sent >= 4000 and a.patients > 100 and a.alerts.expected > 10 and a.dead.expected > 5, 'the stream must have something to get wrong'
    assert run.ends == [0] and run.ok
    assert run.codes[-9] >= 3 and (folder/'run/kafka/broker.log.1').exists() and len([*(folder/'run').glob('worker-*.log')]) >= 1+3+2, 'the faults must have happened'
    for f in run.faults:
        if f.kind in ('kill_worker', 'kill_broker'): assert silence(run.answers, f) > 1, f'{f} was not felt'
        if f.kind == 'freeze_worker': assert f.ended-f.began > 7

@pytest.fixture(scope='module')
def told(place):
    "The story of some stays and bad messages, and the topics of a run that told it"
    *_,scorer = place
    df = read('sample').iloc[:2000]
    inputs = as_records(df)
    ends = {p:1+max(r.offset for r in inputs if r.partition == p) for p in (0, 1)}
    inputs += [Record('input-topic', 0, ends[0]+n, k, v, (), 1_700_000_000_000) for n,(k,v) in enumerate(BAD)]
    story = undisturbed(scorer, inputs, 512*1024)
    topic = lambda found: [Record('t', p, n, key, value, headers, n) for n,(p,key,value,headers) in enumerate(found.values())]
    states = [Record('t', p, n, key, raw, (), at) for n,((p,key),(raw,at)) in enumerate(story.states.items())]
    return scorer, df, story, dict(outputs=topic(story.outputs), alerts=topic(story.alerts), dead=topic(story.dead), states=states,
                                   committed={0:ends[0]+len(BAD), 1:ends[1]}, spec=scorer.spec)

def changed(r): return r._replace(value=r.value[:-3]+bytes([r.value[-3]^1])+r.value[-2:])

PLANTED = dict(
    lost_output=('outputs', lambda rs: rs[:5]+rs[6:], dict(lost=1)),
    lost_dead_letter=('dead', lambda rs: rs[1:], dict(lost=1)),
    lost_alert=('alerts', lambda rs: rs[1:], dict(diverged=1)),
    lost_state=('states', lambda rs: rs[1:], dict(states=1)),
    other_output=('outputs', lambda rs: [rs[0]._replace(key=b'other')]+rs[1:], dict(diverged=1)),
    other_partition=('outputs', lambda rs: [rs[0]._replace(partition=9)]+rs[1:], dict(diverged=1)),
    other_dead_letter=('dead', lambda rs: [changed(rs[0])]+rs[1:], dict(diverged=1)),
    other_state=('states', lambda rs: [changed(rs[0])]+rs[1:], dict(states=1)),
    other_stamp=('states', lambda rs: [rs[0]._replace(timestamp=1)]+rs[1:], dict(states=1)),
    strange_state=('states', lambda rs: rs+[rs[0]._replace(key=b'nobody')], dict(states=1)),
    repeat=('outputs', lambda rs: rs+rs[3:7], dict(repeated=4)),
    other_repeat=('outputs', lambda rs: rs+[rs[3]._replace(key=b'other')], dict(repeated=1, differing=1)),
    late=('outputs', lambda rs: [r for r in rs if r is not rs[0]]+[rs[0]], dict(diverged=1)),
    not_committed=('committed', lambda ends: ends | {1:ends[1]-2}, dict(behind=2)))

@pytest.mark.parametrize('name', PLANTED)
def test_planted_faults_are_found(told, name):
    _,_,story,topics = told
    which,how,want = PLANTED[name]
    assert audit_run(story, **topics).ok
    a = audit_run(story, **topics | {which:how(topics[which])})
    assert {k:getattr(a, k) for k in ('lost', 'diverged', 'states', 'repeated', 'differing', 'behind') if getattr(a, k)} == want
    assert a.ok == (name == 'repeat')

def test_stale_state_is_no_fault(told):
    "A revived worker's older record behind the newer one: the newer is taken"
    scorer,df,story,topics = told
    before = undisturbed(scorer, [r for r in as_records(df) if r.offset < 500], 512*1024)
    old = [Record('t', p, 0, key, raw, (), at) for (p,key),(raw,at) in before.states.items()]
    assert old and audit_run(story, **topics | dict(states=topics['states']+old)).states == 0

def test_another_batch_is_found(told):
    scorer,df,story,_ = told
    assert unlike_table(scorer, df, story) == 0
    assert unlike_table(scorer, df.assign(HR=df.HR+30), story) > 0
