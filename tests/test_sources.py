"Sources under other names: the built-in maps, the second hospital, what `inspect` shows and what `map` drafts"
import numpy as np, pandas as pd, pytest
from click.testing import CliRunner
from sepsis_nb.cli import main
from sepsis_nb.data import SAMPLE_EICU, read_source
from sepsis_nb.rows.inspect import inspect_source
from sepsis_nb.rows.maps import built_in, places
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

# Adult reference values (Kratz et al., N Engl J Med 351:1548-63, 2004), wider where the ill are known to differ, as in
# albumin; the most usual wrong unit is outside each
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
