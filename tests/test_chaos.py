"Delivery under faults: every kind of fault in a short run, and planted faults that the audit must find"
import logging
from collections import Counter
import pytest
from sepsis_nb.data import read
from sepsis_nb.prove.audit import audit_run, differs_from_table, undisturbed
from sepsis_nb.prove.faults import BAD, chaos, plan_faults, silence
from sepsis_nb.prove.harness import Record, as_records

def test_nothing_is_lost(store, tmp_path):
    logging.getLogger('kafka').setLevel(logging.CRITICAL)
    counts = dict(kill_worker=2, kill_broker=1, rebalance=1, freeze_worker=1, grow_topics=1)
    hold = dict(kill_broker=(1, 2), rebalance=(1, 2), freeze_worker=(7, 8))
    run = chaos(tmp_path, store, 'sample', plan_faults(counts, 3, .5, hold=hold), rows=4000, rate=150, seed=3)
    a = run.audit
    found = a.lost, a.diverged, a.states, a.differing, a.behind, run.table_differs
    assert found == (0,)*6, run.table().to_string()
    assert len(a.inputs) >= run.sent >= 4000
    assert a.patients > 100 and a.alerts.expected > 10 and a.dead.expected > 5, 'there must be something to get wrong'
    assert run.ends == [0] and run.ok
    assert Counter(f.kind for f in run.faults) == counts
    assert run.codes[-9] >= 2 and (tmp_path/'kafka/broker.log.1').exists(), 'the faults must have happened'
    assert len([*tmp_path.glob('worker-*.log')]) >= 1+2+2
    for f in run.faults:
        if f.kind in ('kill_worker', 'kill_broker'): assert silence(run.answers, f) > 1, f'{f} had no effect'
        if f.kind == 'freeze_worker': assert f.ended-f.began > 7

OTHERS = ('compress', 'break_batches', 'transact', 'misplace', 'jump_clock', 'overtake_frozen', 'overtake_stopped',
          'make_again', 'second_group', 'lock_store') # with one of each, and the rest in `32_chaos`

def test_nothing_outside_loses_or_changes_a_row(store, tmp_path):
    "What senders, operators and machines do without a death: the same judgement, and what is gone is accounted for"
    logging.getLogger('kafka').setLevel(logging.CRITICAL)
    hold = dict.fromkeys(('transact', 'overtake_frozen', 'overtake_stopped'), (.5, 1))
    plan = plan_faults(dict.fromkeys(OTHERS, 1), 5, .2, hold=hold)
    run = chaos(tmp_path, store, 'sample', plan, rows=1500, rate=100, seed=5)
    for a in run.audit, run.other:
        found = a.lost, a.diverged, a.states, a.differing, a.behind, a.miscounted
        assert found == (0,)*6, run.table().to_string()
        assert a.patients > 50 and a.alerts.expected > 5
    assert not run.table_differs and not run.unsaid and run.ends == [0, 0] and run.ok
    assert run.audit.left >= run.audit.letters > 50, 'rows must have left'
    assert run.codes[-9] == 1 and {f.kind for f in run.faults} == set(OTHERS)

@pytest.fixture(scope='module')
def undamaged(store):
    "The undisturbed run of some stays and bad messages, and topics that hold just that"
    scorer,df = store.scorer(), read('sample').iloc[:2000]
    inputs = as_records(df)
    ends = {p:1+max(r.offset for r in inputs if r.partition == p) for p in (0, 1)}
    inputs += [Record('input-topic', 0, ends[0]+n, k, v, (), 1_700_000_000_000) for n,(k,v) in enumerate(BAD)]
    want = undisturbed(scorer, inputs, 512*1024)
    def topic(found): return [Record('t', p, n, *o, n) for n,(p,*o) in enumerate(found.values())]
    states = [Record('t', p, n, key, raw, (), n) for n,(p,key,raw) in enumerate(want.records.values())]
    topics = dict(outputs=topic(want.outputs), alerts=topic(want.alerts), dead=topic(want.dead), states=states)
    return scorer, df, want, topics | dict(committed={0:ends[0]+len(BAD), 1:ends[1]}, spec=scorer.spec)

def first(**other): return lambda rs: [rs[0]._replace(**other), *rs[1:]]
def damaged(rs): return [rs[0]._replace(value=rs[0].value[:-3]+bytes([rs[0].value[-3]^1])+rs[0].value[-2:]), *rs[1:]]

PLANTED = dict( # topic, what is done to its records, what the audit must find
    lost_output=('outputs', lambda rs: rs[:5]+rs[6:], dict(lost=1)),
    lost_dead_letter=('dead', lambda rs: rs[1:], dict(lost=1)),
    lost_alert=('alerts', lambda rs: rs[1:], dict(diverged=1)),
    lost_state=('states', lambda rs: rs[1:], dict(states=1)),
    other_output=('outputs', first(key=b'other'), dict(diverged=1)),
    other_partition=('outputs', first(partition=9), dict(diverged=1)),
    other_dead_letter=('dead', damaged, dict(diverged=1)),
    other_state=('states', damaged, dict(states=1)),
    lost_clock=('states', lambda rs: [r for r in rs if r.key or r.partition], dict(states=1)),
    unexpected_state=('states', lambda rs: rs+[rs[0]._replace(key=b'nobody')], dict(states=1)),
    repeat=('outputs', lambda rs: rs+rs[3:7], dict(repeated=4)),
    other_repeat=('outputs', lambda rs: rs+[rs[3]._replace(key=b'other')], dict(repeated=1, differing=1)),
    late=('outputs', lambda rs: rs[1:]+rs[:1], dict(diverged=1)),
    not_committed=('committed', lambda ends: ends | {1:ends[1]-2}, dict(behind=2)))

@pytest.mark.parametrize('name', PLANTED)
def test_planted_faults_are_found(undamaged, name):
    _,_,want,topics = undamaged
    topic,plant,finding = PLANTED[name]
    assert audit_run(want, **topics).ok
    a = audit_run(want, **topics | {topic:plant(topics[topic])})
    kinds = 'lost', 'diverged', 'states', 'repeated', 'differing', 'behind'
    assert {k:getattr(a, k) for k in kinds if getattr(a, k)} == finding
    assert a.ok == (name == 'repeat')

def test_stale_state_is_no_fault(undamaged):
    "A revived worker's older record behind the newer one: the newer is taken"
    scorer,df,want,topics = undamaged
    before = undisturbed(scorer, [r for r in as_records(df) if r.offset < 500], 512*1024)
    old = [Record('t', p, 0, key, raw, (), 0) for (p,key),raw in before.states.items()]
    assert old and audit_run(want, **topics | dict(states=topics['states']+old)).states == 0

def test_another_table_is_found(undamaged):
    scorer,df,want,_ = undamaged
    outputs = [value for _,_,value,_ in want.outputs.values()]
    assert differs_from_table(scorer.score(df), outputs) == 0
    assert differs_from_table(scorer.score(df.assign(HR=df.HR+30)), outputs) > 0
