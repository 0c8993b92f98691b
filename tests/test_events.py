"Long tables as exports have them: ids and codes as floats, gaps, values that contradict each other"
import numpy as np, pandas as pd, pytest
from sepsis_nb.data import read_source
from sepsis_nb.rows.draft import draft_map
from sepsis_nb.rows.maps import parse_map
from sepsis_nb.rows.tables import parse_table

def notes(source): return {o.finding:o.rows for o in source.notes.itertuples()}

OMOP = pd.DataFrame(dict(
    visit_occurrence_id=[11, 11, 12, None, 11], person_id=[1, 1, 2, 1, 1],
    measurement_datetime=pd.to_datetime(['2025-01-31 10:00', '2025-01-31 11:00', '2025-01-31 10:00',
                                         '2025-01-31 12:00', None]),
    measurement_concept_id=[3027018, 3027018, 3027018, 3027018, None],
    value_as_number=[80., 90, 70, 60, 50], unit_concept_id=[8541, None, 8541, 8541, 8541],
    unit_source_value=['/min', '/min', None, None, None])) # doubles, as pandas makes them of gaps
def omop(folder, df, how):
    (folder/how).mkdir()
    path = folder/how/f'measurement.{how}'
    df.to_parquet(path, index=False) if how == 'parquet' else df.to_csv(path, index=False)
    return read_source(folder/how)

def test_omop_with_gaps(tmp_path):
    s = omop(tmp_path, OMOP, 'parquet')
    assert s.map == 'omop' and list(s.df.patient_id) == ['11', '11', '12'] and list(s.df.HR) == [80, 90, 70]
    assert notes(s)['event without a patient id'] == 1
    csv = omop(tmp_path, OMOP.astype(dict(visit_occurrence_id='Int64')), 'csv') # codes still 3027018.0
    pd.testing.assert_frame_equal(csv.df, s.df)

def test_event_without_a_time_is_counted(tmp_path):
    df = OMOP.assign(measurement_concept_id=3027018)
    s = omop(tmp_path, df, 'parquet')
    assert notes(s)['event without a time'] == 1 and len(s.df) == 3
    with pytest.raises(ValueError, match="'measurement_datetime': no event of a known code has a time"):
        omop(tmp_path, df.assign(measurement_datetime=None, visit_occurrence_id=11), 'csv')

def test_fractions_are_no_ids(tmp_path):
    df = OMOP.assign(visit_occurrence_id=[11, 11.5, 12, 12, 13])
    with pytest.raises(ValueError, match='row 2 .* no whole number that is exact'): omop(tmp_path, df, 'parquet')

def ward(folder, text, signals, more='', name='long.csv'):
    "A long table by a map of its own"
    (folder/name).write_text('id,t,code,value\n'+text)
    (folder/'ward.toml').write_text(f'[[table]]\nlayout = "long"\npatient = "id"\ntime = "t"\ntime_as = "hours"\n'
                                    f'code = "code"\nvalue = "value"\n{more}\n[table.signals]\n{signals}\n')
    return read_source(folder/name, map=folder/'ward.toml')

def test_what_cannot_be_stays_out_of_means(tmp_path):
    s = ward(tmp_path, '1,0,hr,120\n1,0,hr,0\n1,0,temp,37\n1,0,temp,98.6\n1,1,hr,0\n1,2,hr,0\n1,2,hr,600\n',
             'HR = "hr"\nTemp = "temp"')
    assert list(s.df.HR) == [120, 0, 0] and np.isclose(s.df.Temp[0], 37) # one that stands alone is seen as it is
    assert notes(s)['value out of range beside others of its time'] == 3

@pytest.mark.parametrize('order', ['1,0,abp,120\n1,0,nibp,80\n', '1,0,nibp,80\n1,0,abp,120\n'])
def test_first_choice_counts(tmp_path, order):
    s = ward(tmp_path, order+'1,1,nibp,82\n1,2,abp,-9\n1,2,nibp,84\n1,3,nibp,80\n1,3,nibp,90\n',
             'SBP = ["abp", "nibp"]')
    assert list(s.df.SBP) == [120, 82, 84, 85]
    assert notes(s)['value of a later choice beside an earlier one'] == 1

LABS = '[[table]]\nfiles = "b.csv"\nlayout = "long"\npatient = "id"\ntime = "t"\ncode = "code"\nvalue = "value"\n'
def two(folder, vitals, labs):
    "Two long tables of one map"
    (folder/'a.csv').write_text('id,t,code,value\n'+vitals)
    (folder/'b.csv').write_text('id,t,code,value\n'+labs)
    (folder/'ward.toml').write_text(LABS.replace('b.csv', 'a.csv')+'[table.signals]\nHR = "hr"\n'
                                    + LABS+'only.code = ["lac"]\n[table.signals]\nLactate = "lac"\n')
    return read_source([folder/'a.csv', folder/'b.csv'], map=folder/'ward.toml')

