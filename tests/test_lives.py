"Time and the lives of a patient: every rule of the table in 01_features, in the worker's batches as in a table, to the last bit"
from collections import namedtuple
from dataclasses import replace
from datetime import datetime, timedelta
from zlib import crc32
import numpy as np, orjson, pandas as pd, pytest
from sepsis_nb.data import encode, read
from sepsis_nb.features import SPECS, extract
from sepsis_nb.model.policy import Policy, table_alerts
from sepsis_nb.model.risk import fit_training_range
from sepsis_nb.model.scorer import Scorer, indeterminate_rows
from sepsis_nb.stream.states import Kept, Patients, restore
from sepsis_nb.stream.scoring import score

Message = namedtuple('Message', 'topic partition offset timestamp key value')
NONE,DATE,LIMIT,SILENCE = np.nan, 482_000., 10_000, 72*3_600_000 # h, h, bytes, ms

def by_bits(X):
    "(n, 2) risks that differ wherever a single bit of a row of features does"
    p = np.array([crc32(x.tobytes())/2**32 for x in np.where(np.isnan(X), np.nan, X)])
    return np.column_stack((1-p, p))

def scorer(spec): return Scorer(spec, Policy(.6, .4, 5.), 'bits', '1', 'f0e1', by_bits, 0., 1., False, {})

def sent(rows, text=(), stamps=None):
    "Rows of (patient_id, time, values) as messages, in their order; those whose number is in `text` carry ISO 8601; `stamps`: Kafka's, in ms"
    out,ends = [], {}
    for n,(who,t,values) in enumerate(rows):
        p = crc32(who.encode())%2
        ends[p] = o = ends.get(p, -1)+1
        when = {} if np.isnan(t) else dict(time=(datetime(1970, 1, 1)+timedelta(hours=t)).isoformat() if n in text else t)
        out.append(Message('input-topic', p, o, 1_700_000_000_000+(n if stamps is None else int(stamps[n])), who.encode(), encode(dict(patient_id=who) | when | values)))
    return out

def table(rows): return pd.DataFrame([dict(patient_id=who, time=t) | values for who,t,values in rows])

def said(outputs):
    "What the worker said of each (partition, offset)"
    got = {}
    for _,_,value in outputs:
        o = orjson.loads(value)
        at = o['source']['partition'], o['source']['offset']
        assert got.setdefault(at, value) == value, f'two stories about {at}'
    return got

def expected(s, df, clock):
    "Risk, call and mark of each row of a table"
    X = extract(df, s.spec).to_numpy()
    P,blind = s.predict(X), indeterminate_rows(s.spec, s.support, X)
    return list(zip(P.tolist(), table_alerts(s.policy, df.patient_id, clock, P[:,1], blind).tolist(), blind.tolist()))

def in_table(s, df):
    "The same as anybody with the file computes it"
    now = np.empty(len(df))
    extract(df, s.spec, now)
    return expected(s, df, now), now

def by_stays(s, df, stays, clock):
    "The same, with each stay a patient of its own whose clock never goes back"
    return expected(s, df.assign(patient_id=[f'{p} {k}' for p,k in zip(df.patient_id, stays)], time=clock), clock)

def in_stream(s, messages, cuts, again=None):
    "What a worker says of messages in batches; `again`: (batch whose states are lost with it, first message that comes again)"
    outputs,kept,ends = [], {p:Kept() for p in (0, 1)}, {m.partition:m.offset+1 for m in messages}
    parts = [messages[a:b] for a,b in zip([0, *cuts], [*cuts, len(messages)])]
    def work(parts):
        patients = {p:restore(s.spec, k, ends.get(p, 0))[0] for p,k in kept.items()}
        for n,part in enumerate(parts):
            b = score(s, patients, part, LIMIT, SILENCE)
            outputs.extend(b.outputs)
            assert not b.dead
            if again and n == again[0] and parts is not last: return
            for p,key,value,_,stamp in b.states(patients): kept[p].add(key, value, stamp)
    last = [messages[again[1]:]] if again else []
    work(parts)
    if again: work(last)
    return said(outputs)

def same(messages, got, want):
    "Does the worker say of every row what is expected?"
    said = [orjson.loads(got[m.partition, m.offset]) for m in messages]
    assert len(got) == len(messages)
    for n,(o,w) in enumerate(zip(said, want)):
        assert (o['prediction_probabilities'], o['alert'], o['quality']['indeterminate']) == w, f'row {n}: {messages[n].value}'

