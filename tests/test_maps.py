"Any source by its map: what is read, what is refused, and what a message of the same ward becomes"
import numpy as np, orjson, pandas as pd, pytest, zipfile
from collections import namedtuple
from sepsis_nb.data import fitting, read, read_source
from sepsis_nb.features import SPECS
from sepsis_nb.model.policy import Policy
from sepsis_nb.model.scorer import Scorer
from sepsis_nb.rows.findings import findings
from sepsis_nb.rows.maps import built_in, load_map, parse_map
from sepsis_nb.rows.onset import LabelRule
from sepsis_nb.rows.strict import BadMessage
from sepsis_nb.stream.feed import message_map, parse_mapped
from sepsis_nb.stream.scoring import score_batch
from sepsis_nb.stream.states import Patients

WARD = '''
[[table]]
files = "vitals.*"
patient = "stay"
time = "t"
time_as = "hours"
ignore = ["bed"]
[table.signals]
HR = "heart_rate"
Temp = {name = "temp", unit = "°F"}
[[table]]
files = "labs.*"
layout = "long"
patient = "stay"
time = "t"
time_as = "hours"
code = "what"
value = "x"
unit = "u"
[table.signals]
Glucose = "glu"
Lactate = "lac"
[[table]]
files = "sta.*"
patient = "stay"
[table.signals]
Age = "age"
Gender = {name = "sex", values = {F = 0, M = 1}}
[[table]]
files = "onset.*"
optional = true
patient = "stay"
onset = "at"
time_as = "hours"
[label]
before_h = 2
after_h = 1
cut = true
'''
FILES = dict(
    vitals='stay;t;heart_rate;temp;bed\n007;0;80;98,6;1\n007;1;82;;1\n8;0;70;212,0;2\n8;5;71;;2\n',
    labs='stay,t,what,x,u\n007,1,glu,5.5,mmol/L\n007,1,glu,6.5,mmol/L\n8,2,lac,1.5,\n8,2,mood,low,\n9,2,lac,1,mmol/L\n',
    sta='stay,age,sex\n007,61,F\n8,70,M\n77,50,M\n', onset='stay,at\n8,2\n')

@pytest.fixture
def ward(tmp_path):
    "A folder with the files of a ward, and the path of its map"
    (tmp_path/'ward').mkdir()
    (tmp_path/'ward.toml').write_text(WARD)
    def put(**files):
        for name,text in (FILES | files).items(): (tmp_path/'ward'/f'{name}.csv').write_text(text)
        return tmp_path/'ward', tmp_path/'ward.toml'
    return put

def test_a_ward(ward):
    folder,m = ward()
    s = read_source(folder, map=m)
    rows = [[*r] for r in s.df[['patient_id', 'time']].itertuples(index=False)]
    assert rows == [['007', 0], ['007', 1], ['8', 0], ['8', 2], ['9', 2]] # the row at hour 5 is behind the cut
    np.testing.assert_allclose(s.df.Temp, [37, np.nan, 100, np.nan, np.nan])
    np.testing.assert_allclose(s.df.Glucose, [np.nan, 6*18.016, np.nan, np.nan, np.nan], rtol=1e-3)
    np.testing.assert_allclose(s.df.Gender, [0, 0, 1, 1, np.nan])
    assert s.df.label.tolist() == [0, 0, 1, 1, 0] and s.rule == LabelRule(2, 1, True)
    said = dict(zip(s.notes.finding, s.notes.rows))
    assert said['several values of one signal at one time'] == 2
    assert said['row after the stay is cut'] == 1
    assert said['row without a partner in sta.*'] == 1 and said['row of sta.* without a partner'] == 1
    assert said['column or code of no known signal'] == 1 # mood
    by = s.columns.set_index('column')
    assert by.what[['bed', 'mood', 'stay']].iloc[:3].tolist()[:2] == ['ignored', 'unknown']
    assert by.unit['glu'] == 'mmol/L' and by.given['temp'] and not by.given['heart_rate']

def test_folder_zip_and_files_are_one_source(ward, tmp_path):
    folder,m = ward()
    whole = read(folder, map=m)
    with zipfile.ZipFile(tmp_path/'ward.zip', 'w') as z:
        for p in folder.iterdir(): z.write(p, f'export/{p.name}')
    pd.testing.assert_frame_equal(read(tmp_path/'ward.zip', map=m), whole)
    pd.testing.assert_frame_equal(read(sorted(folder.iterdir(), reverse=True), map=m), whole)

