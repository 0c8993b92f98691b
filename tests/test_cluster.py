"Training on worker processes: the same bytes, whatever their number and whatever happens to them"
import errno, json, os, signal, socket, subprocess, sys, textwrap, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest
import sepsis_nb.model.cluster as cluster
from sepsis_nb.data import read
from sepsis_nb.features import SPECS
from sepsis_nb.model import search
from sepsis_nb.model.cluster import ClusterError, close_cluster, open_cluster, wait_for_workers
from sepsis_nb.model.compare import ablation, baselines
from sepsis_nb.model.explain import fold_gain, permutation
from sepsis_nb.model.job import Job
from sepsis_nb.model.kinds import KINDS, fit_model, in_threads
from sepsis_nb.model.metrics import METRICS, Metric
from sepsis_nb.model.search import cross_validate, patient_folds
from sepsis_nb.model.stays import load_stays, sample_weights, table_stays
from sepsis_nb.settings import load_settings, private_folder
from sepsis_nb.train import TrainingFailed, run_training
from threadpoolctl import threadpool_info, threadpool_limits

pytest.importorskip('distributed', reason='needs Dask: pip install "sepsis-nb[dask]"')
SPEC = SPECS['vitals']
SMALL = dict(LightGBM=dict(n_estimators=8, min_child_samples=20, bags=2), RandomForest=dict(n_estimators=4),
             XGBoost=dict(n_estimators=6))

@pytest.fixture(scope='module')
def rows():
    "150 patients of the sample, every second one septic, their rows mixed by hour"
    df = read('sample')
    sick = df.label.groupby(df.patient_id).max()
    ids = [*sick[sick == 1].index[:75], *sick[sick == 0].index[:75]]
    return df[df.patient_id.isin(ids)].sort_values('time', kind='stable', ignore_index=True)

