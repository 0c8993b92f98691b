"A user's own signals: from a file to training features, and with the spec to a worker that has no file"
import json, os, subprocess, sys
import pytest

OWN = '''[procalcitonin]
label = "procalcitonin"
unit = "ng/mL"
range = [0, 1000]
names = ["PCT"]
[HR]
range = [10, 300]
'''
TRAIN = '''
import numpy as np, pandas as pd
from sepsis_nb.features import VITALS, auto_spec, extract
from sepsis_nb.model.contract import contract, check_terms, reference_rows
df = pd.DataFrame(dict(patient_id='p1', time=np.arange(6.), HR=[80., 350, 90, 95, 5, 100], Resp=18.,
                       PCT=[.2, np.nan, 4., 2000., np.nan, 8.]))
spec = VITALS.plus('mean24(procalcitonin); since(procalcitonin); procalcitonin/HR')
assert 'procalcitonin_mean_24h' in auto_spec(df).names, 'it is in most rows'
terms = contract('toy', spec, .5) | dict(reference=reference_rows(spec, lambda X: np.full((len(X), 2), .5)))
check_terms('toy', terms)
X = extract(df, spec)
print(spec.to_json(), spec.digest, X.to_json(double_precision=15), terms['reference'], sep='\\n')
'''
SERVE = '''
import json, numpy as np, sys
from sepsis_nb.data import SIGNALS, parse
from sepsis_nb.features import FeatureSpec, new_states, prepare, step
from sepsis_nb.model.contract import reference_rows
from sepsis_nb.rows.labels import feature_label
assert 'procalcitonin' not in SIGNALS and SIGNALS['HR'].hi == 390
spec = FeatureSpec.from_json(sys.stdin.read())
out,state = [], new_states(spec, 1)[0]
for t,hr,pct in zip(range(6), (80., 350, 90, 95, 5, 100), (.2, None, 4., 2000., None, 8.)):
    row = {k:v for k,v in dict(patient_id='p1', time=t, HR=hr, Resp=18., PCT=pct).items() if v is not None}
    p = parse(json.dumps(row).encode(), spec.declared)
    out.append(step(spec, state, p.time, prepare(spec, [p.values])[0][0]).tolist())
assert parse(b'{"patient_id": "p1", "PCT": 3}', spec.declared).values[-1] == 3, 'alone it is a row too'
reference = reference_rows(spec, lambda X: np.full((len(X), 2), .5))
print(json.dumps([out, spec.digest, str(reference), feature_label('procalcitonin_mean_24h', spec.definitions)]))
'''

def run(code, tmp_path, own='', text=''):
    env = {k:v for k,v in os.environ.items() if not k.startswith('SEPSIS_') or k == 'SEPSIS_PATHS_CACHE'}
    env |= dict(SEPSIS_PATHS_WORK=str(tmp_path))
    if own: env['SEPSIS_DATA_SIGNALS'] = str(own)
    cmd = [sys.executable, '-c', code]
    return subprocess.run(cmd, input=text, capture_output=True, text=True, env=env, cwd=tmp_path)

def test_an_own_signal_goes_with_the_model(tmp_path):
    (tmp_path/'my.toml').write_text(OWN)
    r = run(TRAIN, tmp_path, own=tmp_path/'my.toml')
    assert not r.returncode, r.stderr[-2000:]
    spec,digest,X,reference = r.stdout.strip().split('\n')
    r = run(SERVE, tmp_path, text=spec)
    assert not r.returncode, r.stderr[-2000:]
    rows,again,same,label = json.loads(r.stdout.strip().replace('NaN', 'null'))
    table = json.loads(X)
    assert again == digest and same == reference and label == 'procalcitonin, mean of the last 24 h'
    for j,(name,column) in enumerate(table.items()):
        assert [row[j] for row in rows] == pytest.approx(list(column.values()), nan_ok=True), name
    assert table['HR_row']['1'] is None and table['HR_row']['4'] is None, 'beyond its own range'
    assert table['procalcitonin_mean_24h']['3'] == pytest.approx(2.1), '2000 is beyond its range'

@pytest.mark.parametrize('text,said', [('[PCT]\nlow = 1', "signal PCT: unknown key 'low'"), ('[PCT', 'not TOML'),
                                       ('[HR]\nunit = "1/s"', 'signal HR: its unit is 1/min')])
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, said):
    (tmp_path/'my.toml').write_text(text)
    r = run("from sepsis_nb.cli import main; main(['produce', 'sample'])", tmp_path, own=tmp_path/'my.toml')
    last = r.stderr.strip().split('\n')
    assert r.returncode and len(last) == 1 and 'my.toml' in last[0] and said in last[0], (r.stdout, r.stderr[-800:])

def test_a_missing_file_is_one_line_wherever_rows_are_read(tmp_path):
    r = run("from sepsis_nb.cli import main; main(['inspect', 'sample'])", tmp_path, own='nope.toml')
    last = r.stderr.strip().split('\n')
    assert r.returncode and len(last) == 1 and 'nope.toml' in last[0], (r.stdout, r.stderr[-800:])

def test_score_reads_with_the_definitions_of_the_model(tmp_path, monkeypatch, caplog):
    from types import SimpleNamespace
    from click.testing import CliRunner
    from sepsis_nb import cli
    from sepsis_nb.data import read
    from sepsis_nb.model import load
    from sepsis_nb.model.policy import never_policy
    from sepsis_nb.rows.signals import declare
    path,seen = tmp_path/'ward.csv', []
    path.write_text('patient_id,ICULOS,HR,pct [µg/L]\np1,1,80,2.5\n')
    own = declare(dict(procalcitonin=dict(label='procalcitonin', unit='ng/mL', range=[0, 1000], names=['PCT'],
                                          units={'µg/L':1})), 'my.toml')['procalcitonin']
    def score(df, progress): seen.append(df); return df
    scorer = SimpleNamespace(spec=SimpleNamespace(definitions=(own,)), policy=never_policy('too few'), score=score)
    monkeypatch.setattr(load, 'load_scorer', lambda uri: scorer)
    said = CliRunner().invoke(cli.main, ['score', str(path)])
    assert not said.exit_code and 'the model never alerts: too few' in said.output, said.output
    assert seen[0].PCT.tolist() == [2.5] and 'ignored columns' not in caplog.text
    assert 'PCT' not in read(path) and 'in a file, which `[data] signals` of the settings names' in caplog.text

def test_a_message_reads_a_unit_behind_a_known_name():
    from sepsis_nb.data import parse
    from sepsis_nb.features import FULL
    from sepsis_nb.rows.strict import BadMessage
    def glucose(**more):
        raw = json.dumps(dict(patient_id='p1', HR=80, note='bed [3]') | more, ensure_ascii=False).encode()
        return parse(raw, FULL.declared).values[[s.name for s in FULL.declared].index('Glucose')]
    assert glucose(**{'Glucose [mmol/L]':5.5}) == pytest.approx(99.1, abs=.1)
    assert glucose(**{'GLUCOSE（mg/dL）':99}) == glucose(**{'Glucose ':1, 'Glucose':99}) == 99
    for key,slug in {'Glucose [stone]':'unknown-unit', 'glucose (mmol/L)':'duplicate-name'}.items():
        with pytest.raises(BadMessage) as e: glucose(**{key:5.5, 'Glucose':99})
        assert e.value.slug == slug