@pytest.mark.parametrize('files, words', [
    (dict(vitals=FILES['vitals'].replace('stay;t', 'stay;zeit')), 'vitals.csv: ward.toml table 1 needs the columns t'),
    (dict(vitals=FILES['vitals'].replace(';82;', ';high;')),
     "vitals.csv row 3 column heart_rate: 'high' is not a number"),
    (dict(vitals=FILES['vitals'].replace('8;5', ';5')), 'vitals.csv row 5 column stay'),
    (dict(vitals=FILES['vitals'].replace('8;5;', '8;;')), 'vitals.csv row 5 column t'),
    (dict(vitals=FILES['vitals'].replace('temp', 'temp [°C]')), "the header says '°C' and the map '°F'"),
    (dict(labs=FILES['labs'].replace('5.5,mmol/L', '5.5,mmHg')), "code 'glu': unit 'mmHg' is not known for Glucose"),
    (dict(labs=FILES['labs'].replace('6.5', '<6.5')), "labs.csv row 3 column x: '<6.5'"),
    (dict(sta=FILES['sta'].replace('61,F', '61,W')),
     "sta.csv row 2 column sex: 'W' is no known category; known are F, M"),
    (dict(sta=FILES['sta']+'8,71,M\n'), 'sta.*: patient 8 has two different rows'),
    (dict(onset=FILES['onset']+'8,3\n'), 'onset.*: patient 8 has two times of onset'),
    (dict(onset='stay,at\n8,2025-01-31 10:00\n'),
     "onset.csv row 2 column at: '2025-01-31 10:00' is not a number")])
def test_refused(ward, files, words):
    folder,m = ward(**files)
    with pytest.raises(ValueError) as e: read(folder, map=m)
    assert words in str(e.value) and '\n' not in str(e.value)

def test_two_layouts_are_refused(ward):
    folder,m = ward()
    (folder/'own.csv').write_text('patient_id,time,HR\n1,0,80\n')
    with pytest.raises(ValueError, match='two layouts.*own.csv'): read(folder, map=m)
    (folder/'own.csv').unlink()
    with pytest.raises(ValueError, match='two layouts'): read(['sample', 'sample-eicu'])
    with pytest.raises(ValueError, match='ward: no built-in map fits its files .labs.csv: stay, t, what'): read(folder)
    with pytest.raises(ValueError, match='both columns and a map'): read('sample', {'RR':'Resp'}, 'yaib')

def test_known_layouts_are_recognised(tmp_path):
    s = read_source('sample-eicu')
    assert s.map == 'yaib' and s.rule == LabelRule(6, 6, True) and len(s.df) == 42524 and s.df.label.sum() == 806
    assert (s.columns.signal != '').sum() >= 30 and s.df.FiO2.max() <= 1
    assert read_source('sample').map == ''
    assert fitting('sample-eicu', 'yaib') == '' and set(built_in()) >= {'clif', 'meds', 'omop', 'yaib'}
    when = pd.to_datetime(['2025-01-31 10:00', '2025-01-31 11:00']*2)
    meds = pd.DataFrame(dict(subject_id=[1, 1, 2, 2], time=when, code=['LOINC//8867-4']*4,
                             numeric_value=[80., 82, 90, 91], unit=None))
    meds.loc[4] = [2, None, 'GENDER//M', None, None]
    (tmp_path/'m'/'data').mkdir(parents=True)
    meds.astype(dict(subject_id=int)).to_parquet(tmp_path/'m'/'data'/'0.parquet', index=False)
    got = read_source(tmp_path/'m')
    assert got.map == 'meds' and got.df.HR.tolist() == [80, 82, 90, 91] and got.df.Gender.tolist()[2:] == [1, 1]
    assert str(got.df.time.dtype) == 'datetime64[us]'

