"The training job as its users start it: through papermill and `run_training`, on a store of its own"
import json
from dataclasses import replace
import mlflow, nbformat, nbformat.v4 as nbf, numpy as np, pandas as pd, papermill, pytest
from conftest import ROOT
from lightgbm import LGBMClassifier
from sepsis_nb.data import read
from sepsis_nb.features import SEED_SPEC, extract
from sepsis_nb.model.gate import gate
from sepsis_nb import load_scorer
from sepsis_nb.settings import load_settings
from sepsis_nb.train import TrainingFailed, run_site, run_training
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

PAGE = ROOT/'nbs'/'02_train.ipynb'
SECRET = 'hunter2-train-3Kd'
PULSE,TEMP,HR,RR = (f'MDC_{o}_Result' for o in ('PULS_OXIM_PULS_RATE', 'TEMP', 'ECG_HEART_RATE', 'TTHOR_RESP_RATE'))
LGBM = dict(n_estimators=[50, 100], learning_rate=[.01, .1], max_depth=[-1, 5])
FOREST = dict(n_estimators=[50, 100, 200], max_depth=[3, 5, 10])
XGB = dict(n_estimators=[50, 100], learning_rate=[.01, .1], max_depth=[3, 5])

ODD = 'ä ö#50%20?{x}\\ x' # a name that addresses, and papermill's own templates, would take apart

@pytest.fixture(scope='module')
def there(tmp_path_factory, forked):
    "Settings of an own store and report folder; a password is set, as it is for an operator"
    tmp = tmp_path_factory.mktemp('train')
    with pytest.MonkeyPatch.context() as env:
        env.setenv('SEPSIS_KAFKA_SASL_PASSWORD', SECRET)
        s = load_settings()
        store = replace(s.mlflow, tracking_uri=f'sqlite:///{tmp}/mlflow.db')
        yield replace(s, home=tmp, paths=replace(s.paths, reports=f'{tmp}/reports'), mlflow=store)

def run_page(there, **params):
    "Run the study of a protocol; its metrics"
    path = there.home/f"{params.get('protocol', 'patient')}.json"
    run_training(params | dict(metrics_json=str(path), tracking_uri=there.tracking_uri), there, quiet=True)
    return json.loads(path.read_text())

@pytest.fixture(scope='module')
def patient(there):
    "Protocol patient on 100 stays of the sample, with 50 others as external set; half of each are septic"
    df = read('sample').drop(columns='time').rename(columns={'label':'SepsisLabel'})
    sick = df.SepsisLabel.groupby(df.patient_id).max()
    ids = np.r_[sick[sick == 1].index[:75], sick[sick == 0].index[:75]]
    for name,part in dict(train=ids[np.arange(150)%3 > 0], other=ids[::3]).items():
        df[df.patient_id.isin(part)].to_parquet(there.home/f'{name}.parquet')
    return run_page(there, data=f'{there.home}/train.parquet', external=f'{there.home}/other.parquet',
                    features='vitals', models='LightGBM,RandomForest', folds=3)

def monitor(n, rng):
    "A patient of a bedside monitor, with gaps and respiration rates of zero"
    sick = (np.arange(n) > n/2)*1
    df = pd.DataFrame({'Label':sick, PULSE:rng.normal(150+9*sick, 14).round(1), TEMP:rng.normal(98, .8, n).round(2),
                       HR:rng.normal(150+9*sick, 14).round(1), RR:rng.integers(0, 60, n).astype(float)})
    return df.mask(rng.random((n, 5)) < [0, .02, .02, .02, .02])

@pytest.fixture(scope='module')
def seed(there):
    rng = np.random.default_rng(11)
    for p in 'p1', 'p2':
        df = monitor(500, rng)
        df.insert(0, 'Patient ID', p)
        df.to_csv(there.home/f'{p}.csv', index=False)
    return run_page(there, data=f'{there.home}/p1.csv,{there.home}/p2.csv', protocol='seed')

