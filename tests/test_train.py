"The training job as its users start it: through papermill and `run_training`, on a store of its own"
import json
from dataclasses import replace
import mlflow, nbformat, nbformat.v4 as nbf, numpy as np, pandas as pd, papermill, pytest
from lightgbm import LGBMClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier
from conftest import ROOT
from sepsis_nb.data import read
from sepsis_nb.features import SEED_SPEC, extract
from sepsis_nb.model.gate import gate
from sepsis_nb.model.scorer import load_scorer
from sepsis_nb.settings import load_settings
from sepsis_nb.rows.simulate import simulate
from sepsis_nb.train import TrainingFailed, run_training

PAGE = ROOT/'nbs'/'02_train.ipynb'
SECRET = 'hunter2-train-3Kd'
LGBM = dict(n_estimators=[50, 100], learning_rate=[.01, .1], max_depth=[-1, 5])
FOREST = dict(n_estimators=[50, 100, 200], max_depth=[3, 5, 10])
XGB = dict(n_estimators=[50, 100], learning_rate=[.01, .1], max_depth=[3, 5])

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "Settings of an own store and report folder; a password is set, as it is for an operator"
    tmp = tmp_path_factory.mktemp('train')
    with pytest.MonkeyPatch.context() as env:
        env.setenv('SEPSIS_KAFKA_SASL_PASSWORD', SECRET)
        s = load_settings()
        yield replace(s, home=tmp, paths=replace(s.paths, reports=f'{tmp}/reports'), mlflow=replace(s.mlflow, tracking_uri=f'sqlite:///{tmp}/mlflow.db'))

def job(there, **params):
    "Run the page; its metrics"
    path = there.home/f"{params.get('protocol', 'patient')}.json"
    run_training(params | dict(metrics_json=str(path), tracking_uri=there.tracking_uri), there, quiet=True)
    return json.loads(path.read_text())

@pytest.fixture(scope='module')
def patient(there):
    "Protocol patient on 150 real stays, tested on 60 others; half of each are septic stays if there are so many"
    df = read('sample').drop(columns='time').rename(columns={'label':'SepsisLabel'})
    sick = df.SepsisLabel.groupby(df.patient_id).max()
    ids = np.r_[sick[sick == 1].index[:105], sick[sick == 0].index[:105]]
    for name,part in dict(train=ids[::2].tolist() + ids[1::4].tolist(), other=ids[3::4].tolist()).items():
        df[df.patient_id.isin(part)].to_parquet(there.home/f'{name}.parquet')
    return job(there, data=f'{there.home}/train.parquet', external=f'{there.home}/other.parquet', features='vitals', models='LightGBM,RandomForest', folds=3)

@pytest.fixture(scope='module')
def seed(there):
    simulate(there.home, rows=(1500, 1500))
    return job(there, data=f'{there.home}/patient1.csv,{there.home}/patient2.csv', protocol='seed')

def straight(paths):
    "The original study in a straight line: F1 by model"
    df = pd.concat([pd.read_csv(p) for p in paths], ignore_index=True)
    pulse,temp,hr,rr = (f'MDC_{o}_Result' for o in ('PULS_OXIM_PULS_RATE', 'TEMP', 'ECG_HEART_RATE', 'TTHOR_RESP_RATE'))
    df[f'{pulse}_min'] = df[pulse].rolling(2).min()
    df[f'{temp}_mean'] = df[temp].rolling(2).mean()
    df[f'{pulse}_mean'] = df[pulse].rolling(2).mean()
    df['HR_to_RR_Ratio'] = df[hr]/df[rr]
    df = df.dropna().reset_index(drop=True)
    X = df[[f'{pulse}_min', f'{temp}_mean', f'{pulse}_mean', 'HR_to_RR_Ratio']].replace([np.inf, -np.inf], np.nan).fillna(0)
    a,b,ya,yb = train_test_split(X, df['Label'], test_size=.2, random_state=42)
    sc = StandardScaler()
    a,b = sc.fit_transform(a),sc.transform(b)
    models = dict(LightGBM=(LGBMClassifier(verbose=-1), LGBM, 8), RandomForest=(RandomForestClassifier(random_state=42), FOREST, 9),
                  XGBoost=(XGBClassifier(random_state=42), XGB, 8))
    return {n:f1_score(yb, RandomizedSearchCV(m, g, n_iter=k, cv=3, scoring='f1', random_state=42).fit(a, ya).predict(b)) for n,(m,g,k) in models.items()}

def test_seed_reproduces_f1_to_the_last_digit(there, seed):
    assert {n:m['f1'] for n,m in seed['models'].items()} == straight([there.home/'patient1.csv', there.home/'patient2.csv'])

def test_seed_contract(seed):
    assert set(seed) == {'protocol', 'features', 'seed', 'n_patients', 'n_rows', 'champion', 'models', 'scaler_run_id'}
    assert (seed['features'], seed['n_patients']) == ('monitor4', 2)

def test_seed_model_and_scaler_load_by_their_uris(there, seed, tmp_path):
    run = seed['models']['RandomForest']['run_id']
    s = load_scorer(f'runs:/{run}/RandomForest', f"runs:/{seed['scaler_run_id']}/standard_scaler", there.tracking_uri, tmp_path)
    assert s.spec == SEED_SPEC and s.scaled
    p = s.predict(extract(read(there.home/'patient1.csv').head(50), s.spec).to_numpy())
    assert p.shape == (50, 2) and np.allclose(p.sum(1), 1)