def test_order_of_events_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    n = 3000
    e = pd.DataFrame(dict(stay=rng.integers(0, 30, n).astype('str'), t=rng.integers(0, 40, n).astype(float),
                          what=rng.choice(['hr', 'lac'], n)))
    e['x'] = np.where(e.what == 'hr', rng.integers(60, 99, n), rng.integers(5, 40, n)/10)
    m = tmp_path/'m.toml'
    m.write_text('[[table]]\nlayout="long"\npatient="stay"\ntime="t"\ntime_as="hours"\ncode="what"\nvalue="x"\n'
                 'signals={HR="hr", Lactate="lac"}')
    def rows(df, name):
        p = tmp_path/name
        df.to_parquet(p, index=False) if name.endswith('parquet') else df.to_csv(p, index=False)
        return read(p, map=m).sort_values(['patient_id', 'time'], ignore_index=True)
    want = e.pivot_table(index=['stay', 't'], columns='what', values='x', aggfunc='mean').reset_index()
    for df,name in ((e, 'a.parquet'), (e.sample(frac=1, random_state=1), 'b.parquet'), (e, 'c.csv')):
        got = rows(df, name)
        assert got.patient_id.tolist() == want.stay.tolist()
        np.testing.assert_allclose(got[['HR', 'Lactate']], want[['hr', 'lac']])

def test_a_map_is_checked(tmp_path):
    with pytest.raises(ValueError, match="no such file, and built in are challenge, clif"): load_map('wardd')
    with pytest.raises(ValueError, match="x.toml table 1 key 'layout' 'tall' is unknown; known are wide, long"):
        parse_map('[[table]]\npatient="a"\nlayout="tall"', 'x.toml')
    (tmp_path/'bad.toml').write_bytes('name = "Stätion"'.encode('latin-1'))
    with pytest.raises(ValueError, match='bad.toml: not UTF-8'): load_map(tmp_path/'bad.toml')

def test_messages_of_the_ward():
    "The worker scores a feed by the map: other names, °F, numbers as ids; the output repeats what came"
    spec,Message = SPECS['monitor4'], namedtuple('Message', 'topic partition offset timestamp key value')
    s = Scorer(spec, Policy(.6, .4, 5.), 'bits', '1', 'f0e1', lambda X: np.tile([.2, .8], (len(X), 1)))
    text = WARD.replace('"hours"', '"minutes"', 1).split('[[table]]\nfiles = "labs')[0]
    feed = message_map(parse_map(text, 'ward.toml'))
    sent = [b'{"stay": 7, "t": 90, "heart_rate": 80, "temp": 98.6, "PULSE": 1, "Resp":18}', b'{"stay": 7, "rr": 18}',
            b'{"stay": 7, "t": 150, "heart_rate": 300000, "Pulse": 81}']
    messages = [Message('input-topic', 0, k, 0, b'7', raw) for k,raw in enumerate(sent)]
    patients = {0:Patients(spec)}
    got = score_batch(s, patients, messages, 10_000, feed=feed)
    outs = [orjson.loads(o[2]) for o in got.outputs]
    assert [o['original_data'] for o in outs] == [orjson.loads(sent[0]), orjson.loads(sent[2])]
    assert {o['patient_id'] for o in outs} == {'7'} and got.counts['dead.no-signal'] == 1
    assert 'out-of-range: HR' in outs[1]['quality']['reasons']
    same = [dict(patient_id='7', time=1.5, HR=80, Temp=37, Resp=18),
            dict(patient_id='7', time=2.5, HR=300000, Pulse=81)]
    own = [m._replace(value=orjson.dumps(o)) for m,o in zip((messages[0], messages[2]), same)]
    there = {0:Patients(spec)}
    again = score_batch(s, there, own, 10_000)
    assert [orjson.loads(o[2])['prediction_probabilities'] for o in again.outputs] == \
        [o['prediction_probabilities'] for o in outs]
    np.testing.assert_allclose(there[0].states[0], patients[0].states[0], rtol=1e-9)

def fed(signals, text, **o):
    "Values of one message by a map with one table"
    m = message_map(parse_map('[[table]]\n'+text, 'feed.toml'))
    return parse_mapped(orjson.dumps(o), signals, m)

@pytest.mark.parametrize('name, key', [
    ('Glucose [mmol/L]', 'Glucose [mmol/L]'), ('Glucose', 'glucose (mmol/L)'), ('glucose [mmol/L]', 'Glucose')])