def straight(paths):
    "The original study in a straight line: F1 by model"
    df = pd.concat([pd.read_csv(p) for p in paths], ignore_index=True)
    df[f'{PULSE}_min'] = df[PULSE].rolling(2).min()
    df[f'{TEMP}_mean'] = df[TEMP].rolling(2).mean()
    df[f'{PULSE}_mean'] = df[PULSE].rolling(2).mean()
    df['HR_to_RR_Ratio'] = df[HR]/df[RR]
    df = df.dropna().reset_index(drop=True)
    assert np.isinf(df.HR_to_RR_Ratio).any()
    X = df[[f'{PULSE}_min', f'{TEMP}_mean', f'{PULSE}_mean', 'HR_to_RR_Ratio']]
    X = X.replace([np.inf, -np.inf], np.nan).fillna(0)
    a,b,ya,yb = train_test_split(X, df['Label'], test_size=.2, random_state=42)
    scaler = StandardScaler()
    a,b = scaler.fit_transform(a), scaler.transform(b)
    models = dict(LightGBM=(LGBMClassifier(verbose=-1, n_jobs=1), LGBM, 8), # one thread: same trees, no contention
                  RandomForest=(RandomForestClassifier(random_state=42), FOREST, 9),
                  XGBoost=(XGBClassifier(random_state=42, n_jobs=1), XGB, 8))
    def f1(model, grid, n):
        search = RandomizedSearchCV(model, grid, n_iter=n, cv=3, scoring='f1', random_state=42)
        return f1_score(yb, search.fit(a, ya).predict(b))
    return {name:f1(*m) for name,m in models.items()}

def test_seed_reproduces_f1_to_the_last_digit(there, seed):
    assert {n:m['f1'] for n,m in seed['models'].items()} == straight([there.home/'p1.csv', there.home/'p2.csv'])

def test_seed_contract(seed):
    assert set(seed) == {'protocol', 'features', 'seed', 'n_patients', 'n_rows', 'champion', 'models', 'scaler_run_id',
                         'registered'}
    assert (seed['features'], seed['n_patients']) == ('monitor4', 2)
    assert all(set(m) == {'f1', 'auroc', 'auprc', 'run_id', 'params'} for m in seed['models'].values())

def test_seed_model_and_scaler_load_by_their_uris(there, seed, tmp_path):
    run = seed['models']['RandomForest']['run_id']
    scaler = f"runs:/{seed['scaler_run_id']}/standard_scaler"
    s = load_scorer(f'runs:/{run}/RandomForest', scaler, there.tracking_uri, tmp_path)
    assert s.spec == SEED_SPEC and s.scaled
    p = s.predict(extract(read(there.home/'p1.csv').head(50), s.spec).to_numpy())
    assert p.shape == (50, 2) and np.allclose(p.sum(1), 1)

def logged(there, found, name, searched, metric): # found: metrics of a run; name: a model, with what must be in its run
    "Client, id of the whole job's run, and the paths of its artifacts"
    client = mlflow.MlflowClient(there.tracking_uri, there.tracking_uri)
    run = client.get_run(found['models'][name]['run_id'])
    assert run.info.run_name.startswith(f'{name} · ') and run.data.tags['model'] == name
    with open(client.download_artifacts(run.info.run_id, 'grid.json')) as f: assert searched in json.load(f)
    assert run.data.metrics[metric] == found['models'][name][metric]
    parent = run.data.tags['mlflow.parentRunId']
    return client, parent, {f.path for d in ('', 'figures', 'tables') for f in client.list_artifacts(parent, d)}

def test_what_mlflow_keeps_of_the_original_study(there, seed):
    client,parent,names = logged(there, seed, 'XGBoost', 'max_depth', 'f1')
    assert {'report.html', 'figures/splits.png', 'figures/importance.png', 'tables/splits.csv', 'tables/search.csv',
            'spec.json'} <= names
    splits = pd.read_csv(client.download_artifacts(parent, 'tables/splits.csv'), index_col=0)
    assert (splits.f1_patient_split > 0).all() and set(splits.index) == set(seed['models'])
    assert client.get_run(seed['scaler_run_id']).info.run_name == 'standard_scaler'