def test_patient_contract(patient):
    assert {'protocol', 'features', 'seed', 'n_patients', 'n_rows', 'champion', 'models', 'scaler_run_id', 'cv', 'external', 'gate', 'policy'} <= set(patient)
    assert set(patient['cv']) == {'utility', 'utility_mean', 'utility_std', 'auroc', 'auprc'} and len(patient['cv']['utility']) == 3
    assert {'utility', 'utility_ci', 'auroc', 'auprc', 'n_patients'} <= set(patient['external'])
    assert all({'f1', 'auroc', 'auprc', 'run_id', 'params', 'utility', 'utility_ci'} <= set(m) for m in patient['models'].values()) and patient['scaler_run_id'] is None
    lo,hi = patient['external']['utility_ci']
    assert lo <= patient['external']['utility'] <= hi

def test_gate_compares_runs(patient):
    same = gate(patient, patient)
    assert not same.worse.any() and not same.better.any() and (same['diff'] == 0).all()
    with pytest.raises(ValueError, match='train both on the same'): gate(patient, patient | dict(gate=patient['gate'] | dict(evaluation='0'*16)))

def test_what_mlflow_keeps(there, patient):
    client = mlflow.MlflowClient(there.tracking_uri, there.tracking_uri)
    run = client.get_run(patient['models']['LightGBM']['run_id'])
    assert run.info.run_name == 'LightGBM' and 'grid.num_leaves' in run.data.params and run.data.metrics['auroc'] == patient['models']['LightGBM']['auroc']
    parent = run.data.tags['mlflow.parentRunId']
    names = {f.path for d in ('', 'figures', 'tables') for f in client.list_artifacts(parent, d)}
    assert {'report.html', 'model_card.md', 'spec.json', 'figures/utility.png', 'figures/importance.png', 'figures/burden.png', 'tables/search.csv',
            'tables/baselines.csv', 'tables/external.csv', 'tables/subgroups.csv'} <= names
    html = open(client.download_artifacts(parent, 'report.html')).read()
    assert 'data:image/png' in html and 'train.parquet' in html # its figures, and the parameters that it was given
    assert 'TRIPOD' in html and len(html) < 4e6
    assert not list(there.home.rglob('*.pkl'))

def test_no_secret_is_kept(there, patient):
    files = [p for p in there.home.rglob('*') if p.is_file()]
    assert {'mlflow.db', 'MLmodel', '02_train.html', '02_train.ipynb'} <= {p.name for p in files}
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]

def test_champion_is_the_best_of_the_first_evaluation(there, patient, seed):
    s = load_scorer('models:/sepsis@champion', tracking_uri=there.tracking_uri, cache=there.home/'models')
    first = dict(patient=patient, seed=seed)[s.terms['protocol']] # whichever ran first: the other's score does not compare
    assert s.version == '1' and s.run_id == first['models'][first['champion']]['run_id']

def test_the_worker_loads_what_training_decided(there, patient):
    run = patient['models'][patient['champion']]['run_id']
    s = load_scorer(f"runs:/{run}/{patient['champion']}", tracking_uri=there.tracking_uri, cache=there.home/'models')
    assert (s.policy.on, s.policy.why) == (patient['policy']['on'], patient['policy']['why']) and s.calibration.slope == patient['calibration']['slope']
    assert s.support is not None and 0 <= s.support.cut

def test_external_patients_of_the_training_set_are_refused(there, patient):
    with pytest.raises(TrainingFailed, match='patient ids are in the training data too'):
        job(there, data=f'{there.home}/train.parquet', external=f'{there.home}/train.parquet', features='vitals', models='LightGBM', folds=3)

def page(there, code):
    cells = [nbf.new_code_cell("data = 'sample'", metadata=dict(tags=['parameters'])), nbf.new_code_cell(code)]
    nbformat.write(nbf.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), there.home/'little.ipynb')
    return there.home/'little.ipynb'

def test_a_failed_cell_leaves_page_and_message(there):
    with pytest.raises(TrainingFailed, match=r'failed, "1/0": ZeroDivisionError.*\n.*little\.ipynb'): run_training({}, there, page(there, '1/0'), quiet=True)
    assert 'ZeroDivisionError' in (there.home/'reports/little.html').read_text()

def test_typo_stops_plain_papermill(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'fold', did you mean 'folds'"):
        papermill.execute_notebook(str(PAGE), str(tmp_path/'out.ipynb'), dict(fold=3), progress_bar=False)

@pytest.mark.parametrize('bad,said', [(dict(protocol='rows'), "protocol: 'rows' is unknown"), (dict(data='nowhere.csv'), 'nowhere.csv: no such file'),
                                      (dict(tracking_uri='http://127.0.0.1:9'), 'does not answer'), (dict(tracking_uri='sqlite:////nowhere/m.db'), 'does not exist')])
def test_bad_values_say_what_to_do(there, bad, said):
    with pytest.raises((ValueError, OSError, RuntimeError), match=said): run_training(dict(tracking_uri=there.tracking_uri) | bad, there, quiet=True)