def test_a_key_is_read_as_a_header(tmp_path, name, key):
    m = f'patient = "stay"\ntime = "t"\ntime_as = "hours"\n[table.signals]\nGlucose = "{name}"\n'
    (tmp_path/'w.toml').write_text('[[table]]\n'+m)
    (tmp_path/'w.csv').write_text(f'stay,T,{key}\n' + ''.join(f'7,{t},{x}\n' for t,x in enumerate((5.5, 6, 7, 8))))
    x = read(tmp_path/'w.csv', map=tmp_path/'w.toml').Glucose.iloc[0]
    row = fed(('Glucose',), m, Stay='7', T=2, **{key:5.5})
    assert row.values[0] == x == pytest.approx(5.5*18.016, rel=1e-3) and row.time == 2
    for o in {'gluCose':5, 'GLUCOSE':6}, {'Glucose [kg]':5}:
        with pytest.raises(BadMessage): fed(('Glucose',), m, stay='7', **o)
    with pytest.raises(ValueError, match='the header says'):
        fed(('Glucose',), m.replace(f'"{name}"', '{name = "g [mmol/L]", unit = "mg/dL"}'), stay='7', HR=1)

def test_a_column_of_only_may_be_absent():
    "As in a table; and a map of files per patient serves a feed"
    m,lab = message_map(load_map('clif')), dict(hospitalization_id='7', lab_category='lactate', lab_value_numeric=2)
    def value(**o): return parse_mapped(orjson.dumps(lab | o), ('Lactate',), m).values
    assert value() == value(lab_specimen_category='plasma_blood') == [2]
    with pytest.raises(BadMessage, match='no-signal'): value(lab_specimen_category='urine')
    row = parse_mapped(b'{"patient_id":"7","ICULOS":3,"HR":80}', ('HR',), message_map(load_map('challenge')))
    assert row == ('7', 3, [80])

def test_ids_of_a_feed_are_those_of_a_table():
    def who(v): return fed(('HR',), 'patient = "stay"\ntime = "t"\n', stay=v, HR=80).patient_id
    assert who(' 007 ') == '007' and who('Ju\u0308rgen') == 'J\u00fcrgen' and who(7) == '7'
    for v in '1.23457E+11', 'NULL', '7.0', '', ' ':
        with pytest.raises(BadMessage, match='bad-patient-id'): who(v)

def test_summer_time_of_a_feed():
    def at(t): return fed(('HR',), 'patient = "stay"\ntime = "t"\nzone = "Europe/Berlin"\n', stay='7', t=t, HR=80).time
    assert at('2025-03-30 03:30')-at('2025-03-30 01:30') == 1
    for t,why in ('2025-10-26 02:30', 'stands twice'), ('2025-03-30 02:30', 'is no time'):
        with pytest.raises(BadMessage, match=why): at(t)

ZONED = '[[table]]\nfiles = "v.*"\npatient = "p"\ntime = "t"\n[table.signals]\nHR = "hr"\n'
@pytest.mark.parametrize('other', [
    'time = "t"\n[table.signals]\nTemp = "x"\n', 'onset = "t"\n',
    'layout = "long"\ntime = "t"\ncode = "c"\nvalue = "x"\n[table.signals]\nTemp = "temp"\n'])
def test_dates_with_and_without_a_zone(tmp_path, other):
    m = ZONED+f'[[table]]\nfiles = "o.*"\npatient = "p"\n{other}'
    (tmp_path/'v.csv').write_text('p,t,hr\n1,2025-01-31T10:00-05:00,80\n1,2025-01-31T11:00-05:00,81\n')
    (tmp_path/'o.csv').write_text('p,t,c,x\n1,2025-01-31T10:00,temp,37\n')
    def got(m):
        (tmp_path/'m.toml').write_text(m)
        return read([tmp_path/'v.csv', tmp_path/'o.csv'], map=tmp_path/'m.toml')
    with pytest.raises(ValueError, match="table 1 key 'time' has dates with a time zone, m.toml table 2"): got(m)
    assert len(got(m.replace('files = "o.*"', 'files = "o.*"\nzone = "America/New_York"'))) == 2
    (tmp_path/'v.csv').write_text('p,t,hr\n1,2025-01-31,80\n1,2025-01-31T11:00,81\n'.replace('31,', '31T09:00,'))
    assert len(got(m)) in (2, 3)