VALUES = dict(HR=90., Resp=18., Temp=37.), dict(HR=91., Resp=18., Temp=37.5), dict(HR=120., Temp=38.), dict(Resp=30.), dict(HR=70., Resp=12., Temp=36.)
# rule: times of one patient's rows; number of the stay and time on the patient's clock that each must lead to
RULES = {
    'a gap of 72 h is none':             ([5, 6, 78, 150], [0, 0, 0, 0], [5, 6, 78, 150]),
    'more is a new stay':                ([5, 6, 78.25, 79], [0, 0, 1, 1], [5, 6, 78.25, 79]),
    'equal times':                       ([5, 5, 5, 6, 6], [0]*5, [5, 5, 5, 6, 6]),
    'late rows':                         ([5, 9, 7, 8, 10], [0]*5, [5, 9, 9, 9, 10]),
    'ahead by less, then back':          ([5, 6, 60, 7, 8, 61], [0]*6, [5, 6, 60, 60, 60, 61]),
    'ahead by more, then back':          ([5, 6, 90, 7, 8], [0, 0, 1, 2, 2], [5, 6, 90, 7, 8]),
    'back to the first row':             ([5, 6, 7, 5, 6], [0, 0, 0, 1, 1], [5, 6, 7, 5, 6]),
    'back before the first row':         ([5, 6, 7, 2, 3], [0, 0, 0, 1, 1], [5, 6, 7, 2, 3]),
    'comes back, clock begins again':    ([1, 2, 200, 1, 2], [0, 0, 1, 2, 2], [1, 2, 200, 1, 2]),
    'comes back, not to be told':        ([1, 2, 40, 2, 3, 41], [0]*6, [1, 2, 40, 40, 40, 41]),
    'comes back within 72 h, on dates':  ([DATE, DATE+1, DATE+60], [0]*3, [DATE, DATE+1, DATE+60]),
    'comes back later, on dates':        ([DATE, DATE+1, DATE+600, DATE+601], [0, 0, 1, 1], [DATE, DATE+1, DATE+600, DATE+601]),
    'no time':                           ([NONE]*5, [0]*5, [0, 1, 2, 3, 4]),
    'no time for four days':             ([NONE]*100, [0]*100, list(range(100))),
    'some without':                      ([5, NONE, NONE, 6, 9], [0]*5, [5, 6, 7, 7, 9]),
    'none, then dates':                  ([NONE, NONE, DATE, DATE+1], [0, 0, 1, 1], [0, 1, DATE, DATE+1]),
    'dates, then hours':                 ([DATE, DATE+1, 2, 3], [0, 0, 1, 1], [DATE, DATE+1, 2, 3]),
    'before 1970, and before admission': ([-3, -2.5, 0, 80, -900, -899], [0, 0, 0, 1, 2, 2], [-3, -2.5, 0, 80, -900, -899])}

@pytest.mark.parametrize('spec', ['monitor4', 'full'])
@pytest.mark.parametrize('rule', RULES)
def test_rule(rule, spec):
    times,stays,clock = RULES[rule]
    s = scorer(SPECS[spec])
    rows = [('p', float(t), VALUES[n%len(VALUES)]) for n,t in enumerate(times)]
    want,now = in_table(s, table(rows))
    assert now.tolist() == clock
    assert want == by_stays(s, table(rows), stays, np.array(clock, float))
    for n in 1, 2, len(rows): same(sent(rows), in_stream(s, sent(rows), range(n, len(rows), n)), want)
    dated = range(0, len(rows), 2) if min(times) >= DATE else ()
    same(sent(rows, dated), in_stream(s, sent(rows, dated), (1,)), want)


@pytest.mark.parametrize('rule', RULES)
def test_counts_and_alarms_belong_to_their_stay(rule):
    "A count begins again with each stay; at a risk of 1 it rings once a stay, at the first row, whenever the last one rang"
    times,stays,_ = RULES[rule]
    s = replace(scorer(SPECS['full']), policy=Policy(.6, .4, 1e6), proba=lambda X: np.tile([0., 1.], (len(X), 1)))
    rows = [('p', float(t), VALUES[0]) for t in times]
    first = np.diff(stays, prepend=-1) > 0
    assert extract(table(rows), s.spec).HR_count.tolist() == (1+pd.Series(stays).groupby(stays).cumcount()).tolist()
    got = in_stream(s, sent(rows), range(1, len(rows)))
    assert [orjson.loads(v)['alert'] for v in got.values()] == first.tolist() == [call for _,call,_ in in_table(s, table(rows))[0]]

STEPS = np.array([0, 0, .25, .5, 1, 1, 1, 1, 3, 24, 71.75, 72, 72.25, 100, 900, -.5, -3, -30, -72.25, -400])

def lives(times):
    "The table's rules in plain Python: (number of the stay, time on its clock) of each row of one patient"
    out,n,first,now = [], 0, None, None
    for t in times:
        if np.isnan(t): t = 0. if now is None else now+1
        if now is not None and (t-now > 72 or t < first or t == first < now): n,now = n+1, None
        first,now = (t, t) if now is None else (first, max(now, t))
        out.append((n, now))
    return out