def test_table_of_no_known_code_is_a_finding(tmp_path):
    for labs,words in (('1,0,mood,5\n', 'no row is left by `only`'), ('', 'has no row')):
        s = two(tmp_path, '1,0.5,hr,80\n', labs)
        assert list(s.df.HR) == [80]
        assert words in s.notes.set_index('finding')['first']['long table of no known code']
    with pytest.raises(ValueError, match='a.csv: no code is known; found: bed'): two(tmp_path, '1,0.5,bed,80\n', '')

def test_globs_of_a_map_are_named(tmp_path):
    two(tmp_path, '1,0.5,hr,80\n', '1,0.5,lac,2\n')
    (tmp_path/'a.csv').rename(tmp_path/'c.csv')
    with pytest.raises(ValueError, match='c.csv: fits no table of ward.toml, whose `files` are a.csv, b.csv'):
        read_source([tmp_path/'c.csv'], map=tmp_path/'ward.toml')

def test_limits_of_omop_are_no_values(tmp_path):
    s = omop(tmp_path, OMOP.assign(operator_concept_id=[4172703, 4171756, 0, None, None]), 'parquet')
    assert list(s.df.HR) == [80, 70] and notes(s)['event left out by `only` of the map'] == 1

def test_refusals_of_parquet_name_file_and_row(tmp_path):
    (tmp_path/'set').mkdir()
    df = pd.DataFrame(dict(id=[1, 1, 2], t=[0., 1, 2], code='hr', value=80.))
    dates = pd.to_datetime(['2025-01-31 10:00', '2025-01-31 09:00', '2025-01-31 11:00'])
    no_date = dates.where([True, True, False], pd.Timestamp('1850-01-01'))
    texts = dates.astype(str).where([True, True, False], 'soon')
    (tmp_path/'ward.toml').write_text(LABS.replace('b.csv', '*.parquet')+'[table.signals]\nHR = "hr"\n')
    def refused(first, second, words):
        df.assign(t=first).to_parquet(tmp_path/'set'/'a.parquet')
        df.assign(t=second, id=[3, 3, 4]).to_parquet(tmp_path/'set'/'b.parquet')
        with pytest.raises(ValueError) as e: read_source(tmp_path/'set', map=tmp_path/'ward.toml')
        assert words in str(e.value)
    refused([0., 2, 1], [0., 1, 2e8], "b.parquet row 3 column t: 2e+08 is more than")
    refused(dates, no_date, "b.parquet row 3 column t: '1850-01-01")
    refused(dates.astype(str), texts, "b.parquet row 3 column t: 'soon'")

def test_draft_of_a_usual_long_table():
    head = b'encounter,charttime,itemname,result,units\n'
    def draft(rows): return draft_map({'labs.csv':parse_table(head+rows, 'labs.csv')})
    text,open_ = draft(b'1,2025-01-31 10:00,Heart Rate,80,bpm\n1,2025-01-31 11:00,Creatinine,1.1,mg/dL\n')
    t, = parse_map(text, 'ward.toml').tables
    assert (t.layout, t.code, t.value, t.unit, open_) == ('long', 'itemname', 'result', ('units',), 0)
    assert {c.signal for c in t.signals} == {'HR', 'Creatinine'}

def test_draft_without_a_signal_is_open():
    text,open_ = draft_map({'beds.csv':parse_table(b'encounter,charttime,bed\n1,2025-01-31 10:00,3\n', 'beds.csv')})
    assert open_ == 1 and 'none of the columns is known' in text and '1 such place.' in text

def onsets(folder, rows):
    "Rows of three stays, and a table of onset"
    (folder/'v.csv').write_text('id,t,hr\n1,0.5,80\n2,0.5,80\n3,0.5,80\n')
    (folder/'o.csv').write_text('id,onset\n'+rows)
    (folder/'ward.toml').write_text('[[table]]\nfiles = "v.csv"\npatient = "id"\ntime = "t"\n'
                                    '[table.signals]\nHR = "hr"\n'
                                    '[[table]]\nfiles = "o.csv"\npatient = "id"\nonset = "onset"\n')
    return read_source([folder/'v.csv', folder/'o.csv'], map=folder/'ward.toml')

def test_patient_without_onset_row_is_counted(tmp_path):
    s = onsets(tmp_path, '1,2.5\n2,\n')
    assert list(s.df.label) == [1, 0, 0] and notes(s)['patient without a row of onset'] == 1

@pytest.mark.parametrize('rows', ['1,1\n2,0\n3,0\n', '1,2.5\n2,-1\n3,-1\n'])
def test_flags_are_no_onset(tmp_path, rows):
    with pytest.raises(ValueError, match='o.csv: onset is .*leave it empty'): onsets(tmp_path, rows)

