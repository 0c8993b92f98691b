"Why a row alerts: words for every feature, and effects that add up to the risk that is shown"
from dataclasses import replace
import numpy as np, orjson, pytest
from sepsis_nb.data import read
from sepsis_nb.features import SEED_SPEC, SPECS, auto_spec, fold_table
from sepsis_nb.model.kinds import KINDS, fit_model
from sepsis_nb.model.policy import threshold_policy
from sepsis_nb.model.risk import Calibration
from sepsis_nb.model.scorer import Scorer
from sepsis_nb.prove.audit import differs_from_explained, undisturbed
from sepsis_nb.prove.harness import as_records
from sepsis_nb.rows.derived import DERIVED
from sepsis_nb.rows.labels import feature_words

SAMPLE = read('sample').iloc[:1500]
MORE = '; '.join(('HR-mean24(HR)', 'Temp/mean6(Temp)', 'since(Lactate)', 'HR/SBP', 'SBP-DBP', 'low(SOFA_partial)'))
ALL = {k:s for k,s in SPECS.items()} | dict(seed=SEED_SPEC, auto=auto_spec(SAMPLE), more=SPECS['vitals'].plus(MORE))

@pytest.mark.parametrize('name', ALL)
def test_every_feature_has_words_of_its_own(name):
    spec = ALL[name]
    words = {f.name:feature_words(f, spec) for f in spec.features}
    labels = {s.name:s.label for s in spec.declared}
    for f in spec.features:
        w = words[f.name]
        assert w.text and not set('{}_') & set(w.text), f'{f.name}: {w.text}'
        assert not f.hours or f'{f.hours} h' in w.text
        assert all(labels[s] in w.text for s in (f.signal, f.other) if s in labels)
        assert {s for group in w.made_of for s in group} <= set(spec.signals)
        assert len(w.made_of) == bool(f.signal)+bool(f.other)
        assert w.signal in (*spec.signals, *DERIVED, '') and bool(w.signal) == bool(w.made_of)
    assert len({w.text for w in words.values()}) == len(words), 'two features read alike'

def fitted(name, spec): # alerts at the middle of its risks
    X,*_ = fold_table(SAMPLE, spec)
    y = (np.nan_to_num(X[:,0])+np.random.default_rng(0).normal(0, 9, len(X)) > np.nanmedian(X[:,0])).astype(int)
    params = dict(n_estimators=20) | (dict(learning_rate=.2, min_child_samples=20) if name == 'LightGBM' else {})
    model = fit_model(name, params, X, y, np.ones(len(X)))
    explain = KINDS[name].contributions
    scorer = Scorer(spec, threshold_policy(.5), name, '1', 'r', model.predict_proba, calibration=Calibration(.8, -.1),
                    contributions=explain and (lambda X: explain(model, X)))
    return replace(scorer, policy=threshold_policy(np.median(scorer.predict(X)[:,1]))), X

@pytest.mark.parametrize('name', KINDS)
def test_effects_add_up_to_the_risk(name):
    "Or the model says that it has none; stream and table explain alike"
    scorer,X = fitted(name, SPECS['vitals'])
    alerts = [v for *_,v,_ in undisturbed(scorer, as_records(SAMPLE), 10_000).alerts.values()]
    assert len(alerts) > 10
    if scorer.contributions is None:
        assert {orjson.loads(v)['explanation'] for v in alerts} == {'none'}
        with pytest.raises(ValueError, match='no exact contributions'): scorer.explain(SAMPLE)
        return
    risk = 1/(1+np.exp(-scorer.effects(X).sum(1)))
    np.testing.assert_allclose(risk, scorer.predict(X)[:,1], rtol=0, atol=1e-6)
    assert differs_from_explained(scorer.explain(SAMPLE, alerts=True), alerts) == 0
    other = replace(scorer, calibration=Calibration(.7, -.1))
    assert differs_from_explained(other.explain(SAMPLE, alerts=True), alerts) > 0

def test_an_alert_says_how_old_a_value_is():
    "By the clock of the stay, also for signals that came once, and in whatever batch the row came"
    scorer,_ = fitted('LightGBM', SPECS['vitals'])
    runs = [undisturbed(scorer, as_records(SAMPLE), 10_000, seed=n) for n in (0, 1)]
    assert runs[0] == runs[1]
    at = SAMPLE.set_index(['patient_id', 'time'])
    seen = []
    for *_,v,_ in runs[0].alerts.values():
        o = orjson.loads(v)
        id,time = o['patient_id'], o['original_data']['time']
        for e in o['explanation']:
            if not e['signal']: continue
            known = at.loc[id][e['signal']].loc[:time].dropna().index
            assert e['hours'] == (time-known[-1] if len(known) else None), (id, time, e)
            seen.append(e['hours'])
    assert max(h for h in seen if h is not None) > 1