def test_own_names_with_and_without_a_zone(tmp_path):
    for k,z in (1, '+01:00'), (2, ''):
        (tmp_path/f'{k}.csv').write_text(f'patient_id,time,HR,MAP\n{k},2025-01-31 10:00{z},80,70\n')
    with pytest.raises(ValueError, match='times of different kinds'): read(tmp_path)
    assert set(read(tmp_path/'1.csv').attrs) <= {'label_rule'} # else frames of two sources lose the rule

def test_archives_of_one_name(tmp_path):
    for k in 1, 2:
        (tmp_path/f'h{k}').mkdir()
        with zipfile.ZipFile(tmp_path/f'h{k}'/'export.zip', 'w') as z: z.writestr('v.csv', f'p,t,hr\n{k},1,80\n')
    (tmp_path/'m.toml').write_text(ZONED.replace('time = "t"', 'time = "t"\ntime_as = "hours"'))
    df = read([tmp_path/f'h{k}'/'export.zip' for k in (1, 2)], map=tmp_path/'m.toml')
    assert df.patient_id.tolist() == ['1', '2']

def test_an_archive_of_stays_by_a_map(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for k in 1, 2: z.writestr(f'p{k}.psv', f'HR|Temp|ICULOS\n80|37|{k}\n')
    (tmp_path/'m.toml').write_text('[[table]]\nfiles = "*.psv"\nfile_is_patient = true\ntime = "ICULOS"\n'
                                   'time_as = "hours"\n[table.signals]\nHR = "HR"\n')
    assert read(tmp_path/'a.zip', map=tmp_path/'m.toml').patient_id.tolist() == ['p1', 'p2']
    assert fitting(str(tmp_path/'a.zip'), str(tmp_path/'m.toml'))

def test_two_rows_of_one_time_share_a_label(tmp_path):
    (tmp_path/'dyn.csv').write_text('stay_id,time,hr,map\n1,0,80,70\n1,1,81,70\n1,1,83,70\n')
    (tmp_path/'outc.csv').write_text('stay_id,time,label\n1,0,0\n1,1,1\n1,2,1\n')
    df = read(tmp_path)
    assert df.label.tolist() == [0, 1, 1, 1] and df.HR.tolist()[:3] == [80, 81, 83]

def test_stays_of_one_name_in_two_folders(tmp_path):
    def put(name, text): (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).write_text(text)
    for k in 'a', 'b':
        put(f'yaib/{k}/dyn.csv', 'stay_id,time,hr,map\n1,0,80,70\n')
        put(f'yaib/{k}/outc.csv', 'stay_id,time,label\n1,0,0\n')
        put(f'files/{k}/p1.csv', 't,hr\n0,80\n')
        put(f'own/{k}/x.csv', 'patient_id,time,HR,MAP\n1,0,80,70\n')
    (tmp_path/'m.toml').write_text(ZONED.replace('patient = "p"', 'file_is_patient = true\ntime_as = "hours"')
                                   .replace('v.*', '*.csv'))
    for paths,m in (((tmp_path/'yaib',), ''), ((tmp_path/'yaib'/'a', tmp_path/'yaib'/'b'), ''),
                    ((tmp_path/'files',), tmp_path/'m.toml')):
        with pytest.raises(ValueError, match=r'^a/\w+.csv and b/\w+.csv both have the patient p?1;'): read(paths, map=m)
    for paths in ((tmp_path/'own',), (tmp_path/'own'/'a', tmp_path/'own'/'b')):
        notes = read_source(paths).notes
        assert notes[notes.finding == 'patient in several files'].stays.tolist() == [1]

def test_a_line_of_a_map_that_meets_nothing(ward):
    folder,m = ward()
    m.write_text(WARD.replace('Lactate = "lac"', 'Lactate = "lac"\nSodium = "na"')
                 .replace('HR = "heart_rate"', 'HR = "heart_rate"\nResp = "breaths"'))
    notes = read_source(folder, map=m).notes
    assert notes[notes.finding == 'signal of the map not found']['first'].tolist() == [
        'ward.toml table 1 breaths, ward.toml table 2 na']

def test_a_mean_of_rows_is_of_values_in_range(ward):
    folder,m = ward(vitals='stay;t;heart_rate;temp;bed\n7;0;120;98.6;1\n7;0;0;98.6;1\n7;1;0;;1\n')
    m.write_text(WARD.replace('{name = "temp", unit = "°F"}', '"temp"'))
    s = read_source(folder, map=m)
    np.testing.assert_allclose(s.df[['HR', 'Temp']].iloc[:2], [[120, 37], [0, np.nan]])
    said = dict(zip(s.notes.finding, s.notes.rows))
    assert said['value out of range beside others of its time in vitals.*'] == 1

@pytest.mark.parametrize('files', [('sepsis/0', 'death/0'), ('sepsis/train/0', 'death/train/0'), ('sepsis', 'death')])
def test_labels_of_two_tasks(tmp_path, files):
    def put(name, **o):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(dict(subject_id=[1, 1]) | o).to_parquet(tmp_path/f'{name}.parquet', index=False)
    at = pd.to_datetime(['2025-01-01 10:00', '2025-01-01 11:00'])
    put('data/train/0', time=at, code=['LOINC//8867-4']*2, numeric_value=[80., 81.])
    put(f'labels/{files[0]}', prediction_time=at, boolean_value=[False, True])
    assert read(tmp_path).label.tolist() == [0, 1]
    put(f'labels/{files[1]}', prediction_time=at, boolean_value=[True, False])
    with pytest.raises(ValueError, match='are labels of two tasks'): read(tmp_path)

def test_a_first_choice_out_of_range_hides_no_good_second(tmp_path):
    "Wide, and in two tables, as long; what does not count is a finding"
    head = '[[table]]\npatient = "id"\ntime = "t"\n'
    wide = head + 'signals = {SBP = ["abp", "nibp"]}\n'
    long = head + 'layout = "long"\ncode = "c"\nvalue = "v"\nsignals = {SBP = ["abp", "nibp"]}\n'
    tables = ''.join(head + f'files = "{c}.csv"\nsignals = {{SBP = "{c}"}}\n' for c in ('abp', 'nibp'))
    given,want = dict(abp=(0, 110, 110), nibp=(120, 120, 0)), [120, 110, 110]
    files = dict(wide={'w':['id,t,abp,nibp', *(f'a,{t},{x},{y}' for t,(x,y) in enumerate(zip(*given.values())))]},
        long={'l':['id,t,c,v', *(f'a,{t},{c},{v}' for c in given for t,v in enumerate(given[c]))]},
        tables={c:[f'id,t,{c}', *(f'a,{t},{v}' for t,v in enumerate(given[c]))] for c in given})
    for kind,m in dict(wide=wide, long=long, tables=tables).items():
        (tmp_path/kind).mkdir()
        (tmp_path/f'{kind}.toml').write_text(m)
        for name,lines in files[kind].items(): (tmp_path/kind/f'{name}.csv').write_text('\n'.join([*lines, '']))
        source = read_source(tmp_path/kind, map=str(tmp_path/f'{kind}.toml'))
        assert source.df.SBP.tolist() == want, kind
        assert any('out of range beside others' in o for o in source.notes.finding), kind
        assert kind == 'tables' or source.notes.finding.str.contains('value of a later choice').any(), kind

# --- date and clock in two columns, and cells that are no numbers

EXPORT = '''
[[table]]
files = "%s"
layout = "%s"
patient = "Patient"
time = ["Date", "Clock"]
time_as = "month-first"
limits = "at"
missing = ["hemolyzed", "see note"]
flags = ["H", "L"]
split = ["BP"]
%s
[table.signals]
Lactate = "lac"
SBP = "BP/1"
DBP = {name = "BP/2", unit = "mmHg"}
'''
WIDE = ('Patient,Date,Clock,lac,BP\n7,04/02/25,07:19 PM,<0.5,120/80\n7,04/02/25,8:21 PM,1.44 H,\n'
        '7,04/03/25,00:10,Hemolyzed,>200/90\n')
LONG = ('Patient,Date,Clock,what,x\n7,04/02/25,07:19 PM,lac,<0.5\n7,04/02/25,07:19 PM,BP,120/80\n'
        '7,04/02/25,8:21 PM,lac,1.44 H\n7,04/03/25,00:10,lac,Hemolyzed\n7,04/03/25,00:10,BP,>200/90\n')
TEXTS = {'wide.csv':(EXPORT % ('wide.csv', 'wide', ''), WIDE),
         'long.csv':(EXPORT % ('long.csv', 'long', 'code = "what"\nvalue = "x"'), LONG)}

@pytest.mark.parametrize('name', TEXTS)
def test_texts_and_two_columns_of_time(name, tmp_path):
    text,rows = TEXTS[name]
    (tmp_path/name).write_text(rows)
    (tmp_path/'w.toml').write_text(text)
    source = read_source(tmp_path/name, map=tmp_path/'w.toml')
    df = source.df.dropna(subset=['Lactate', 'SBP'], how='all')
    assert df.time.astype(str).tolist() == ['2025-04-02 19:19:00', '2025-04-02 20:21:00', '2025-04-03 00:10:00']
    assert df.Lactate.fillna(-1).tolist() == [.5, 1.44, -1] and df.SBP.fillna(-1).tolist() == [120, -1, 200]
    assert df.DBP.fillna(-1).tolist() == [80, -1, 90]
    notes = source.notes.set_index('finding')
    for what,n in (('value at a limit of detection', 2), ('text that means no value', 1), ('mark behind a value', 1)):
        assert notes.rows[what] == n and notes.stays[what] > 0 and f'{name} row ' in notes['first'][what]

@pytest.mark.parametrize('name', TEXTS)
def test_texts_of_a_feed_are_those_of_a_table(name, tmp_path):
    text,rows = TEXTS[name]
    feed = message_map(parse_map(text, 'w.toml'))
    names,*lines = (o.split(',') for o in rows.splitlines())
    raws = [orjson.dumps(dict(zip(names, (c or None for c in o)))) for o in lines]
    got = [parse_mapped(raw, ('Lactate', 'SBP', 'DBP'), feed) for raw in raws]
    values = np.nansum([o.values for o in got], 0).tolist()
    assert values == [1.94, 320, 170]
    hour = sorted({round(o.time-got[0].time, 3) for o in got})
    assert hour == [0, 1.033, 4.85]

def test_all_kinds_of_texts_are_told_at_once(tmp_path):
    (tmp_path/'l.csv').write_text('id;t;c;x\n' + ''.join(f'1;{k};lac;{v}\n' for k,v in enumerate(
        ('<0.05', '1.44 H', 'hemolyzed', '2.0')))+'1;5;BP;120/80\n')
    (tmp_path/'l.toml').write_text('[[table]]\nlayout = "long"\npatient = "id"\ntime = "t"\ncode = "c"\nvalue = "x"\n'
                                   '[table.signals]\nLactate = "lac"\nSBP = "BP"\n')
    with pytest.raises(ValueError, match='l.csv row 2 column x') as e: read(tmp_path/'l.csv', map=tmp_path/'l.toml')
    for o in ('limits = "at"', 'flags = ["H"]', 'missing = ["hemolyzed"]', 'split = ["BP"]', 'SBP = "BP/1"'):
        assert o in str(e.value)

def test_a_day_alone_is_no_time_of_several_rows(tmp_path):
    (tmp_path/'d.csv').write_text('Patient,Date,hr\n7,2025-04-02,80\n8,2025-04-02,80\n7,2025-04-02,90\n')
    (tmp_path/'d.toml').write_text('[[table]]\npatient = "Patient"\ntime = "Date"\nsignals = {HR = "hr"}\n')
    with pytest.raises(ValueError, match=r'd.csv row 4 column Date.*several rows on it.*time = \["Date", "Clock"\]'):
        read(tmp_path/'d.csv', map=tmp_path/'d.toml')

@pytest.mark.parametrize('line,words', [
    ('time = ["d"]', 'expected a column, or two'), ('limits = "half"', "'half' is unknown"),
    ('flags = ["mg/dL"]', 'may be of a number or a unit'), ('split = ["BP"]', "name the parts of 'BP'"),
    ('clock = "c"', "unknown key 'clock'")])
def test_keys_of_texts_are_checked(line, words):
    text = f'[[table]]\npatient = "id"\n{line}\nsignals = {{HR = "hr"}}'
    with pytest.raises(ValueError, match=words): parse_map(text, 'x')

def test_days_alone_are_told(tmp_path):
    (tmp_path/'own.csv').write_text('patient_id,time,HR\n7,2025-04-02,80\n8,2025-04-02,80\n7,2025-04-02,90\n')
    own = findings(read_source(tmp_path/'own.csv').df).set_index('finding')
    assert own.rows['several rows of one day, whose time of day is not given'] == 1
    (tmp_path/'l.csv').write_text('id;t;c;x\n7;2025-04-02;hr;80\n7;2025-04-02;hr;90\n')
    (tmp_path/'l.toml').write_text('[[table]]\nlayout = "long"\npatient = "id"\ntime = "t"\ncode = "c"\nvalue = "x"\n'
                                   'zone = "Europe/Berlin"\n[table.signals]\nHR = "hr"\n')
    long = read_source(tmp_path/'l.csv', map=tmp_path/'l.toml').notes.finding.tolist()
    assert 'several values of one signal on one day, whose time of day is not given' in long

ODD = 'patient = "id"\ntime = "t"\ntime_as = "hours"\nsplit = ["BP"]\nmissing = ["-", "lost"]\n[table.signals]\n' \
      'SBP = "BP/1"\nDBP = "BP/2"\nHR = "hr"\n'

def test_odd_values_of_a_feed():
    "A unit of `split` counts, what is missing in a table is so here, and nothing becomes infinite"
    def row(**o): return fed(('SBP', 'DBP', 'HR'), ODD, id='7', t=1, **o).values
    np.testing.assert_allclose(row(**{'BP [kPa]':'16/10'}), [120, 75, np.nan], atol=.1)
    for none in '', 'n/a', 'nan', '-', 'lost': assert np.isnan(row(BP=none, hr=none)).all(), none
    twice = {'BP':'120/80', 'BP/1':50}, {'BP':'120/80', 'bp':'50/40'}
    for o in dict(hr='1e999'), dict(hr=1e308, **{'BP':'1e999/60'}), *twice:
        with pytest.raises(BadMessage, match='infinite|twice|two spellings'): row(**o)
    with pytest.raises(BadMessage, match='infinite'):
        fed(('HR',), ODD.replace('"hours"', '"days"'), id='7', t=1e308, hr=80)
    with pytest.raises(BadMessage, match='which limits, missing'): row(hr='1'*50_000+'x') # at once
    two = ODD.replace('time = "t"\ntime_as = "hours"', 'time = ["d", "c"]')
    for clock in 8.25, '8.25', '8,5', 825:
        with pytest.raises(BadMessage, match='hours with a fraction'):
            fed(('HR',), two, id='7', d='2025-01-31', c=clock, hr=80)

def test_odd_values_of_a_table(tmp_path):
    "The same where they are refused: a number as `missing`, parts beside their pair, decimal hours as a clock"
    def of(text, csv, name='w.csv'):
        (tmp_path/'m.toml').write_text('[[table]]\nfiles = "*.csv"\n'+text)
        (tmp_path/name).write_text(csv)
        return read(tmp_path/name, map=tmp_path/'m.toml')
    with pytest.raises(ValueError, match="key 'missing': '-9' is a number"):
        of(ODD.replace('"lost"', '"-9"'), 'id,t,hr\n')
    with pytest.raises(ValueError, match="column 'BP/1' stands beside 'BP'"): of(ODD, 'id,t,BP,BP/1\n7,1,120/80,50\n')
    with pytest.raises(ValueError, match='is not a number .1 such'): of(ODD, f'id,t,hr\n7,1,{"1"*50_000}x\n')
    two = ODD.replace('time = "t"\ntime_as = "hours"', 'time = ["d", "c"]')
    with pytest.raises(ValueError, match='may be hours with a fraction'): of(two, 'id,d,c,hr\n7,2025-01-31,8.25,80\n')
    text = 'file_is_patient = true\ntime = "t"\ntime_as = "hours"\n[table.signals]\nHR = "hr"\n'
    assert list(of(text, 't,hr\n1,80\n', 'stay_Mu\u0308ller.csv').patient_id) == ['stay_Müller']