def test_original_study_says_what_it_cannot_use(there, tmp_path):
    df = monitor(60, np.random.default_rng(0)).assign(**{'Patient ID':'p', TEMP:np.nan})
    df.to_csv(tmp_path/'cold.csv', index=False)
    with pytest.raises(TrainingFailed, match='no row has pulse or heart rate, temperature'):
        run_page(there, data=f'{tmp_path}/cold.csv', protocol='seed')
    with pytest.raises(ValueError, match='original study has no external validation'):
        run_page(there, data=f'{tmp_path}/cold.csv', external=f'{tmp_path}/cold.csv', protocol='seed')

def test_patient_contract(patient):
    assert set(patient) == {'protocol', 'features', 'seed', 'n_patients', 'n_rows', 'champion', 'models',
                            'scaler_run_id', 'cv', 'external', 'gate', 'policy', 'calibration', 'registered',
                            'label_rule'}
    assert set(patient['cv']) == {'utility', 'utility_mean', 'utility_std', 'auroc', 'auprc'}
    assert len(patient['cv']['utility']) == 3 and patient['scaler_run_id'] is None
    assert {'utility', 'utility_ci', 'auroc', 'auprc', 'n_patients', 'threshold', 'adapted'} <= set(patient['external'])
    keys = {'f1', 'auroc', 'auprc', 'run_id', 'params', 'utility', 'utility_ci'}
    assert all(keys <= set(m) for m in patient['models'].values())
    lo,hi = patient['external']['utility_ci']
    assert lo <= patient['external']['utility'] <= hi

def test_gate_compares_runs(patient):
    same = gate(patient, patient)
    assert not same.worse.any() and not same.better.any() and (same['diff'] == 0).all()
    other = patient | dict(gate=patient['gate'] | dict(evaluation='0'*16))
    with pytest.raises(ValueError, match='train both on the same'): gate(patient, other)

def test_what_mlflow_keeps(there, patient):
    client,parent,names = logged(there, patient, 'LightGBM', 'num_leaves', 'auroc')
    assert {'report.html', 'model_card.md', 'spec.json', 'figures/utility.png', 'figures/importance.png',
            'figures/burden.png'} <= names
    assert {f'tables/{t}.csv' for t in ('search', 'baselines', 'external', 'subgroups')} <= names
    html = open(client.download_artifacts(parent, 'report.html')).read()
    assert 'data:image/png' in html and 'train.parquet' in html # its figures, and the parameters that it was given
    assert 'TRIPOD' in html and len(html) < 4e6
    assert not list(there.home.rglob('*.pkl'))

def test_held_out_predictions_are_kept(there, patient):
    uri = f"runs:/{patient['models']['LightGBM']['run_id']}/LightGBM"
    s = load_scorer(uri, tracking_uri=there.tracking_uri, cache=there.home/'models')
    train,m = read(there.home/'train.parquet'), patient['models']['LightGBM']
    assert s.evaluate(n=0).value.utility == m['utility'] and s.evaluate(train, n=0).value.auroc == m['auroc']
    assert s.score(train).attrs['in_sample'] == 100 and not s.score(read(there.home/'other.parquet')).attrs['in_sample']

def test_too_few_septic_patients_are_refused_at_once(there):
    df = read(there.home/'train.parquet')
    df[df.patient_id.isin(df.patient_id[df.label == 1].unique()[:2])].to_parquet(there.home/'few.parquet')
    with pytest.raises(ValueError, match='2 patients have rows labelled 1, .*at least 3 of each'):
        run_page(there, data=f'{there.home}/few.parquet')

