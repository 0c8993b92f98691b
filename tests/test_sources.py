"Sources under other names: the built-in maps, the second hospital, what `inspect` shows and what `map` drafts"
import numpy as np, pandas as pd, pytest
from click.testing import CliRunner
from dataclasses import fields
from sepsis_nb.cli import main
from sepsis_nb.data import SAMPLE_EICU, read_source
from sepsis_nb.rows.inspect import inspect_source
from sepsis_nb.rows.maps import TableMap, built_in, parse_map, places
from sepsis_nb.rows.signals import SIGNALS
from sepsis_nb.rows.units import conversion

def run(*args): return CliRunner().invoke(main, [str(a) for a in args])

def write(folder, **tables):
    "CSV files of some texts, or parquet files of frames, in a folder"
    for name,t in tables.items():
        path = folder/name.replace('__', '/')
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(t, str): path.with_suffix('.csv').write_text(t)
        else: t.to_parquet(path.with_suffix('.parquet'), index=False)
    return folder

def told(source):
    "Signal to (unit, whether somebody said it) of the columns of a source"
    return {o.signal:(o.unit, o.given) for o in source.columns.itertuples() if o.signal}

# --- the maps of the package

def test_units_of_built_in_maps_are_known():
    for m in built_in().values():
        for t in m.tables:
            for c in t.signals:
                if not c.values and c.value is None: conversion(SIGNALS[c.signal], c.unit, f'{m.name}: {c.name}')

def test_codes_of_one_system_mean_one_signal():
    for m in built_in().values():
        for t in m.tables: assert len(places(t)) == len({c.casefold() for c in places(t)}), m.name

CLIF = dict(
    clif_vitals='''hospitalization_id,recorded_dttm,vital_category,vital_value
h1,2025-01-31 13:00:00+00:00,heart_rate,88
h1,2025-01-31 13:00:00+00:00,temp_c,37.5
h1,2025-01-31 14:00:00+00:00,heart_rate,92
h2,2025-02-01 08:00:00+00:00,spo2,97
h2,2025-02-01 08:00:00+00:00,intracranial_pressure,11
''', clif_labs='''hospitalization_id,lab_collect_dttm,lab_result_dttm,lab_category,lab_value_numeric,REST
h1,2025-01-31 13:00:00+00:00,2025-01-31 14:00:00+00:00,creatinine,1.4,mg/dl,plasma_blood
h1,2025-01-31 13:00:00+00:00,2025-01-31 14:00:00+00:00,creatinine,95,mg/dl,urine
h1,2025-01-31 13:00:00+00:00,2025-01-31 14:00:00+00:00,troponin_i,40,ng/l,plasma_blood
h1,2025-01-31 13:00:00+00:00,2025-01-31 14:00:00+00:00,ph_arterial,7.31,(no units),plasma_blood
h2,2025-02-01 07:00:00+00:00,2025-02-01 08:00:00+00:00,poc_lactate,2.2,mmol/L,plasma_blood
'''.replace('REST', 'reference_unit,lab_specimen_category'),
    clif_hospitalization='hospitalization_id,patient_id,age_at_admission\nh1,p1,71\nh2,p2,55\n',
    clif_patient='patient_id,sex_category\np1,female\np2,unknown\n',
    clif_respiratory_support='hospitalization_id,recorded_dttm,fio2_set\nh1,2025-01-31 13:00:00+00:00,0.4\n',
    clif_output='''hospitalization_id,recorded_dttm,output_group,output_value,output_unit
h1,2025-01-31 14:00:00+00:00,urine,120,mL
h1,2025-01-31 14:00:00+00:00,urine,1,occurrences
''')

