"What label 1 means: every short stay under every rule, and the same onsets under all of them"
import ast, json, math
from itertools import product
import numpy as np, pandas as pd, pytest
from conftest import ROOT
from sepsis_nb.data import read_source
from sepsis_nb.features import SPECS
from sepsis_nb.model.compare import positives_by_fold
from sepsis_nb.model.gate import gate, gate_record
from sepsis_nb.model.metrics import evaluate
from sepsis_nb.model.registry import champion_decision
from sepsis_nb.model.search import best_utility
from sepsis_nb.model.stays import load_stays, table_stays
from sepsis_nb.rows.onset import CHALLENGE_RULE, LabelRule, label_findings, label_rows, onset_of, rule_from_dict

RULES = CHALLENGE_RULE, LabelRule(2, 1), LabelRule(2, 1, True), LabelRule(0, 0), LabelRule(1, 3, True)

def stays_of(values, longest):
    "All stays of up to `longest` hours with these labels, as code, hour and label of their rows"
    all_ = [o for n in range(1, longest+1) for o in product(values, repeat=n)]
    code = np.repeat(np.arange(len(all_)), [len(o) for o in all_])
    return all_, code, np.concatenate([np.arange(len(o)) for o in all_]), np.concatenate(all_)

def fits(stay, onset, rule): # onset: (k,) that may be; (k,) bool: whether they explain the labels of a stay
    hour,label = np.arange(len(stay)), np.array(stay)
    made,kept = label_rows(*np.broadcast_arrays(hour, onset[:,None]), rule)
    return (np.isnan(label) | (made == label) & kept).all(1) & (kept | np.isnan(label)).all(1)

@pytest.mark.parametrize('rule', RULES, ids=str)
def test_onset_is_told_or_bounded(rule):
    "The onset of a stay is the only one that explains its labels, or one of several and not seen"
    all_,code,hour,label = stays_of((0., 1.), 6)
    got,seen = onset_of(label, hour, rule, code)
    may = np.arange(-20., 30)
    for stay,onset,told in zip(all_, got, seen):
        if 1 not in stay:
            assert math.isnan(onset) and not told
            continue
        able = may[fits(stay, may, rule)]
        if not len(able): continue # a contradiction, see below
        assert onset in able and told == (len(able) == 1), (stay, onset, told, able)

@pytest.mark.parametrize('rule', RULES, ids=str)
def test_contradictions_are_found(rule):
    "A stay has a finding where no onset, in an hour or between two, explains its labels; others have none"
    all_,code,hour,label = stays_of((0., 1., np.nan), 5)
    who,may = np.char.add('s', code.astype(str)), np.arange(-20, 30, .5)
    wrong = np.array([1 in o and not fits(o, may, rule).any() for o in all_])
    def of(k): return label_findings(who[k], label[k], hour[k], rule, code[k])
    assert len(of(~wrong[code])) == 0
    for i in np.flatnonzero(wrong)[::20]: assert (of(code == i).stays == 1).all() and len(of(code == i))
    assert set(of(code >= 0).advice.str.len() > 20) <= {True}

def cohort(rule, rows=CHALLENGE_RULE, hours=40):
    "Stays labelled by a rule, as far as another one leaves their rows, and risks that rise before onset"
    rng,n = np.random.default_rng(1), len(ONSETS)
    hour,onset = np.tile(np.arange(1., hours+1), n), np.repeat(ONSETS, hours)
    near = np.nan_to_num(np.clip((hour-onset+20)/20, 0, 1))
    risk = np.round(np.clip(rng.normal(.2+.4*near, .15), 0, 1), 2)
    df = pd.DataFrame(dict(patient_id=np.repeat([f'p{i}' for i in range(n)], hours), time=hour,
                           HR=rng.normal(80+20*near, 9), Resp=rng.normal(16, 3, len(hour)),
                           Temp=rng.normal(37, .5, len(hour)), label=label_rows(hour, onset, rule)[0]))
    k = label_rows(hour, onset, rows)[1]
    return df[k].reset_index(drop=True), risk[k]

ONSETS = [*range(16, 38, 2), *[np.nan]*19]
@pytest.mark.parametrize('rule', [LabelRule(12), LabelRule(6, 6), LabelRule(0, 4), LabelRule(12, 1, True)], ids=str)
def test_what_counts_from_onset_is_the_same_under_every_rule(rule):
    "Utility, thresholds and lead times of the same rows and risks; other figures are of another label"
    timed = ['utility', 'ppv_alert', 'sensitivity_in_time', 'sensitivity_window', 'lead_time_median']
    def figures(made, told):
        df,risk = cohort(made, rule)
        s = table_stays(df, SPECS['monitor4'], rule=told)
        positive = positives_by_fold(s, s.who%3, risk)
        return *best_utility(s, risk, s.y == s.y), positive, evaluate(*s.of(risk, positive), n=0, rule=s.rule).value
    (*a,ma),(*b,mb) = (figures(o, o) for o in (CHALLENGE_RULE, rule))
    assert a[:2] == b[:2] and (a[2] == b[2]).all() and (ma[timed] == mb[timed]).all()
    assert rule.before_h == 6 and rule.cut or ma.auroc != mb.auroc
    assert rule.before_h == 6 or (figures(rule, CHALLENGE_RULE)[3][timed] != ma[timed]).any() # declared wrongly