def test_every_section_takes_few_patients(there):
    "Three septic stays and one other, of which no fold but three has any: plain warnings, and a whole report"
    df = read('sample')
    sick = df.label.groupby(df.patient_id).max()
    few = df[df.patient_id.isin([*sick[sick == 1].index[:3], *sick[sick == 0].index[:1]])]
    few.drop(columns='time').rename(columns={'label':'SepsisLabel'}).to_parquet(there.home/'four.parquet')
    found = run_page(there, data=f'{there.home}/four.parquet', features='vitals', models='LightGBM,XGBoost')
    assert found['n_patients'] == 4 and found['registered']['version']
    assert 'TRIPOD' in (there.home/'reports/02_train.html').read_text()

def test_no_secret_is_kept(there, patient):
    files = [p for p in there.home.rglob('*') if p.is_file()]
    assert {'mlflow.db', 'MLmodel', '02_train.html', '02_train.ipynb'} <= {p.name for p in files}
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]

def test_champion_is_the_best_of_the_first_evaluation(there, patient, seed):
    s = load_scorer('models:/sepsis@champion', tracking_uri=there.tracking_uri, cache=there.home/'models')
    first = dict(patient=patient, seed=seed)[s.terms['protocol']] # the first to run: the other does not compare
    assert s.version == '1' and s.run_id == first['models'][first['champion']]['run_id']

def test_the_worker_loads_what_training_decided(there, patient):
    uri = f"runs:/{patient['models'][patient['champion']]['run_id']}/{patient['champion']}"
    s = load_scorer(uri, tracking_uri=there.tracking_uri, cache=there.home/'models')
    assert (s.policy.alert_threshold, s.policy.why) == (patient['policy']['on'], patient['policy']['why'])
    assert s.calibration.slope == patient['calibration']['slope']
    assert s.training_range is not None and 0 <= s.training_range.most_outside

def test_a_run_that_fails_on_its_data_leaves_the_last_report(there, patient):
    report = (there.home/'reports/02_train.html').read_bytes()
    train = f'{there.home}/train.parquet'
    with pytest.raises(TrainingFailed, match='patient ids are in the training data too'):
        run_page(there, data=train, external=train, features='vitals', models='LightGBM', folds=3)
    assert (there.home/'reports/02_train.html').read_bytes() == report
    assert 'in the training data too' in (there.home/'reports/02_train.failed.html').read_text()

def little_page(there, code):
    "A page of one cell below its parameters"
    cells = [nbf.new_code_cell("data = 'sample'", metadata=dict(tags=['parameters'])), nbf.new_code_cell(code)]
    kernel = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nbf.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), there.home/'little.ipynb')
    return there.home/'little.ipynb'

def test_a_failed_cell_leaves_the_last_good_page(there):
    there = replace(there, paths=replace(there.paths, reports=f'{there.home}/{ODD}'))
    page,html = run_training({}, there, little_page(there, "'it works'"), quiet=True)
    assert page.is_file() and 'it works' in html.read_text() and not list(page.parent.glob('little.failed.*'))
    with pytest.raises(TrainingFailed, match=r'failed, "1/0": ZeroDivisionError.*\n.*little\.failed\.html'):
        run_training({}, there, little_page(there, '1/0'), quiet=True)
    assert 'it works' in html.read_text()
    assert 'ZeroDivisionError' in html.with_suffix('.failed.html').read_text()