def test_clif(tmp_path):
    "A result counts when it is known, urine is no blood, and troponin is in ng/L"
    s = read_source(write(tmp_path, **CLIF))
    df = s.df.set_index('patient_id')
    assert s.map == 'clif' and list(s.df.patient_id) == ['h1', 'h1', 'h2']
    h1 = df.loc['h1']
    np.testing.assert_allclose(h1.Creatinine, [np.nan, 1.4])
    np.testing.assert_allclose(h1.TroponinI, [np.nan, .04])
    np.testing.assert_allclose(h1.pH, [np.nan, 7.31])
    np.testing.assert_allclose(h1[['FiO2', 'Urine']], [[.4, np.nan], [np.nan, 120]])
    assert df.Lactate['h2'] == 2.2 and list(df.Age) == [71, 71, 55] and list(df.Gender)[:2] == [0, 0]
    assert np.isnan(df.Gender['h2']) and 'label' not in df
    assert s.df.time[0] == pd.Timestamp('2025-01-31 13:00')

def test_meds(tmp_path):
    "Facts without a time hold for all rows; labels stand at their prediction times"
    t = pd.to_datetime(['2025-01-31 13:00', '2025-01-31 13:00', '2025-01-31 14:00', None])
    data = pd.DataFrame(dict(subject_id=[7]*4, time=t.astype('datetime64[us]'), numeric_value=[88, 5.5, 92, np.nan],
                             code=['LOINC//8867-4', 'LOINC//2345-7', 'LOINC//8867-4', 'GENDER//F'],
                             unit=['/min', 'mmol/L', '/min', None]))
    labels = pd.DataFrame(dict(subject_id=[7], prediction_time=t[2:3].astype('datetime64[us]'), boolean_value=[True]))
    s = read_source(write(tmp_path, data__train__0=data, tasks__sepsis__0=labels))
    assert s.map == 'meds' and list(s.df.HR) == [88, 92] and list(s.df.Gender) == [0, 0]
    np.testing.assert_allclose(s.df.Glucose, [5.5*18.015, np.nan])
    np.testing.assert_array_equal(s.df.label, [np.nan, 1])

OMOP = dict(measurement='''measurement_id,person_id,visit_occurrence_id,measurement_datetime,measurement_concept_id,REST
1,9,70,2025-01-31 13:00:00,3027018,88,8541,bpm
2,9,70,2025-01-31 13:00:00,3020891,99.5,9289,F
3,9,70,2025-01-31 14:00:00,3016723,1.4,0,mg/dL
4,9,70,2025-01-31 14:00:00,999,3,8840,mg/dL
'''.replace('REST', 'value_as_number,unit_concept_id,unit_source_value'),
    person='person_id,gender_concept_id,year_of_birth\n9,8532,1950\n')

def test_omop(tmp_path):
    "Units by their concepts, else by their text; a visit has its person's values"
    s = read_source(write(tmp_path, **OMOP))
    assert s.map == 'omop' and list(s.df.patient_id) == ['70', '70'] and list(s.df.Gender) == [0, 0]
    assert s.notes.advice.str.contains('may be when a specimen was taken').sum() == 1
    np.testing.assert_allclose(s.df.Temp, [37.5, np.nan])
    np.testing.assert_allclose(s.df.Creatinine, [np.nan, 1.4])

# --- the second hospital

@pytest.fixture(scope='module')
def eicu(): return read_source('sample-eicu')

def test_second_hospital_is_what_was_published(eicu):
    df = eicu.df
    assert eicu.map == 'yaib' and (len(df), df.patient_id.nunique()) == (42524, 896)
    septic = df.groupby('patient_id').label.max()
    assert (septic.sum(), df.label.sum()) == (63, 806)
    assert (eicu.rule.before_h, eicu.rule.after_h, eicu.rule.cut) == (6, 6, True)
    assert df.time.min() == 0 and df.time.max() == 168 and df.patient_id.iloc[0] == '141765'