def test_data_says_where_its_labels_contradict_their_rule(tmp_path):
    df,_ = cohort(LabelRule(6, 3))
    df.to_csv(tmp_path/'ward.csv', index=False)
    plain = load_stays(str(tmp_path/'ward.csv'), SPECS['monitor4'])
    found = plain.findings.set_index('finding').loc['label 0 after label 1']
    assert found.stays == 11 and found['first'].startswith('patient p0, row ') and 'after_h' in found.advice
    row = int(found['first'].split()[-1])
    assert df.label[row] == 0 and df.label[row-1] == 1
    told = load_stays(str(tmp_path/'ward.csv'), SPECS['monitor4'], rule=LabelRule(6, 3))
    assert set(told.findings.finding) == {'unit assumed'}
    assert told.rule == LabelRule(6, 3) and told.digest == plain.digest

ONSET = """
[[table]]
files = "rows.csv"
patient = "id"
time = "t"
[[table]]
files = "onset.csv"
patient = "id"
onset = "onset"
"""
@pytest.mark.parametrize('onset,label,finding', [
    (2, [1, 1, 0, 0], 'stay of a patient whose onset is in another'),
    (500, [0, 0, 1, 1], 'stay of a patient whose onset is in another'),
    (-50, [1, 1, 0, 0], 'onset before the first row')])
def test_an_onset_labels_one_stay_and_is_found_before_its_rows(tmp_path, onset, label, finding):
    (tmp_path/'rows.csv').write_text('id,t,HR\n' + ''.join(f'a,{t},80\n' for t in (0, 2, 500, 502)))
    (tmp_path/'onset.csv').write_text(f'id,onset\na,{onset}\n')
    (tmp_path/'m.toml').write_text(ONSET)
    source = read_source(tmp_path, map=str(tmp_path/'m.toml'))
    assert source.df.label.tolist() == label
    assert source.notes.set_index('finding').loc[finding, 'rows'] == 2

def test_rules_of_any_type_are_refused_with_their_key():
    for key,value in product(('before_h', 'after_h', 'cut'), ('six', None, [], -1, math.nan, 10**9, 'End')):
        with pytest.raises(ValueError, match=rf'ward.toml \[label\]: .*{key}'):
            rule_from_dict({key:value}, 'ward.toml [label]')
    with pytest.raises(ValueError, match='cut'): rule_from_dict(dict(cut=True))

def test_runs_of_other_labels_are_not_compared():
    rng = np.random.default_rng(0)
    value,draws = dict(utility=.4, auroc=.8, auprc=.1), {m:rng.random(9) for m in ('utility', 'auroc', 'auprc')}
    rules = CHALLENGE_RULE, LabelRule(6, 6, True)
    a,b = (json.loads(json.dumps(gate_record('e', 'm', value, draws, r))) for r in rules)
    with pytest.raises(ValueError, match='labels do not mean the same'): gate(dict(gate=a), dict(gate=b))
    moved,why = champion_decision(dict(score='.4', evaluation='e'), .9, 'e', (a, b))
    assert not moved and 'labels do not mean the same' in why

def ruled(tree): # name to the place of `rule` among the arguments, of functions and classes where it has a default
    for n in ast.walk(tree):
        own = [f for f in n.body if getattr(f, 'name', '') == '__init__'] if isinstance(n, ast.ClassDef) else \
              [n] if isinstance(n, ast.FunctionDef) and n.name != '__init__' else []
        for f in own:
            names = [a.arg for a in f.args.args]
            defaults = dict(zip(names[::-1], f.args.defaults[::-1]))
            if getattr(defaults.get('rule'), 'id', '') == 'CHALLENGE_RULE':
                yield n.name, names.index('rule')-(n is not f)

def unruled(tree, names):
    "Calls of these functions that leave the rule to its default"
    for n in ast.walk(tree):
        if not isinstance(n, ast.Call) or (f := getattr(n.func, 'id', '')) not in names: continue
        given = any(k.arg in ('rule', None) for k in n.keywords)
        if not given and (len(n.args) <= names[f] or any(isinstance(a, ast.Starred) for a in n.args)):
            yield f'{f} in line {n.lineno}'

def test_no_call_forgets_the_rule():
    "In the package and in the training page, the default is for those who call it by hand"
    rooms = (p for d in ('model', 'report', 'rows') for p in (ROOT/'sepsis_nb'/d).glob('*.py'))
    trees = {p.relative_to(ROOT).as_posix():ast.parse(p.read_text()) for p in rooms}
    names = dict(o for t in trees.values() for o in ruled(t))
    assert {'evaluate', 'Cohort', 'best_threshold', 'lead_times', 'plot_stay', 'evaluation_of'} <= set(names)
    cells = json.loads((ROOT/'nbs'/'02_train.ipynb').read_text())['cells']
    page = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    trees['02_train'] = ast.parse(page)
    wrong = {p:list(unruled(t, names)) for p,t in trees.items()}
    assert not {p:o for p,o in wrong.items() if o}