SIGNALS = dict(HR=(90, 20), Resp=(18, 4), Temp=(37.5, 1), SBP=(110, 20), O2Sat=(95, 3), Lactate=(2, .5), Platelets=(200, 40), Pulse=(90, 20)) # mean, SD

def bed(rng, who):
    "One patient's rows, with every oddity of the table"
    n = int(rng.integers(1, 40))
    t = rng.choice([1., -2, DATE])+rng.choice(STEPS, n, p=np.r_[np.full(9, .09), np.full(11, .19/11)]).cumsum()
    t[rng.random(n) < rng.choice([0, 0, .1, 1])] = NONE
    def values(): # null, or absent, if not measured; a message without any signal's name would be a dead letter
        x = {k:round(float(rng.normal(*v)), 1) if rng.random() < .7 else None for k,v in SIGNALS.items()}
        return {k:v for k,v in x.items() if v is not None or k == 'HR' or rng.random() < .5}
    rows = [(who, float(o), values()) for o in t]
    return [o for r in rows for o in [r]*(1+(rng.random() < .05))] # some are sent twice

def ward(rng):
    "Rows of some patients, each in its order of arrival, interleaved"
    beds = [bed(rng, f'p{k}') for k in range(rng.integers(1, 6))]
    turns = rng.permutation(np.repeat(np.arange(len(beds)), [len(b) for b in beds]))
    beds = [iter(b) for b in beds]
    return [next(beds[k]) for k in turns]

HUSH = [.4, .3, .3, 0, 0, 0], [.3, .3, .3, .06, .02, .02] # how likely each step of Kafka's clock is, in a busy ward and a sleepy one

@pytest.mark.parametrize('seeds', [range(k, k+40) for k in range(0, 200, 40)], ids=str)
def test_random_lives(seeds):
    "Odd streams, cut into batches at random, with a death at a random place: what a table says, and what its stays say one by one"
    silences = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        s,rows = scorer(SPECS[('monitor4', 'vitals', 'full')[seed%3]]), ward(rng)
        df,n = table(rows), len(rows)
        stamps = rng.choice([0, 1, 1000, SILENCE//4, SILENCE, SILENCE+1], n, p=rng.choice(HUSH)).cumsum()
        gone = (pd.Series(stamps).groupby(df.patient_id).diff() > SILENCE).groupby(df.patient_id).cumsum() # how often the worker forgot the patient
        df,silences = df.assign(patient_id=df.patient_id+gone.map('~{}'.format)), silences+gone.max()
        want,now = in_table(s, df)
        stays,clock = (np.empty(n) for _ in range(2))
        for at in df.groupby('patient_id').indices.values(): stays[at],clock[at] = np.array(lives(df.time.to_numpy()[at])).T
        assert now.tolist() == clock.tolist(), f'seed {seed}'
        assert want == by_stays(s, df, stays, clock), f'seed {seed}'
        messages = sent(rows, {i for i,(_,t,_) in enumerate(rows) if t > 1e5 and rng.random() < .5}, stamps)
        cuts = np.unique(rng.integers(0, n+1, rng.integers(0, 9))).tolist()
        same(messages, in_stream(s, messages, cuts), want)
        dies = int(rng.integers(0, len(cuts)+1))
        same(messages, in_stream(s, messages, cuts, (dies, int(rng.integers(0, [0, *cuts][dies]+1)))), want)
    assert silences

def test_a_stay_without_end():
    "12,000 hours: the state keeps its size, nothing overflows, and support marks the hours that no training row had"
    spec,df = SPECS['full'], read('sample')
    X,who = extract(df, spec).to_numpy(), df.patient_id.factorize()[0]
    support = fit_training_range(X[who%2 == 0], spec.names, X[who%2 == 1], who[who%2 == 1])
    one = df[who == 0].drop(columns=['patient_id', 'time', 'label'])
    values = [{k:v for k,v in o.items() if v == v} for o in one.to_dict('records')]
    rows = [('p', 1.+n, values[n%len(values)]) for n in range(12_000)]
    ward,strange,sizes,messages = {p:Patients(spec) for p in (0, 1)}, [], set(), sent(rows)
    for a,b,s in (0, 400, support), (400, 11_600, None), (11_600, 12_000, support): # to say why a row is strange takes as long as to score it
        got = score(replace(scorer(spec), support=s), ward, messages[a:b], LIMIT, SILENCE)
        strange.append([orjson.loads(v)['quality']['indeterminate'] for _,_,v in got.outputs])
        sizes |= {len(value) for _,_,value,*_ in got.states(ward)}
    X = extract(table(rows), spec)
    assert len(sizes) == 1 and X.hour.iloc[-1] == 12_000 and not np.isinf(X.to_numpy()).any()
    assert not any(np.isinf(w.states).any() for w in ward.values())
    assert df.time.max() == 305 and not all(strange[0][:100]) and all(strange[0][310:]) and all(strange[2])