@pytest.fixture(scope='module', autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as m:
        m.setattr(search, 'RESAMPLES', 100) # of a thousand, which the page has
        yield

@pytest.fixture(scope='module', autouse=True)
def pages(forked, rows, tmp_path_factory):
    "By cluster the training page as a future: it is run beside the tests, in kernels of its own"
    tmp,s,ids = tmp_path_factory.mktemp('pages'), load_settings(), rows.patient_id.unique()[::3]
    few = rows[rows.patient_id.isin(ids)].drop(columns='time').rename(columns=dict(label='SepsisLabel'))
    few.to_parquet(tmp/'rows.parquet', index=False)
    def report(address):
        own = private_folder(tmp/(address[:5] or 'here'))
        at = replace(s, home=tmp, paths=replace(s.paths, reports=str(own)))
        what = dict(data=f'{tmp}/rows.parquet', features='monitor4', models='LightGBM', folds=3, cluster=address)
        place = dict(metrics_json=f'{own}/figures.json', tracking_uri=f'sqlite:///{own}.db', register='false')
        _,html = run_training(what | place, at, quiet=True)
        return json.loads((own/'figures.json').read_text()), html.read_text()
    with ThreadPoolExecutor(2) as two: yield {k:two.submit(report, k) for k in ('', 'local:2', 'tcp://127.0.0.1:9')}

@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "Two worker processes for all tests"
    pool = open_cluster('local:2', tmp_path_factory.mktemp('cluster'))
    yield pool
    assert not pool.own._watch_worker_status_task.done(), 'what Dask knows of its workers was changed from outside'
    close_cluster(pool)

def stays_of(rows, pool=None, **kw): return table_stays(rows, SPEC, digest='sample', cluster=pool, **kw)
def run(stays, name='LightGBM', progress=lambda it, **kw: it, **more):
    fold = patient_folds(stays.septic, 3)
    return cross_validate(stays, fold, name, [KINDS[name].start | SMALL[name] | more], progress=progress, one_in=2)

def content(model):
    "A model as bytes that two equal ones share"
    if hasattr(model, 'model_to_string'): return model.model_to_string()
    if hasattr(model, 'get_booster'): return bytes(model.get_booster().save_raw('json'))
    trees = [t.tree_ for t in model.estimators_]
    return b''.join(getattr(t, k).tobytes() for t in trees for k in ('value', 'threshold', 'feature', 'impurity'))

def same(a, b):
    for k in 'risk', 'positive', 'alert', 'alert_all', 'indeterminate': np.testing.assert_array_equal(
        getattr(a, k), getattr(b, k), k)
    assert [content(m) for m in (a.model, *a.models)] == [content(m) for m in (b.model, *b.models)]
    for k in 'resamples', 'folds', 'search', 'metrics': pd.testing.assert_frame_equal(
        getattr(a, k), getattr(b, k), check_exact=True)
    assert a.rule == b.rule

@pytest.fixture(scope='module')
def here(rows): return {k:run(stays_of(rows), k) for k in KINDS}

@pytest.mark.parametrize('name', KINDS)
def test_two_workers_make_the_same_bytes(rows, pool, here, name): same(run(stays_of(rows, pool), name), here[name])

def new_run(pool, name):
    "The cluster with an empty folder for results"
    pool.tasks = pool.shelf.sub('tasks').sub(name)
    return pool

@pytest.mark.parametrize('n', [1, 4])
def test_any_number_of_workers_makes_the_same_bytes(rows, pool, here, n):
    pool.own.scale(n)
    wait_for_workers(pool.client, n, 60) if n > 2 else pool.client.sync(pool.own._correct_state)
    try: same(run(stays_of(rows, new_run(pool, f'of-{n}'))), here['LightGBM'])
    finally:
        pool.own.scale(2)
        wait_for_workers(pool.client, 2, 60)

def test_what_follows_is_the_same(rows, pool, here):
    "Importance, baselines and ablation"
    found = []
    for stays in (stays_of(rows), stays_of(rows, pool)):
        fold,w = patient_folds(stays.septic, 3), sample_weights(stays)
        gain = fold_gain(stays, fold, w)
        shuffled = permutation(here['LightGBM'], stays, fold, w, gain.index[:2], n=10)
        fair,crossed = baselines(stays, fold, n=10)
        tables = [o.metrics for o in (fair | crossed).values()]
        found.append([gain, shuffled, *tables, ablation(stays, fold, n=5, seeds=1)])
    for a,b in zip(*found): pd.testing.assert_frame_equal(a, b, check_exact=True)

def blas_threads():
    return max(o['num_threads'] for o in threadpool_info() if o['user_api'] == 'blas')

def test_a_task_has_one_thread_for_products(pool):
    "As with several, sums over many rows would differ from machine to machine in their last digits"
    with threadpool_limits(4, 'blas'):
        assert blas_threads() == 4
        assert list(in_threads([(blas_threads, (), {})]*2)) == [1, 1]
        assert blas_threads() == 4
    with threadpool_limits(4, 'blas'): assert list(pool.run([(blas_threads, (), {})])) == [1]

def test_features_are_the_table(rows, pool, monkeypatch):
    "In parts, whatever the order of the rows, and with two stays of a patient"
    monkeypatch.setattr(cluster, 'PART_ROWS', 500)
    again = rows.assign(time=rows.time+1000*((rows.patient_id == rows.patient_id[0]) & (rows.time > 9)))
    in_order = rows.sort_values(['patient_id', 'time'], ignore_index=True)
    for name,df in dict(mixed=rows, again=again, in_order=in_order).items():
        a,b = table_stays(df, SPEC), table_stays(df, SPEC, digest=f'parts-{name}', cluster=pool)
        assert len(b.X.ends) > 5
        for k in 'who', 'stay', 'hour', 'y': np.testing.assert_array_equal(getattr(a, k), getattr(b, k))
        np.testing.assert_array_equal(a.X, b.X[:])

def test_rows_from_disk_make_the_same_bins(rows, pool, monkeypatch):
    "A fold that is too large to be read at once gives the same booster, with all its rows sampled and with some"
    stays = stays_of(rows, pool)
    w,X = sample_weights(stays, 2), stays.X[:]
    for sample,least in (200_000, 20), (300, 20), (200_000, 400): # the last: some columns are too sparse to split
        own = KINDS['LightGBM'].start | SMALL['LightGBM']
        own |= dict(bin_construct_sample_cnt=sample, min_child_samples=least)
        whole = fit_model('LightGBM', own, X, stays.y, w).booster_.model_to_string()
        with monkeypatch.context() as m:
            m.setattr('sepsis_nb.model.parts.WHOLE_MB', 0)
            assert fit_model('LightGBM', own, stays.X, stays.y, w).model_to_string() == whole

def test_a_killed_worker_costs_its_tasks(rows, pool, here):
    pids = list(pool.client.run(os.getpid).values())
    results,mine = [], new_run(pool, 'killed')
    def progress(it, **kw):
        for o in it:
            results.append(o)
            if len(results) == 3: os.kill(pids[0], signal.SIGKILL)
            yield o
    mine.cost.update(tasks=0)
    same(run(stays_of(rows, mine), progress=progress), here['LightGBM'])
    assert pids[0] not in pool.client.run(os.getpid).values()
    assert mine.cost['tasks'] == len(results) # each result came once

def test_a_run_that_was_killed_goes_on(rows, pool, here, tmp_path):
    "The driver dies, and its workers with it; the same run again begins with what was done"
    rows.to_parquet(tmp_path/'rows.parquet')
    code = f'''
        import os, sys, pandas as pd
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_cluster import run, stays_of
        from sepsis_nb.model.cluster import open_cluster
        def main():
            done = []
            def progress(it, **kw):
                for o in it:
                    done.append(o)
                    if len(done) == 9: os._exit(9)
                    yield o
            pool = open_cluster('local:2', {pool.shelf.path!r}, 'again')
            print(*pool.client.run(os.getpid).values(), flush=True)
            run(stays_of(pd.read_parquet({str(tmp_path/'rows.parquet')!r}), pool), progress=progress)
        if __name__ == '__main__': main()'''
    (tmp_path/'first.py').write_text(textwrap.dedent(code))
    first = subprocess.run([sys.executable, tmp_path/'first.py'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert first.returncode == 9
    end = time.monotonic()+60
    while left := [o for o in map(int, first.stdout.split()) if psutil.pid_exists(o)]:
        assert time.monotonic() < end, f'workers without a run: {left}'
        time.sleep(.1)
    second = new_run(pool, 'again')
    second.cost.update(kept=0)
    same(run(stays_of(pd.read_parquet(tmp_path/'rows.parquet'), second)), here['LightGBM'])
    assert second.cost['kept'] >= 9

def test_a_task_is_known_by_all_that_decides_it(rows, pool):
    "Another seed, parameter or label makes other tasks; the same ones are found"
    kept = []
    for change in ({}, {}, dict(num_leaves=4)):
        new_run(pool, 'known').cost.update(kept=0, tasks=0)
        run(stays_of(rows, pool), **change)
        kept.append((pool.cost['kept'], pool.cost['tasks']))
    assert kept[0][0] == 0 and kept[1][1] == 0 and kept[2][0] == 0, kept
    pool.cost.update(kept=0)
    run(replace(stays_of(rows, pool), y=1-stays_of(rows).y))
    assert pool.cost['kept'] == 0

def test_kinds_and_metrics_of_a_notebook_go_along(rows, pool, monkeypatch):
    "What a run declares itself is known to the workers, and forgotten with the run"
    own = replace(KINDS['XGBoost'], name='Own', fixed=dict(max_bin=16))
    monkeypatch.setitem(KINDS, 'Own', own)
    monkeypatch.setitem(SMALL, 'Own', dict(n_estimators=3))
    monkeypatch.setitem(METRICS, 'positives', Metric('positives', 'positives', of=lambda cohort, k: k.sum()))
    same(run(stays_of(rows, new_run(pool, 'own')), 'Own'), run(stays_of(rows), 'Own'))
    monkeypatch.undo()
    assert 'positives' not in run(stays_of(rows, pool)).resamples

def test_waiting_leaves_what_dask_knows_of_its_workers(pool):
    "A copy in its place misses a worker that went meanwhile, which was a KeyError when the cluster was closed"
    known = pool.own.scheduler_info
    wait_for_workers(pool.client, 2, 5)
    with pytest.raises(TimeoutError): wait_for_workers(pool.client, 99, .1)
    assert pool.own.scheduler_info is known

def spoilt(path, how):
    data = bytearray(path.read_bytes())
    if how == 'empty': data.clear()
    if how == 'half': del data[len(data)//2:]
    if how == 'zeros': data[len(data)//2:] = bytes(len(data)-len(data)//2)
    if how == 'gone': path.unlink()
    else: path.write_bytes(data)

@pytest.mark.parametrize('how', ['half', 'zeros'])
def test_a_spoilt_result_is_made_again(rows, pool, here, how, monkeypatch):
    "What a crash of the machine left of a result or of an array is not used"
    monkeypatch.setattr(cluster, 'FILE_BYTES', 2**12)
    tasks = Path(new_run(pool, 'spoilt').tasks.path)
    run(stays_of(rows, pool))
    results,arrays = list(tasks.glob('*.result')), list(tasks.glob('array-*.npy'))
    assert results and arrays
    for o in results+arrays: spoilt(o, how)
    pool.cost.update(kept=0, tasks=0)
    same(run(stays_of(rows, pool)), here['LightGBM'])
    assert pool.cost['kept'] == 0 and pool.cost['tasks'] > 5

@pytest.mark.parametrize('how', ['empty', 'half', 'zeros', 'gone'])
def test_spoilt_features_are_made_again(rows, pool, monkeypatch, caplog, how):
    "Any file of them, whether the run that wrote them came to their end or not"
    monkeypatch.setattr(cluster, 'PART_ROWS', 2000)
    new_run(pool, 'parts')
    def fold(): return table_stays(rows, SPEC, digest=f'spoilt-{how}', cluster=pool)
    whole = table_stays(rows, SPEC)
    folder = Path(fold().X.shelf.path)
    for name in 'X-1.npy', 'hour.npy', 'stay.npy', 'ends.npy', 'done.json':
        pool.checked.clear()
        spoilt(folder/name, how)
        got = fold()
        np.testing.assert_array_equal(whole.X, got.X[:])
        for k in 'stay', 'hour': np.testing.assert_array_equal(getattr(whole, k), getattr(got, k))
    assert 'a file is not as it was written; all are made again' in caplog.text
    spoilt(folder/'X-2.npy', how) # the run was killed before it had said that all are written
    (folder/'done.json').unlink()
    pool.checked.clear()
    np.testing.assert_array_equal(whole.X, fold().X[:])

def test_a_result_that_is_lost_is_said(pool):
    shelf = new_run(pool, 'lost').tasks
    with pytest.raises(ClusterError) as e: pool._result('ab', None)
    assert f'{shelf.path}/ab.result is gone, or is not what was written; check the disk' in one_line(e)

def test_the_last_of_two_runs_removes_their_tasks(tmp_path, pool):
    "Two runs of one name share their tasks: the first to end leaves them to the other"
    shelf = cluster.Shelf(str(tmp_path/'tasks'/'both'))
    with shelf.writing('a.result') as f: f.write(b'a')
    class Ended: close = staticmethod(lambda: None)
    runs = [cluster.Cluster('local:2', Ended, None, shelf, shelf, in_use=cluster._in_use(shelf)) for _ in range(2)]
    close_cluster(runs[0], done=True)
    assert shelf.exists('a.result')
    close_cluster(runs[1], done=True)
    assert not list((tmp_path/'tasks').iterdir())

def test_a_folder_that_cannot_be_used(tmp_path):
    "Open to others, also as file://, or of no known kind: said before a worker is started"
    (tmp_path/'open').mkdir()
    (tmp_path/'open').chmod(0o777)
    for folder in tmp_path/'open', f'file://{tmp_path}/open':
        with pytest.raises(ClusterError, match='others can write to it'): open_cluster('local:1', folder)
    (tmp_path/'open').chmod(0o1777) # as /tmp: others cannot put a folder of theirs in place of `tasks`
    cluster._private(cluster.Shelf(str(tmp_path/'open')), own=False)
    with pytest.raises(ClusterError): cluster._private(cluster.Shelf(str(tmp_path/'open')))
    with pytest.raises(ClusterError) as e: open_cluster('local:1', 'nowhere://x/y')
    assert one_line(e).startswith('[train] folder nowhere://x/y: ValueError: Protocol not known')
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError) as e: open_cluster('local:1', tmp_path/'file')
    assert '[train] folder' in one_line(e)

def test_a_full_disk_is_named(tmp_path, monkeypatch):
    "With the file, and what to do; nothing is left of it"
    shelf = cluster.Shelf(str(tmp_path/'shelf'))
    with pytest.raises(OSError) as e:
        with shelf.writing('a'): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert f"make room there, or name another folder with [train] folder: '{tmp_path}/shelf/a." in one_line(e)
    assert not list((tmp_path/'shelf').iterdir())

def one_line(e): return '\n' not in str(e.value) and str(e.value)

def test_no_scheduler(tmp_path, monkeypatch):
    "None there, one that takes a connection and says nothing, and none that runs a page"
    monkeypatch.setattr(cluster, 'ANSWER_S', 1)
    with pytest.raises(ClusterError) as e: open_cluster('tcp://127.0.0.1:9', tmp_path)
    assert one_line(e).startswith('cluster tcp://127.0.0.1:9: no answer within 1 s')
    with socket.create_server(('127.0.0.1', 0)) as s:
        address = f'tcp://127.0.0.1:{s.getsockname()[1]}'
        with pytest.raises(ClusterError) as e: open_cluster(address, tmp_path)
    assert one_line(e).startswith(f'cluster {address}: no answer within 1 s')

def test_another_server_is_no_scheduler(tmp_path, monkeypatch, capfd):
    "One that speaks HTTP: one line, and nothing of Dask's"
    monkeypatch.setattr(cluster, 'ANSWER_S', 1)
    class Handler(BaseHTTPRequestHandler): timeout = 1 # it waits for the end of a line that does not come
    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'tcp://127.0.0.1:{server.server_port}'
    try:
        with pytest.raises(ClusterError) as e: open_cluster(address, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert one_line(e).startswith(f'cluster {address}: ') and 'is `dask scheduler` running there' in one_line(e)
    assert 'Traceback' not in capfd.readouterr().err

@pytest.mark.parametrize('address', ['local:0', 'local:-1', 'local:x', 'lokal', 'tcp://host', 'tcp://host:0',
                                     'tcp://host:65536', 'tls://host:8786', 'http://host:8786', 'tcp://a@b:1'])
def test_an_address_that_is_none(address):
    with pytest.raises(ValueError) as e: Job(cluster=address)
    assert one_line(e).startswith(f"parameter cluster '{address}' is none of local, local:N (N worker processes) and ")

def test_scheduler_without_workers(tmp_path, monkeypatch):
    from distributed import LocalCluster
    monkeypatch.setattr(cluster, 'ANSWER_S', 1)
    with LocalCluster(n_workers=0, host='127.0.0.1', dashboard_address=None) as own:
        with pytest.raises(ClusterError) as e: open_cluster(own.scheduler_address, tmp_path)
    assert 'the scheduler has no workers; start some with `dask worker --nthreads 1 tcp://' in one_line(e)

def test_existing_scheduler_of_other_versions(rows, tmp_path, monkeypatch):
    "A scheduler that was there is used and left; a worker that differs is refused before anything is sent"
    from distributed import LocalCluster
    with LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address=None) as own:
        other = open_cluster(own.scheduler_address, tmp_path)
        assert stays_of(rows, other).X.shape == (len(rows), len(SPEC.names))
        close_cluster(other, done=True)
        version = cluster.metadata.version
        monkeypatch.setattr(cluster.metadata, 'version', lambda o: '9.9' if o == 'lightgbm' else version(o))
        with pytest.raises(ClusterError) as e: open_cluster(own.scheduler_address, tmp_path)
        monkeypatch.undo()
        assert f'has lightgbm {version("lightgbm")} instead of 9.9; install the same there' in one_line(e)
        monkeypatch.setattr(cluster, '_sees', os.path.isfile) # as if the worker saw another disk
        with pytest.raises(ClusterError) as e: open_cluster(own.scheduler_address, tmp_path)
        assert 'does not see' in one_line(e) and '[train] folder' in one_line(e)

def test_bad_rows(rows, pool, tmp_path):
    "A cell that is no number: file, row and column, as in this process; an error within a part: its patients"
    bad = tmp_path/'bad.csv'
    own = rows[rows.patient_id.isin(rows.patient_id.unique()[:20])].drop(columns='time').astype(dict(HR=object))
    own.loc[own.index[7], 'HR'] = 'fast'
    own.rename(columns=dict(label='SepsisLabel')).to_csv(bad, index=False)
    said = []
    for o in None, pool:
        with pytest.raises(ValueError) as e: load_stays(str(bad), SPEC, cluster=o)
        said.append(one_line(e))
    assert said[0] == said[1] and 'bad.csv' in said[1] and 'row' in said[1] and 'fast' in said[1], said
    odd = rows.assign(HR=rows.HR.astype(object).where(rows.index != 40, 'fast'))
    with pytest.raises(ValueError) as e: table_stays(odd, SPEC, digest='odd', cluster=pool)
    assert one_line(e).startswith('row 0 and 7583 more, patients ') and 'fast' in one_line(e)

def test_distributed_booster(rows, pool, here):
    "Rows divided among two workers: another model, about as good; refused without a cluster"
    pool.distributed_booster = True
    try: across = run(stays_of(rows, new_run(pool, 'across')), bags=1)
    finally: pool.distributed_booster = False
    a,b = (o.metrics.value.auroc for o in (across, run(stays_of(rows), bags=1)))
    assert abs(a-b) < .08 and content(across.model) != content(here['LightGBM'].model)
    with pytest.raises(ValueError, match='parameter distributed_booster'):
        Job(distributed_booster='true').cluster_of(load_settings())

def test_the_page_has_the_same_figures(pages):
    (a,_),(b,html) = (pages[o].result() for o in ('', 'local:2'))
    for o in a, b:
        for m in o['models'].values(): m.pop('run_id')
    assert a == b
    for text in 'local:2', 'workers_cpu_s', 'moved_mb': assert text in html

def test_a_page_without_scheduler(pages):
    "One line, and nothing of Dask's"
    with pytest.raises(TrainingFailed) as e: pages['tcp://127.0.0.1:9'].result()
    assert 'ClusterError: cluster tcp://127.0.0.1:9: no answer within 10 s' in str(e.value).splitlines()[0]
