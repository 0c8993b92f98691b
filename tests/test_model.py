"A model whose files were damaged: its own risk, or one line; never a crash, a hang, or another risk"
import json, logging, random, re, shutil, socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
import mlflow, numpy as np, pandas as pd, pytest
from sepsis_nb import load_scorer
from sepsis_nb.features import SPECS
from sepsis_nb.model.contract import log_model, model_file
from sepsis_nb.model.kinds import KINDS
from sepsis_nb.model.load import folder_scorer, prove
from sepsis_nb.model.policy import Policy
from sepsis_nb.model.registry import RegistryError, StoreAway, at_store, fetch, resolve, use_store
from sepsis_nb.model.risk import Calibration, TrainingRange

SPEC = SPECS['monitor4']
X = pd.DataFrame(np.random.default_rng(0).normal(80, 9, size=(200, 4)), columns=SPEC.names)

@dataclass
class Models:
    uri:str
    cache:Path
    uris:dict # kind to address
    def load(self, uri, store=''): return load_scorer(uri, '', store or self.uri, self.cache)
    def folder(self, kind): return fetch(resolve(self.uris[kind], self.uri), self.uri, self.cache)

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('models')
    uri,was = f'sqlite:///{tmp}/mlflow.db', mlflow.get_tracking_uri()
    terms = dict(calibration=Calibration(.9, .1), policy=Policy(.3, .25, 6., .2, .15),
                 training_range=TrainingRange(SPEC.names[1:2], [34.], [41.], 0, .01))
    with at_store(uri, create=True):
        use_store(uri, 'damage')
        fits = {k:o.make(dict(n_estimators=5), 42).fit(X, X.iloc[:,0] > 80) for k,o in KINDS.items()}
        with mlflow.start_run(): uris = {k:log_model(k, m, SPEC, .3, **terms) for k,m in fits.items()}
        with at_store(uri) as client:
            client.create_registered_model('sepsis')
            for u in uris.values():
                run,name = u.split('/')[1:]
                id = client.get_run(run).data.tags[f'sepsis.model.{name}']
                client.create_model_version('sepsis', f'models:/{id}', run_id=run)
    mlflow.set_tracking_uri(was)
    return Models(uri, tmp/'cache', uris)

def risk(scorer): return scorer.predict(X.to_numpy())[:,1].tolist()

def harms(rng):
    "Ways to damage the bytes of a file"
    def flip(b):
        out = bytearray(b or b'x')
        for _ in range(rng.choice((1, 5))): out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    return (flip, lambda b: b[:rng.randrange(max(len(b), 1))], lambda b: b'', lambda b: b+b, lambda b: b'null',
            lambda b: b[::-1], lambda b: None) # None: the file is gone

def test_whatever_happens_to_the_cache(models, caplog):
    "A version that is loaded from a damaged cache has its own risk; with the store away, that or `StoreAway`"
    caplog.set_level(logging.ERROR)
    rng,true = random.Random(0), {u:risk(models.load(u)) for u in (f'models:/sepsis/{v}' for v in (1, 2, 3))}
    assert len({tuple(o) for o in true.values()}) == 3
    with socket.create_server(('127.0.0.1', 0)) as o: gone = f'http://127.0.0.1:{o.getsockname()[1]}'
    for n in range(45):
        uri,files = rng.choice(list(true)), sorted(p for p in (models.cache/'models').rglob('*') if p.is_file())
        file,harm = rng.choice(files), rng.choice(harms(rng))
        bytes_ = harm(file.read_bytes())
        if n%5 == 4: file.write_bytes(rng.choice(files).read_bytes()) # a file in the place of another
        elif bytes_ is None: file.unlink()
        else: file.write_bytes(bytes_)
        if n%3 == 2:
            with pytest.raises(StoreAway): models.load(uri, gone) # of this store nothing was noted
        assert risk(models.load(uri)) == true[uri], (n, file, harm)