# Wide bounds for the middle of adults in intensive care, of our own; the most usual wrong unit is outside each
USUAL = dict(
    HR=(60, 100), O2Sat=(92, 100), Temp=(36, 38), SBP=(100, 140), MAP=(65, 100), DBP=(50, 90), Resp=(12, 25),
    FiO2=(.21, .6), pH=(7.35, 7.45), PaCO2=(32, 48), PaO2=(75, 120), HCO3=(21, 28), Glucose=(70, 180), BUN=(8, 25),
    Creatinine=(.6, 1.5), Calcium=(7.5, 10.5), Magnesium=(1.6, 2.4), Phosphate=(2.5, 4.5), Potassium=(3.4, 5),
    Sodium=(135, 145), Chloride=(98, 108), Lactate=(.5, 2.5), Albumin=(2, 5), Hgb=(8, 16), WBC=(4.5, 12),
    Platelets=(150, 350), INR=(.9, 1.6), PTT=(22, 60), Bilirubin_total=(.2, 1.2), MCV=(80, 100), MCH=(27, 33),
    MCHC=(31, 36), Neutrophils=(45, 85), Lymphocytes=(5, 40), Fibrinogen=(150, 450), ALT=(8, 60), AST=(8, 60),
    Alkalinephos=(30, 150), MetHb=(0, 1.5), Age=(50, 80), Height=(150, 185), Weight=(55, 100))
def test_second_hospital_has_the_right_units(eicu):
    assert len(USUAL) > 30 and len({c for c in eicu.df if c in SIGNALS}) >= 50
    medians = {s:eicu.df[s].median() for s in USUAL}
    assert not {s:m for s,m in medians.items() if not USUAL[s][0] <= m <= USUAL[s][1]}
    assert (medians['FiO2'], round(medians['Temp'], 1), medians['Glucose']) == (.4, 36.8, 134)
    said = told(eicu)
    assert said['FiO2'] == ('%', True) and said['TroponinT'] == ('ng/mL', True)

def test_map_of_yaib_names_every_column(eicu):
    assert not set(eicu.columns.what) & {'unknown', 'ignored'}

# --- inspect

def test_inspect(tmp_path):
    (tmp_path/'ward.csv').write_text('id,t,HR,Glucose [mmol/L],Lactate,bed\n'
                                     '7,0,80,5.5,1.1,4\n7,1,400,6.1,,4\n8,0,95,9,2,5\n')
    (tmp_path/'ward.toml').write_text('[[table]]\npatient = "id"\ntime = "t"\ntime_as = "hours"\n')
    out = run('inspect', tmp_path/'ward.csv', '--map', tmp_path/'ward.toml', '--html', tmp_path/'ward.html')
    assert out.exit_code == 0, out.output
    for words in ('patients        2', 'mg/dL, from mmol/L', '110 (', 'mmol/L, assumed', 'bed (3 values)',
                  'label           none'):
        assert words in out.output
    page = (tmp_path/'ward.html').read_text()
    assert 'What was read' in page and 'mg/dL, from mmol/L' in page and '<script src' not in page

def test_inspect_shows_what_a_cell_would_do_to_a_terminal(tmp_path):
    (tmp_path/'ward.csv').write_text('patient_id,HR,be\x1b[31md\n7,80,4\n')
    out = run('inspect', tmp_path/'ward.csv')
    assert '\x1b' not in out.output

def test_inspect_of_the_samples(eicu):
    found = inspect_source(eicu)
    t = found.signals.set_index('signal')
    assert t.converted.FiO2 and t.given.drop('Gender').all() and not t.unlike.any() and found.facts.spacing == '1 h'
    assert t.out_of_range.HR == 7 and not len(found.left)
    plain = inspect_source(read_source('sample'))
    assert plain.facts.patients == '2,000' and 'HR' in set(plain.signals.signal)

# --- map