LONG = pd.DataFrame(dict(id=['1', '1', '2'], t=[0., 1, 2], code='hr', value=80.))
def both(folder, **columns):
    "A long and a wide parquet table of the same ids and times, each read or refused"
    df = LONG.assign(**columns)
    df.to_parquet(folder/'long.parquet')
    df.rename(columns=dict(value='hr')).drop(columns='code').to_parquet(folder/'wide.parquet')
    def got(name, more):
        (folder/'ward.toml').write_text(f'[[table]]\npatient = "id"\ntime = "t"\n{more}[table.signals]\nHR = "hr"\n')
        try: return read_source(folder/name, map=folder/'ward.toml').df
        except ValueError as e: return str(e).partition('row ')[2].split(' ')[0]
    return got('long.parquet', 'layout = "long"\ncode = "code"\nvalue = "value"\n'), got('wide.parquet', '')

@pytest.mark.parametrize('kind', ['datetime64[ns, UTC]', 'datetime64[us, Europe/Berlin]', 'datetime64[ns]'])
def test_times_of_parquet_are_read_in_both_layouts(tmp_path, kind):
    t = pd.to_datetime(['2025-01-31 10:00', '2025-01-31 11:00', '2025-01-31 12:00'], utc=',' in kind)
    pd.testing.assert_frame_equal(*both(tmp_path, t=t.tz_localize(None) if ',' not in kind else t.astype(kind)))

def test_whole_numbers_may_be_dates_in_both_layouts(tmp_path):
    long,wide = both(tmp_path, t=np.array([20250131, 20250201, 20250202], 'int32'))
    pd.testing.assert_frame_equal(long, wide)
    assert long.time[0] == pd.Timestamp('2025-01-31')

@pytest.mark.parametrize('wrong', [
    np.array([1, 2, 2**24+2], 'float32'), np.array([1, 2, 2**11], 'float16'), np.array([1, 2, 2.**53]),
    [True, False, True], pd.to_datetime(['2025-01-31']*3)])
def test_ids_of_other_types_are_refused_in_both_layouts(tmp_path, wrong):
    row = '1' if not hasattr(wrong, 'dtype') or wrong.dtype.kind == 'M' else '3'
    assert both(tmp_path, id=wrong) == (row, row)

def test_only_is_trimmed(tmp_path):
    text,signals = '1,0,hr,80\n1,1,hr,90\n', 'HR = "hr"'
    df = pd.DataFrame(dict(id=1, t=[0., 1], code='hr', value=[80., 90], kind=[' bed', 'door']))
    ward(tmp_path, text, signals, 'only.kind = ["bed"]')
    df.to_csv(tmp_path/'x.csv', index=False), df.to_parquet(tmp_path/'x.parquet')
    for name in 'x.csv', 'x.parquet': assert list(read_source(tmp_path/name, map=tmp_path/'ward.toml').df.HR) == [80]

@pytest.mark.parametrize('how', ['csv', 'parquet'])
def test_patient_in_long_tables_of_two_folders(tmp_path, how):
    def put(name, ids):
        (tmp_path/name).mkdir(exist_ok=True)
        df = LONG.assign(id=ids)
        df.to_csv(tmp_path/name/'e.csv', index=False) if how == 'csv' else df.to_parquet(tmp_path/name/'e.parquet')
    def got(): return read_source([tmp_path/'a', tmp_path/'b'], map=tmp_path/'ward.toml').df
    (tmp_path/'ward.toml').write_text(LABS.replace('b.csv', f'*.{how}')+'[table.signals]\nHR = "hr"\n')
    put('a', ['1', '1', '2']), put('b', ['3', '3', '4'])
    assert got().patient_id.nunique() == 4
    put('b', ['3', '3', '2'])
    with pytest.raises(ValueError, match=f'a/e.{how} and b/e.{how} both have the patient 2; give'): got()

@pytest.mark.parametrize('how', ['csv', 'parquet'])
def test_file_without_rows_is_counted(tmp_path, how):
    (tmp_path/'ward.toml').write_text(LABS.replace('b.csv', f'*.{how}')+'[table.signals]\nHR = "hr"\n')
    (tmp_path/'set').mkdir()
    for name,df in (('a', LONG), ('b', LONG[:0])):
        path = tmp_path/'set'/f'{name}.{how}'
        df.to_csv(path, index=False) if how == 'csv' else df.to_parquet(path)
    s = read_source(tmp_path/'set', map=tmp_path/'ward.toml')
    assert len(s.df) == 3 and s.notes.set_index('finding')['first']['file without rows'] == f'b.{how}'

@pytest.mark.parametrize('people', [3, 300, 2000])
def test_persons_of_a_long_table(tmp_path, people):
    "The engine gives their ids in several chunks"
    n = 2*people
    df = pd.DataFrame(dict(visit_occurrence_id=np.arange(n)%people, person_id=np.arange(n)%people+5000,
        measurement_datetime=pd.date_range('2025-01-31', periods=n, freq='min'), measurement_concept_id=3027018,
        value_as_number=80., unit_concept_id=8541, unit_source_value='/min'))
    assert omop(tmp_path, df, 'parquet').df.patient_id.nunique() == people
