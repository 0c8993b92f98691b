"Time and the stays of a patient: every rule of the table in 01_features, in the worker as in a table, bit by bit"
from collections import namedtuple
from dataclasses import replace
from datetime import datetime, timedelta
from zlib import crc32
import numpy as np, orjson, pandas as pd, pytest
from sepsis_nb.data import encode, read
from sepsis_nb.features import SPECS, extract, fold_table
from sepsis_nb.model.policy import Policy
from sepsis_nb.model.risk import fit_training_range
from sepsis_nb.model.scorer import Scorer
from sepsis_nb.stream.scoring import score_batch
from sepsis_nb.stream.states import Patients, StateRecords, restore

Message = namedtuple('Message', 'topic partition offset timestamp key value')
NONE,DATE,LIMIT,SILENCE = np.nan, 482_000., 10_000, 72*3_600_000 # h, h, bytes, ms

def by_bits(X):
    "(n, 2) risks that differ wherever a single bit of a row of features does"
    p = np.array([crc32(x.tobytes())/2**32 for x in np.where(np.isnan(X), np.nan, X)])
    return np.column_stack((1-p, p))

def scorer(spec): return Scorer(spec, Policy(.6, .4, 5.), 'bits', '1', 'f0e1', by_bits)

def iso(t): return (datetime(1970, 1, 1)+timedelta(hours=t)).isoformat()

def as_messages(rows, text=(), stamps=None):
    """Rows of (patient_id, time, values) as messages, in their order; those whose number is in `text` carry ISO 8601;
    `stamps`: Kafka's, in ms"""
    out,ends,text = [], {}, set(text)
    for n,(who,t,values) in enumerate(rows):
        p = crc32(who.encode())%2
        ends[p] = o = ends.get(p, -1)+1
        when = {} if np.isnan(t) else dict(time=iso(t) if n in text else t)
        stamp = 1_700_000_000_000+(n if stamps is None else int(stamps[n]))
        out.append(Message('input-topic', p, o, stamp, who.encode(), encode(dict(patient_id=who) | when | values)))
    return out

def as_table(rows): return pd.DataFrame([dict(patient_id=who, time=t) | values for who,t,values in rows])

def in_table(s, df):
    "Risk, alert and mark of each row of a table"
    t = s.score(df)
    return list(zip(t.risk.tolist(), t.alert.tolist(), t.indeterminate.tolist()))

def by_stays(s, df, stays, clock):
    "The same, with each stay a patient of its own whose clock never goes back"
    return in_table(s, df.assign(patient_id=[f'{p} {k}' for p,k in zip(df.patient_id, stays)], time=clock))