def put(terms, k, o): return {**terms, k:o} if type(terms) is dict else [*terms[:k], o, *terms[k+1:]]
def changed(terms, path=()):
    "Copies of a JSON value with one part left out, or of another type, or absurd; and where"
    for k in terms if type(terms) is dict else range(min(len(terms), 2)):
        left = {a:b for a,b in terms.items() if a != k} if type(terms) is dict else terms[:k]+terms[k+1:]
        yield left, (*path, k, 'left out')
        for other in (None, True, -1, 1e308, 'x', [], {}, ['x']*20_000):
            if other != terms[k] or type(other) is not type(terms[k]):
                yield put(terms, k, other), (*path, k, repr(other)[:20])
        if type(terms[k]) in (dict, list) and terms[k]:
            for o,at in changed(terms[k], (*path, k)):
                yield put(terms, k, o), at

def test_a_contract_is_whole_or_refused(models, tmp_path):
    "Each part of a contract left out, of another type, absurd: refused, or of no consequence for the risk"
    folder,ref = tmp_path/'m', resolve(models.uris['LightGBM'], models.uri)
    shutil.copytree(models.folder('LightGBM'), folder)
    file = folder/'extra_files'/'contract.json'
    terms,raw = json.loads(file.read_text()), folder_scorer(folder, ref).proba(X.to_numpy())
    accepted = set()
    for o,at in [*changed(terms), (terms | dict(more=1), ('more',)), (terms | dict(format=2), ('format', '2'))]:
        file.write_text(json.dumps(o))
        try: got = folder_scorer(folder, ref)
        except RegistryError as e: assert '\n' not in str(e)
        else:
            assert (got.proba(X.to_numpy()) == raw).all()
            accepted.add(at[0] if len(at) == 2 else at[:2])
    free = {'name', 'scaler_uri', 'format', 'calibration', 'policy', 'support'}
    assert {o[0] if isinstance(o, tuple) else o for o in accepted} <= free, accepted

def test_small_files_are_whole_or_refused(models, tmp_path):
    "Contract, MLmodel and fitted.npz with damaged bytes, without the digest that would have found it"
    rng,ref = random.Random(1), resolve(models.uris['LightGBM'], models.uri)
    folder,source = tmp_path/'m', models.folder('LightGBM')
    shutil.copytree(source, folder)
    raw = folder_scorer(folder, ref).proba(X.to_numpy())
    for name in 'extra_files/contract.json', 'MLmodel', 'extra_files/fitted.npz':
        for _ in range(20):
            shutil.copy(source/name, folder/name)
            bytes_ = rng.choice(harms(rng))((source/name).read_bytes())
            if bytes_ is None: (folder/name).unlink()
            else: (folder/name).write_bytes(bytes_)
            try: got = folder_scorer(folder, ref)
            except RegistryError as e: assert '\n' not in str(e)
            else: assert (got.proba(X.to_numpy()) == raw).all()
        shutil.copy(source/name, folder/name)

def test_native_damage_is_one_line(models, tmp_path):
    "A damaged model file crashes a child, and the reason is one line; no file of another kind or model passes"
    def case(kind, name, harm):
        folder = tmp_path/f'{kind}-{name}'
        shutil.copytree(models.folder(kind), folder)
        file = Path(model_file(folder)[1])
        file.write_bytes(harm(file.read_bytes()))
        ref = resolve(models.uris[kind], models.uri)
        with pytest.raises(RegistryError) as e: prove(folder, ref, cpu_s=10, memory_gb=3)
        assert '\n' not in str(e.value)
    cases = [('LightGBM', 'half', lambda b: b[:len(b)//2]),
             ('LightGBM', 'vast', lambda b: re.sub(rb'num_leaves=\d+', b'num_leaves=400000000', b, count=1)),
             ('XGBoost', 'far', lambda b: b.replace(b'"left_children":[1', b'"left_children":[99999999')),
             ('RandomForest', 'half', lambda b: b[:len(b)//2]),
             ('XGBoost', 'other', lambda b: Path(model_file(models.folder('LightGBM'))[1]).read_bytes())]
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda o: case(*o), cases))