GERMAN = '''Fall-Nr;Zeit;HF;RR sys;RR dia;MAD;AF;SpO2 (%);Temp [°C];Krea [µmol/l];Laktat [mmol/l];Geschlecht
7;31.01.2025 13:00;88;121;64;83;18;97;37,1;92;1,1;w
7;31.01.2025 14:00;92;118;61;80;21;96;37,4;;;w
8;31.01.2025 13:00;71;135;70;92;14;98;36,6;70;0,9;m
'''
DRAFTED = {
    'de':(GERMAN, 'HR SBP DBP MAP Resp O2Sat Temp Creatinine Lactate Gender'),
    'fr':('Séjour;Horodatage;FC (/min);FR (/min);PAS;PAD;PAM;SpO2 (%);Température (°C);Lactate (mmol/L);Sexe\n'
          '7;31/01/2025 13:00;88;19;121;64;83;97;37,1;1,1;F\n'
          '7;31/01/2025 14:00;92;21;118;61;80;96;37,4;;F\n',
          'HR Resp SBP DBP MAP O2Sat Temp Lactate Gender'),
    'es':('Paciente;Fecha;FC;TAS;TAD;Glucemia (mg/dL);Leucocitos;Sexo\n7;31/01/2025 13:00;88;121;64;120;9,1;Hombre\n'
          '8;31/01/2025 14:00;92;118;61;131;11,2;Mujer\n', 'HR SBP DBP Glucose WBC Gender'),
    'nl':('opnamenummer;tijdstip;hartfrequentie;ademhaling;temperatuur;natrium;kalium\n'
          '7;31-01-2025 13:00;88;19;37,1;139;4,1\n', 'HR Resp Temp Sodium Potassium'),
    'it':('paziente;dataora;frequenza cardiaca;pressione sistolica;emoglobina;piastrine\n'
          '7;31/01/2025 13:00;88;121;10,1;210\n', 'HR SBP Hgb Platelets')}
@pytest.mark.parametrize('language', DRAFTED)
def test_a_sure_draft_reads_what_it_was_made_from(language, tmp_path):
    text,signals = DRAFTED[language]
    (tmp_path/'ward.csv').write_text(text)
    drafted = run('map', tmp_path/'ward.csv')
    assert drafted.exit_code == 0 and 'There is none.' in drafted.stdout, drafted.output
    (tmp_path/'ward.toml').write_text(drafted.stdout)
    s = read_source(tmp_path/'ward.csv', map=tmp_path/'ward.toml')
    assert {c for c in s.df if c in SIGNALS} == set(signals.split())
    assert run('inspect', tmp_path/'ward.csv', '--map', tmp_path/'ward.toml').exit_code == 0

def test_a_draft_leaves_open_what_is_not_sure(tmp_path):
    (tmp_path/'ward.csv').write_text('id,time,BZ,Harnstoff,Trop,sepsis\n'
                                     '7,2025-01-31 13:00,5.6,40,12,0\n7,2025-01-31 14:00,6.1,41,14,1\n')
    out = run('map', tmp_path/'ward.csv')
    for line in ('# Glucose = {name = "BZ", unit = "mmol/L"}', '# BUN = {name = "Harnstoff", unit = "mg/dL urea"}',
                 '# TroponinI = "Trop"', '# TroponinT = "Trop"', 'label = "sepsis"', '# before_h = 6'):
        assert line in out.stdout, out.stdout
    assert '3 places are open' in out.stderr

def test_a_draft_of_a_long_table_is_a_map(tmp_path):
    (tmp_path/'events.csv').write_text("""encounter_id,charttime,parameter,valeur,unite
1,2025-01-31 13:00,FC,88,/min
1,2025-01-31 13:01,PAM,71,mmHg
1,2025-01-31 13:02,Glycémie,6.2,mmol/L
1,2025-01-31 13:03,Lit,4,
""")
    drafted = run('map', tmp_path/'events.csv')
    (tmp_path/'ward.toml').write_text(drafted.stdout)
    s = read_source(tmp_path/'events.csv', map=tmp_path/'ward.toml')
    assert s.df.Glucose.max() == pytest.approx(6.2*18.015) and {'HR', 'MAP', 'Glucose'} <= set(s.df)
    assert '"Lit"' in drafted.stdout