def test_typo_stops_plain_papermill(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'fold', did you mean 'folds'"):
        papermill.execute_notebook(str(PAGE), str(tmp_path/'out.ipynb'), dict(fold=3), progress_bar=False)

def test_the_other_protocol_names_its_page(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match='another study, on the page original_study.ipynb'):
        papermill.execute_notebook(str(PAGE), str(tmp_path/'out.ipynb'), dict(protocol='seed'), progress_bar=False)

@pytest.mark.parametrize('page', [PAGE, PAGE.with_name('original_study.ipynb')], ids=lambda p: p.stem)
def test_a_study_has_parameters_and_runs_no_unit_tests(page):
    cells = [c for c in nbformat.read(page, 4).cells if c.cell_type == 'code']
    assert sum('parameters' in c.metadata.get('tags', []) for c in cells) == 1 # else papermill would ignore them
    code = '\n'.join(c.source for c in cells)
    assert 'fastcore.test' not in code and 'assert ' not in code

@pytest.mark.parametrize('wrong,message', [
    (dict(protcol='seed'), "unknown parameter 'protcol', did you mean 'protocol'?"),
    (dict(protocol='rows'), "protocol: 'rows' is unknown"), (dict(data='nowhere.csv'), 'nowhere.csv: no such file'),
    (dict(tracking_uri='http://127.0.0.1:9'), 'does not answer'),
    (dict(tracking_uri='sqlite:////nowhere/m.db'), 'does not exist')])
def test_wrong_values_say_what_to_do(there, wrong, message):
    with pytest.raises((ValueError, OSError, RuntimeError), match=message.replace('?', r'\?')):
        run_training(dict(tracking_uri=there.tracking_uri) | wrong, there, quiet=True)

def test_wrong_labels_are_found_before_the_page_runs(there, tmp_path):
    df = monitor(60, np.random.default_rng(0)).assign(**{'Patient ID':'p', 'Label':0})
    df.to_csv(tmp_path/f'{ODD}.csv', index=False)
    with pytest.raises(ValueError, match='all known labels are 0'):
        run_training(dict(data=f'{tmp_path}/{ODD}.csv', tracking_uri=there.tracking_uri), there, quiet=True)

def run_at_site(there, patient, **params):
    "Evaluate the model of `patient` at a site; its figures, and the HTML"
    path = there.home/'site.json'
    model = f"models:/sepsis/{patient['registered']['version']}"
    _,html = run_site(params | dict(models=model, metrics_json=str(path), tracking_uri=there.tracking_uri), there,
                      quiet=True)
    return json.loads(path.read_text()), html.read_text()

def test_site(there, patient):
    "A champion at another site: what each way gives there, an answer, and a version only if that names a way"
    out,html = run_at_site(there, patient, data='sample-eicu', draws=100, folds=3, name='eicu')
    assert out['labelled'] and out['n_patients'] == 896
    assert {'as it is', 'intercept', 'slope and intercept', 'hour of stay', 'NEWS2 (partial)'} <= set(out['ways'])
    for figures in out['ways'].values():
        value,lo,hi = figures['auroc']
        assert lo <= value <= hi
    client = mlflow.MlflowClient(there.tracking_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    run, = client.search_runs(experiments, "tags.site = 'eicu'")
    kept = {o.path for o in client.list_artifacts(run.info.run_id)}
    assert {'report.html', 'tables', 'figures'} <= kept
    taken = out['advice']['way']
    assert bool(taken) == bool(out['version']) and out['advice']['why'].partition('. ')[0] in html
    if taken: assert load_scorer('models:/sepsis@eicu', tracking_uri=there.tracking_uri).version == out['version']

def test_site_without_labels(there, patient):
    "Coverage, alert load and share outside the training can be said; discrimination cannot, and the page says so"
    df = pd.read_parquet(there.home/'other.parquet').drop(columns='SepsisLabel')
    df.to_parquet(there.home/'ward.parquet')
    out,_ = run_at_site(there, patient, data=f'{there.home}/ward.parquet')
    assert not out['labelled'] and 'ways' not in out and not out['version']
    assert out['advice']['why'].startswith('Not known: without labels')
    assert 0 <= next(iter(out['present'].values()))['alerts per patient-day'] < 24
    assert sum(o['weight'] for o in out['coverage'].values()) <= 1

def test_a_champion_that_never_alerts_is_said():
    from sepsis_nb.model.policy import never_policy, threshold_policy
    from sepsis_nb.model.risk import to_dict
    from sepsis_nb.train import run_summary
    never = to_dict(never_policy('too few'))
    run = dict(champion='LightGBM', models=dict(LightGBM=dict(utility=.4)), policy=never,
               registered=dict(version='1', champion=True, why='it is the first'))
    assert 'utility 0.400\nIt never alerts: too few\nVersion 1' in run_summary(run)
    assert 'never' not in run_summary(run | dict(policy=to_dict(threshold_policy(.4))))