def in_stream(s, messages, cuts, again=None):
    """The output of each (partition, offset), with the messages cut into batches;
    `again`: (batch of whose states the second half is lost with it, first message that comes again)"""
    outputs,records,ends = [], {p:StateRecords() for p in (0, 1)}, {m.partition:m.offset+1 for m in messages}
    parts = [messages[a:b] for a,b in zip([0, *cuts], [*cuts, len(messages)])]
    last = [messages[again[1]:]] if again else []
    def work(parts):
        patients = {p:restore(s.spec, o, 0, ends.get(p, 0), None)[0] for p,o in records.items()}
        for n,part in enumerate(parts):
            b = score_batch(s, patients, part, LIMIT, SILENCE)
            outputs.extend(b.outputs)
            assert not b.dead
            died,states = again and n == again[0] and parts is not last, b.states(patients)
            for p,key,value in states[:len(states)//2] if died else states: records[p].add(key, value)
            if died: return
    work(parts)
    if again: work(last)
    got = {}
    for _,_,value in outputs:
        source = orjson.loads(value)['source']
        at = source['partition'], source['offset']
        assert got.setdefault(at, value) == value, f'two different outputs for {at}'
    return got

def assert_same(messages, got, want):
    "Every message has one output, with the expected risk, alert and mark"
    assert len(got) == len(messages) == len(want)
    for n,(m,(risk,*rest)) in enumerate(zip(messages, want)):
        o = orjson.loads(got[m.partition, m.offset])
        found = [o['prediction_probabilities'], o['alert'], o['quality']['indeterminate']]
        assert found == [[1-risk, risk], *rest], f'row {n}: {m.value}'

VALUES = (dict(HR=90., Resp=18., Temp=37.), dict(HR=91., Resp=18., Temp=37.5), dict(HR=120., Temp=38.), dict(Resp=30.),
          dict(HR=70., Resp=12., Temp=36.))
# rule: times of one patient's rows; the number of the stay and the time on its clock that each must lead to
RULES = {
    'a gap of 72 h is none':             ([5, 6, 78, 150], [0, 0, 0, 0], [5, 6, 78, 150]),
    'more is a new stay':                ([5, 6, 78.25, 79], [0, 0, 1, 1], [5, 6, 78.25, 79]),
    'equal times':                       ([5, 5, 5, 6, 6], [0]*5, [5, 5, 5, 6, 6]),
    'within the hour':                   ([5, 5.5, 5.75, 6.25, 7], [0]*5, [5, 5.5, 5.75, 6.25, 7]),
    'late rows':                         ([5, 9, 7, 8, 10], [0]*5, [5, 9, 9, 9, 10]),
    'ahead by less, then back':          ([5, 6, 60, 7, 8, 61], [0]*6, [5, 6, 60, 60, 60, 61]),
    'ahead by more, then back':          ([5, 6, 90, 7, 8], [0, 0, 1, 2, 2], [5, 6, 90, 7, 8]),
    'back to the first row':             ([5, 6, 7, 5, 6], [0, 0, 0, 1, 1], [5, 6, 7, 5, 6]),
    'back before the first row':         ([5, 6, 7, 2, 3], [0, 0, 0, 1, 1], [5, 6, 7, 2, 3]),
    'comes back, clock begins again':    ([1, 2, 200, 1, 2], [0, 0, 1, 2, 2], [1, 2, 200, 1, 2]),
    'comes back, looks late':            ([1, 2, 40, 2, 3, 41], [0]*6, [1, 2, 40, 40, 40, 41]),
    'comes back within 72 h, on dates':  ([DATE, DATE+1, DATE+60], [0]*3, [DATE, DATE+1, DATE+60]),
    'comes back later, on dates':        ([DATE, DATE+1, DATE+600, DATE+601], [0, 0, 1, 1],
                                          [DATE, DATE+1, DATE+600, DATE+601]),
    'dates between full hours':          ([DATE+.75, DATE+1.25, DATE+2, DATE+3.5], [0]*4,
                                          [DATE+.75, DATE+1.25, DATE+2, DATE+3.5]),
    'no time':                           ([NONE]*5, [0]*5, [0, 1, 2, 3, 4]),
    'no time for four days':             ([NONE]*100, [0]*100, list(range(100))),
    'some without':                      ([5, NONE, NONE, 6, 9], [0]*5, [5, 6, 7, 7, 9]),
    'none, then dates':                  ([NONE, NONE, DATE, DATE+1], [0, 0, 1, 1], [0, 1, DATE, DATE+1]),
    'dates, then hours':                 ([DATE, DATE+1, 2, 3], [0, 0, 1, 1], [DATE, DATE+1, 2, 3]),
    'before 1970, and before admission': ([-3, -2.5, 0, 80, -900, -899], [0, 0, 0, 1, 2, 2],
                                          [-3, -2.5, 0, 80, -900, -899])}

def whole_hours(stays, clock):
    "Hour on the stay's clock: the source's own hour, or for dates the hours since the stay's first row plus 1"
    first = pd.Series(clock).groupby(np.asarray(stays)).transform('first').to_numpy()
    return np.where(first < 1e5, np.floor(clock), 1+np.floor(clock-first))

@pytest.mark.parametrize('spec', ['monitor4', 'full'])
@pytest.mark.parametrize('rule', RULES)
def test_rule(rule, spec):
    times,stays,clock = RULES[rule]
    s,clock = scorer(SPECS[spec]), np.array(clock, float)
    rows = [('p', float(t), VALUES[n%len(VALUES)]) for n,t in enumerate(times)]
    df = as_table(rows)
    folded,want = fold_table(df, s.spec), in_table(s, df)
    assert folded.stay.tolist() == stays and folded.hour.tolist() == whole_hours(stays, clock).tolist()
    assert want == by_stays(s, df, stays, clock)
    messages = as_messages(rows)
    for n in 1, 2, len(rows): assert_same(messages, in_stream(s, messages, range(n, len(rows), n)), want)
    dated = as_messages(rows, range(0, len(rows), 2) if min(times) >= DATE else ())
    assert_same(dated, in_stream(s, dated, (1,)), want)

@pytest.mark.parametrize('rule', RULES)
def test_counts_and_alerts_belong_to_their_stay(rule):
    "A count of hours begins again with each stay; at a risk of 1 the policy alerts once a stay, at the first row"
    times,stays,clock = RULES[rule]
    s = replace(scorer(SPECS['full']), policy=Policy(.6, .4, 1e6), proba=lambda X: np.tile([0., 1.], (len(X), 1)))
    rows = [('p', float(t), VALUES[0]) for t in times]
    first = np.diff(stays, prepend=-1) > 0
    new_hour = first | (np.diff(whole_hours(stays, np.array(clock, float)), prepend=np.nan) != 0)
    assert extract(as_table(rows), s.spec).HR_count.tolist() == pd.Series(new_hour).groupby(stays).cumsum().tolist()
    got = in_stream(s, as_messages(rows), range(1, len(rows)))
    alerts = [alert for _,alert,_ in in_table(s, as_table(rows))]
    assert [orjson.loads(v)['alert'] for v in got.values()] == first.tolist() == alerts

RATES = { # when within an hour its row is sent
    'hourly':lambda rng: [0.],
    'five minutes':lambda rng: np.arange(12)/12,
    '1 Hz':lambda rng: np.arange(3600)/3600,
    'irregular':lambda rng: np.sort(np.r_[0, rng.random(3)]).round(4)}

def at_rate(rate, hours, patients):
    "Rows of one or two patients, each hourly row repeated within its hour, from hour 1 on"
    rng,send = np.random.default_rng(7), np.random.default_rng(8)
    rows = []
    for h in range(1, hours+1):
        values = {who:{k:round(float(rng.normal(*v)), 1) for k,v in SIGNALS.items()} for who in patients}
        rows += [(who, h+float(o), values[who]) for o in RATES[rate](send) for who in values]
    return rows

@pytest.mark.parametrize('dated', [False, True], ids=['hours', 'dates'])
@pytest.mark.parametrize('rate', RATES)
def test_alerts_at_any_rate(rate, dated):
    "Alerts are those of the table, in any batches and across restarts, and those of the hourly chart"
    hours,patients = (3, 'p') if rate == '1 Hz' else (40, 'pq')
    s = replace(scorer(SPECS['monitor4']), policy=Policy(.5, .4, 3.))
    rng,rows = np.random.default_rng(9), at_rate(rate, hours, patients)
    if dated: rows = [(who, DATE+.75+t, values) for who,t,values in rows]
    messages,df = as_messages(rows, range(len(rows)) if dated else ()), as_table(rows)
    if dated: df = df.assign(time=pd.to_datetime([iso(t) for t in df.time], format='ISO8601'))
    want,n = in_table(s, df), len(rows)
    assert_same(messages, in_stream(s, messages, []), want)
    for cuts in np.unique(rng.integers(1, n, 6)).tolist(), range(max(1, n//80), n, max(1, n//80)):
        dies = int(rng.integers(0, len(cuts)+1))
        comes_again = int(rng.integers(0, [0, *cuts][dies]+1))
        assert_same(messages, in_stream(s, messages, cuts, (dies, comes_again)), want)
    def alerts(df): return sorted(s.score(df).query('alert')[['patient_id', 'stay', 'hour']].itertuples(index=False))
    assert alerts(df) == alerts(as_table(at_rate('hourly', hours, patients))) != []

STEPS = np.array([0, 0, .25, .5, 1, 1, 1, 1, 3, 24, 71.75, 72, 72.25, 100, 900, -.5, -3, -30, -72.25, -400])

def plain_rules(times):
    "The table's rules in plain Python: (number of the stay, time on its clock) of each row of one patient"
    out,n,first,now = [], 0, None, None
    for t in times:
        if np.isnan(t): t = 0. if now is None else now+1
        if now is not None and (t-now > 72 or t < first or t == first < now): n,now = n+1, None
        first,now = (t, t) if now is None else (first, max(now, t))
        out.append((n, now))
    return out

SIGNALS = dict(HR=(90, 20), Resp=(18, 4), Temp=(37.5, 1), SBP=(110, 20), O2Sat=(95, 3), Lactate=(2, .5),
               Platelets=(200, 40), Pulse=(90, 20)) # mean, SD

def random_stays(rng, who):
    "One patient's rows, with every oddity of the table"
    n = int(rng.integers(1, 40))
    t = rng.choice([1., -2, DATE])+rng.choice(STEPS, n, p=np.r_[np.full(9, .09), np.full(11, .19/11)]).cumsum()
    t[rng.random(n) < rng.choice([0, 0, .1, 1])] = NONE
    def values(): # null, or absent, if not measured; a message without any signal's name would be a dead letter
        x = {k:round(float(rng.normal(*v)), 1) if rng.random() < .7 else None for k,v in SIGNALS.items()}
        return {k:v for k,v in x.items() if v is not None or k == 'HR' or rng.random() < .5}
    rows = [(who, float(o), values()) for o in t]
    return [o for r in rows for o in [r]*(1+(rng.random() < .05))] # some are sent twice

def interleaved(rng):
    "Rows of some patients, each in its order of arrival"
    patients = [random_stays(rng, f'p{k}') for k in range(rng.integers(1, 6))]
    turns = rng.permutation(np.repeat(np.arange(len(patients)), [len(o) for o in patients]))
    patients = [iter(o) for o in patients]
    return [next(patients[k]) for k in turns]

# steps of Kafka's time stamps, and how likely each is, in a stream without long pauses and in one with them
STAMPS = 0, 1, 1000, SILENCE//7, SILENCE//6, SILENCE//6+1, 80*3_600_000, -80*3_600_000
PAUSES = [.4, .3, .3, 0, 0, 0, 0, 0], [.05, .05, .05, .3, .45, .04, .03, .03]

def clock_of(stamps, partition):
    "The clock of each row's partition: time that passed in steps of at most a sixth of the silence"
    step = pd.Series(stamps).groupby(partition).diff()
    return step.where(step.between(0, SILENCE//6), 0).groupby(partition).cumsum()

@pytest.mark.parametrize('seeds', [range(k, k+40) for k in range(0, 200, 40)], ids=str)
def test_random_lives(seeds):
    "Odd streams in random batches, with a death at a random place: the table's answers, and those of its stays"
    silences = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        s,rows = scorer(SPECS[('monitor4', 'vitals', 'full')[seed%3]]), interleaved(rng)
        df,n = as_table(rows), len(rows)
        stamps = rng.choice(STAMPS, n, p=rng.choice(PAUSES)).cumsum()
        time_passed = clock_of(stamps, df.patient_id.map(lambda o: crc32(o.encode())%2))
        long = time_passed.groupby(df.patient_id).diff() > SILENCE
        forgotten = long.groupby(df.patient_id).cumsum() # how often the worker forgot the patient before each row
        df,silences = df.assign(patient_id=df.patient_id+forgotten.map('~{}'.format)), silences+forgotten.max()
        folded,want = fold_table(df, s.spec), in_table(s, df)
        stays,clock,hours = (np.empty(n) for _ in range(3))
        for at in df.groupby('patient_id').indices.values():
            stays[at],clock[at] = np.array(plain_rules(df.time.to_numpy()[at])).T
            hours[at] = whole_hours(stays[at], clock[at])
        assert folded.stay.tolist() == stays.tolist() and folded.hour.tolist() == hours.tolist(), f'seed {seed}'
        assert want == by_stays(s, df, stays, clock), f'seed {seed}'
        messages = as_messages(rows, {i for i,(_,t,_) in enumerate(rows) if t > 1e5 and rng.random() < .5}, stamps)
        cuts = np.unique(rng.integers(0, n+1, rng.integers(0, 9))).tolist()
        assert_same(messages, in_stream(s, messages, cuts), want)
        dies = int(rng.integers(0, len(cuts)+1))
        comes_again = int(rng.integers(0, [0, *cuts][dies]+1))
        assert_same(messages, in_stream(s, messages, cuts, (dies, comes_again)), want)
    assert silences

def test_a_stay_without_end():
    "12,000 hours: the state keeps its size, nothing overflows, hours that no training row had are outside its range"
    spec,df = SPECS['full'], read('sample')
    X,who = extract(df, spec).to_numpy(), df.patient_id.factorize()[0]
    limits = fit_training_range(X[who%2 == 0], spec.names, X[who%2 == 1], who[who%2 == 1])
    one = df[who == 0].drop(columns=['patient_id', 'time', 'label'])
    values = [{k:v for k,v in o.items() if v == v} for o in one.to_dict('records')]
    rows = [('p', 1.+n, values[n%len(values)]) for n in range(12_000)]
    patients,marks,sizes,messages = {p:Patients(spec) for p in (0, 1)}, [], set(), as_messages(rows)
    for a,b,o in (0, 400, limits), (400, 11_600, None), (11_600, 12_000, limits): # reasons double the time
        got = score_batch(replace(scorer(spec), training_range=o), patients, messages[a:b], LIMIT, SILENCE)
        marks.append([orjson.loads(v)['quality']['indeterminate'] for _,_,v in got.outputs])
        sizes |= {len(value) for _,key,value in got.states(patients) if key}
    X = extract(as_table(rows), spec)
    assert len(sizes) == 1 and X.hour.iloc[-1] == 12_000 and not np.isinf(X.to_numpy()).any()
    assert not any(np.isinf(o.states).any() for o in patients.values())
    assert df.time.max() == 305 and not all(marks[0][:100]) and all(marks[0][310:]) and all(marks[2])