def test_map_names_the_built_in_map_that_reads_a_source():
    out = run('map', SAMPLE_EICU)
    assert 'The built-in map yaib reads these files by itself' in out.stdout and 'fio2' in out.stdout

def test_inspect_of_own_names_tells_the_header(tmp_path):
    "What the header says of a unit, and what was not read"
    (tmp_path/'ward.csv').write_text('patient_id,time,Glucose [mmol/L],Lactate,bed\n7,0,5.5,1.1,4\n7,1,6.1,,4\n')
    s = read_source(tmp_path/'ward.csv')
    assert told(s) == dict(Glucose=('mmol/L', True), Lactate=('mmol/L', False))
    found = inspect_source(s)
    assert list(found.left.column) == ['bed'] and found.signals.converted.tolist() == [True, False]

# --- drafts of what hospitals export

FLOWSHEET = ('PAT_ENC_CSN_ID,RECORDED_TIME,FLO_MEAS_NAME,MEAS_VALUE,UNITS\n' + ''.join(
    f'{k},2025-02-0{k} 0{h}:00,{o}\n' for k in (1, 2) for h in (7, 8) for o in (
        'PULSE,92,', 'BLOOD PRESSURE,100/73,mmHg', 'TEMPERATURE,98.0,F', 'RESPIRATIONS,20,insp/min',
        'PULSE OXIMETRY,97,%', 'R FIO2,40,%', 'R OXYGEN DEVICE,mask,')))

def drafted(folder, *names, open_=0):
    "The draft of some files, what it is a draft of, and the source by that map"
    out = run('map', *(folder/o for o in names or ('',)))
    assert out.exit_code == 0, out.output
    assert (f'{open_} place{"s are" if open_ > 1 else " is"} open' in out.stderr) == bool(open_), out.output
    (folder.parent/'draft.toml').write_text(out.stdout)
    return out.stdout, lambda: read_source(folder, map=folder.parent/'draft.toml')

def test_draft_of_a_flowsheet(tmp_path):
    text,source = drafted(write(tmp_path/'set', flow=FLOWSHEET))
    s = source()
    assert {c for c in s.df if c in SIGNALS} == set('HR SBP DBP Temp Resp O2Sat FiO2'.split())
    assert s.df[['HR', 'SBP', 'DBP', 'FiO2']].iloc[0].tolist() == [92, 100, 73, .4]
    assert 'layout = "long"' in text and '1 name not understood' in text and '"R OXYGEN DEVICE"' in text
    assert 'HR = "PULSE"  # the pulse rate, as there is no heart rate' in text

def test_draft_of_tables_with_different_ids(tmp_path):
    "One id for all, names of codes from a dictionary, whose `label` is none of sepsis, and no table without a signal"
    times = [f'2025-02-01 0{h}:00' for h in range(7, 10)]
    events = 'subject_id,hadm_id,stay_id,charttime,itemid,valuenum,valueuom\n' + ''.join(
        f'{k},2{k},3{k},{t},{o}\n' for k in (1, 2) for t in times
        for o in ('220045,92,bpm', '220210,18,insp/min', '9,1,x'))
    labs = 'subject_id,hadm_id,charttime,itemid,value,valueuom\n' + ''.join(
        f'{k},2{k},{t},{o},mmol/L\n' for k in (1, 2) for t in times for o in ('50813,1.7', '51001,9'))
    folder = write(tmp_path/'set', chartevents=events, labevents=labs,
                   d_items='itemid,label,unit\n220045,Heart Rate,\n220210,Respiratory Rate,\n9,Braden,\n',
                   d_labitems='itemid,label,fluid\n50813,Lactate,Blood\n50912,Creatinine,Blood\n51001,Lactate,Urine\n',
                   admissions='subject_id,hadm_id,admittime\n1,21,2025-02-01 00:00\n2,22,2025-02-01 00:00\n',
                   patients='subject_id,gender\n1,F\n2,M\n')
    text,source = drafted(folder)
    s = source()
    assert text.count('patient = "hadm_id"') == 2 and text.count('person = "subject_id"') == 3 and '\nlabel' not in text
    assert {c for c in s.df if c in SIGNALS} == {'HR', 'Resp', 'Lactate', 'Gender'} and s.df.Gender.notna().all()
    assert set(s.df.patient_id) == {'21', '22'}
    assert 'admissions.csv: left out' in text and 'd_items.csv has names of codes' in text and '"9 (Braden)"' in text
    assert '51001 (Urine · Lactate)' in text and (s.df.Lactate.dropna() == 1.7).all() # no signal is of urine
    write(folder, onset='subject_id,stay_id,sepsis_onset\n1,31,2025-02-01 09:00\n2,32,\n')
    text,source = drafted(folder)
    assert text.count('patient = "subject_id"') == 4 and 'time = ""' not in text
    assert source().df.groupby('patient_id').label.max().tolist() == [1, 0]
    write(folder, onset='stay_id,sepsis_onset\n31,2025-02-01 09:00\n32,\n')
    text,_ = drafted(folder, open_=4)
    assert text.count('no id is in all tables, here') == 4

def test_draft_of_texts_and_two_columns_of_time(tmp_path):
    text,source = drafted(write(tmp_path/'set', ward=(
        'Patient,Date,Time,HR,Lactate,BP\n7,2025-02-01,07:19,80,<0.5,120/80\n7,2025-02-01,08:20,82,1.4 H,118/79\n'
        )), open_=2)
    for o in ('time = ["Date", "Time"]', '# limits = "at"  # 1 as \'<0.5\'', '# flags = ["H"]', 'split = ["BP"]'):
        assert o in text
    with pytest.raises(ValueError, match="'<0.5' is not a number.*limits = \"at\".*flags"): source()
    (tmp_path/'draft.toml').write_text(text.replace('# limits', 'limits').replace('# flags', 'flags'))
    s = source()
    assert s.df.Lactate.tolist() == [.5, 1.4] and s.df.SBP.tolist() == [120, 118]
    assert s.df.time.astype(str).tolist() == ['2025-02-01 07:19:00', '2025-02-01 08:20:00']

def test_draft_of_an_unknown_unit(tmp_path):
    text,source = drafted(write(tmp_path/'set', ward='Patient,time,code,value,unit\n7,2025-02-01 07:19,HR,80,beats\n'),
                          open_=1)
    assert '# units = {"beats" = ""}  # an unknown unit of HR; known: 1/min' in text
    with pytest.raises(ValueError, match=r'unit \'beats\' is not known for HR.*\[table.units\]'): source()

# --- what a message says, and what a map can say

OMOP_HEAD = ('measurement_id,person_id,visit_occurrence_id,measurement_concept_id,measurement_datetime,value_as_number,'
             'unit_concept_id,unit_source_value\n')
def test_omop_without_visits_says_how_to_begin(tmp_path):
    rows = ''.join(f'{k},7,,3027018,2025-01-31 1{k}:00,8{k},8541,\n' for k in range(3))
    write(tmp_path/'set', measurement=OMOP_HEAD+rows, person='person_id,gender_concept_id\n7,8532\n')
    out = run('inspect', tmp_path/'set').output
    for o in ('`sepsis map PATHS > mine.toml`', 'patient = "person_id"', '72 h'): assert o in out
    text = run('map', tmp_path/'set').stdout
    lines = [o for o in text.splitlines() if 'visit_occurrence_id"' not in o]
    mine = '\n'.join(o.replace('person = ', 'patient = ') for o in lines)
    (tmp_path/'mine.toml').write_text(mine)
    s = read_source(tmp_path/'set', map=tmp_path/'mine.toml')
    assert set(s.df.patient_id) == {'7'} and s.df.HR.tolist() == [80, 81, 82] and s.df.Gender.tolist() == [0]*3

@pytest.mark.parametrize('rows', ['Case,Taken,Pulse rate\n1,2025-01-31 10:00,80\n', 'hadm,time,HR\n1,0,80\n'])
def test_a_foreign_export_is_told_of_maps_first(rows, tmp_path):
    (tmp_path/'x.csv').write_text(rows)
    out = run('inspect', tmp_path/'x.csv').output
    assert 'missing columns: patient_id' in out
    assert out.index('`sepsis map x.csv > ward.toml`') < out.index('Rename or add')

def test_short_forms_are_told_of_maps_first(tmp_path):
    (tmp_path/'x.csv').write_text('Fallnr,Datum,RR\n1,2025-01-31 10:00,20\n')
    out = run('inspect', tmp_path/'x.csv').output
    assert out.index('sepsis map') < out.index('columns={') and 'the names of patient_id and time beside them' in out

def test_an_unknown_signal_of_a_map_is_told_where_to_declare_it(tmp_path):
    (tmp_path/'w.toml').write_text('[[table]]\npatient = "id"\nsignals = {Procalcitonin = "pct"}\n')
    (tmp_path/'x.csv').write_text('id,pct\n1,2\n')
    assert '[data] signals' in run('inspect', tmp_path/'x.csv', '--map', tmp_path/'w.toml').output

def test_all_keys_of_a_map_are_told():
    out = run('map', '--keys')
    assert out.exit_code == 0
    for f in fields(TableMap):
        if f.name != 'clock': assert f'\n  {f.name:<16} ' in out.output
    assert 'after_h = "end"' in out.output and 'ask for all --keys' in run('map').output
    with pytest.raises(ValueError, match='unknown key \'tme\'.*`sepsis map --keys`'):
        parse_map('[[table]]\npatient = "id"\ntme = "t"', 'x')

def test_notes_of_events_have_patients_and_a_place(tmp_path):
    write(tmp_path/'set', e='id,t,c,v\n1,0,hr,80\n1,0,hr,90\n1,1,hr,\n2,0,hr,70\n2,,hr,75\n,1,hr,71\n3,0,hr,60\n'
                            '3,1,hr,\n')
    (tmp_path/'w.toml').write_text('[[table]]\nlayout = "long"\npatient = "id"\ntime = "t"\ntime_as = "hours"\n'
                                   'code = "c"\nvalue = "v"\n[table.signals]\nHR = "hr"\n')
    s = read_source(tmp_path/'set', map=tmp_path/'w.toml')
    told = {o.finding:(o.rows, o.stays, o.first) for o in s.notes.itertuples()}
    assert told['event of a known code without a value'] == (2, 2, "e.csv row 4 (code 'hr')")
    assert told['event without a patient id'] == (1, 0, "e.csv row 7 (code 'hr')")
    assert told['event without a time'] == (1, 1, "e.csv row 6 (code 'hr')")
    assert told['several values of one signal at one time'] == (2, 1, 'e.csv: patient 1')
    assert 'unit assumed' not in told # a rate has one unit
    assert '0 stays' not in run('inspect', tmp_path/'set', '--map', tmp_path/'w.toml').output

def test_an_assumed_unit_is_one_in_table_and_finding(tmp_path):
    (tmp_path/'x.csv').write_text('patient_id,time,HR,Lactate\n1,0,80,1.1\n1,1,81,\n2,0,82,1.4\n')
    out = run('inspect', tmp_path/'x.csv').output
    assert out.count('mmol/L, assumed') == 1 and '1/min, assumed' not in out
    assert 'unit assumed: 2 rows, 2 stays, first x.csv: Lactate;' in out
