"Dashboard and alert rules ask for metrics and labels that a worker gives, by the grammar and the formats of Prometheus"
import json, re
from collections import Counter
from dataclasses import replace
import numpy as np, promql_parser as promql, pytest, yaml
from conftest import ROOT
from prometheus_client.parser import text_string_to_metric_families
from sepsis_nb.model.policy import Policy
from sepsis_nb.ward.metrics import MeasuredScorer, Meter, Standing, WorkerCollector, metrics_text, new_registry

RULES = yaml.safe_load((ROOT/'deploy/prometheus/alerts.yml').read_text())
BOARD = json.loads((ROOT/'deploy/grafana/sepsis.json').read_text())
ADDED = {'job', 'instance'} # labels that Prometheus adds to all that it reads
ALERTS = [r for g in RULES['groups'] for r in g['rules']]

def query(panel, target): return target['expr'].replace('$__rate_interval', '5m')

QUERIES = [(r['alert'], r['expr'], set(re.findall(r'\$labels\.(\w+)', str(r['annotations'])))) for r in ALERTS]
QUERIES += [(p['title'], query(p, t), set(re.findall(r'\{\{(\w+)\}\}', t['legendFormat'])))
            for p in BOARD['panels'] for t in p['targets']]

@pytest.fixture(scope='module')
def exposed(store):
    "Name of each metric that a worker exposes, once every kind of thing has happened, to its labels"
    scorer = MeasuredScorer.of(store.scorer())
    meter = Meter(replace(scorer, policy=Policy(.3, .25, 6., budget=.2)))
    meter.add(Counter({'rows':2, 'dead.not-json':1}), np.zeros(2), 1.)
    meter.indeterminate['missing'] += 1
    standing = Standing({0}, {0}, set(), {0:1}, 1, 100, 0, 1., 1., 5.)
    text = metrics_text(new_registry(WorkerCollector(meter, lambda: standing))).decode()
    found = {s.name:set(s.labels) for f in text_string_to_metric_families(text) for s in f.samples}
    return {n:labels | ADDED for n,labels in found.items()} | dict(up=ADDED)

def labels_of(e, exposed):
    "Labels that the series of an expression have; `AssertionError`: it asks for a metric or a label that there is not"
    kind = type(e).__name__
    if kind in ('NumberLiteral', 'StringLiteral'): return set()
    if kind in ('ParenExpr', 'UnaryExpr', 'SubqueryExpr'): return labels_of(e.expr, exposed)
    if kind == 'MatrixSelector': return labels_of(e.vector_selector, exposed)
    if kind == 'VectorSelector':
        assert e.name in exposed, f'no metric {e.name}'
        asked = {m.name for m in e.matchers.matchers}
        assert asked <= exposed[e.name], f'{e.name} has no label {asked-exposed[e.name]}'
        return exposed[e.name]
    if kind == 'Call':
        found = set().union(*(labels_of(o, exposed) for o in e.args))
        return found-{'le'} if e.func.name == 'histogram_quantile' else set() if e.func.name == 'scalar' else found
    if kind == 'AggregateExpr':
        has,by = labels_of(e.expr, exposed), set(e.modifier.labels) if e.modifier else set()
        assert by <= has, f'{e} asks for {by-has}'
        return by
    assert kind == 'BinaryExpr', kind
    left,right = (labels_of(o, exposed) for o in (e.lhs, e.rhs))
    on = e.modifier.matching if e.modifier else None
    if on is not None: assert set(on.labels) <= left & right, f'{e} matches on {on.labels}, of {left} and {right}'
    elif 'Number' not in type(e.lhs).__name__+type(e.rhs).__name__ and left and right:
        assert left == right, f'{e}: {left} never match {right}'
    return left or right

@pytest.mark.parametrize('name, expr, shown', QUERIES, ids=[f'{n}-{k}' for k,(n,*_) in enumerate(QUERIES)])
def test_a_query_asks_for_what_there_is(name, expr, shown, exposed):
    assert shown <= labels_of(promql.parse(expr), exposed)

@pytest.mark.parametrize('wrong', [
    'sum(sepsis_nothing)', 'sum by (ward) (sepsis_lag_rows)', 'sepsis_rows_total{bed="1"}',
    'sepsis_lag_rows > sepsis_ready', 'sum(sepsis_lag_rows) > on (instance) sepsis_ready'])
def test_the_check_can_fail(wrong, exposed):
    with pytest.raises(AssertionError): labels_of(promql.parse(wrong), exposed)
    with pytest.raises(ValueError): promql.parse(wrong+')')

def test_rules_have_the_documented_form():
    assert set(RULES) == {'groups'} and {k for g in RULES['groups'] for k in g} <= {'name', 'interval', 'rules'}
    names = [r['alert'] for r in ALERTS]
    assert len(set(names)) == len(names)
    for r in ALERTS:
        assert {'alert', 'expr', 'labels', 'annotations'} <= set(r) <= {'alert', 'expr', 'for', 'labels', 'annotations'}
        assert re.fullmatch(r'[A-Z]\w+', r['alert']) and re.fullmatch(r'\d+[smhd]', r.get('for', '0s'))
        assert r['labels']['severity'] in ('page', 'ticket') and set(r['annotations']) == {'summary', 'description'}
        for text in r['annotations'].values(): # Go templates of the simplest kind
            assert set(re.findall(r'\{\{.*?\}\}', text)) <= {'{{ $value }}', '{{ $labels.instance }}'}

def test_dashboard_has_a_place_for_each_panel():
    panels,source = BOARD['panels'], ROOT/'deploy/grafana/provisioning/datasources/prometheus.yml'
    uid = yaml.safe_load(source.read_text())['datasources'][0]['uid']
    taken = np.zeros((100, 24), int)
    for p in panels:
        g = p['gridPos']
        taken[g['y']:g['y']+g['h'], g['x']:g['x']+g['w']] += 1
        assert g['x']+g['w'] <= 24 and {o['datasource']['uid'] for o in (p, *p['targets'])} == {uid}
        refs = [t['refId'] for t in p['targets']]
        assert len(set(refs)) == len(refs)
    assert taken.max() == 1 and len({p['id'] for p in panels}) == len({p['title'] for p in panels}) == len(panels)

def test_every_metric_is_used_or_known(exposed):
    "A metric that no query asks for is nobody's; the rest is for a person who looks closer"
    asked = ' '.join(e for _,e,_ in QUERIES)
    ours = {re.sub(r'_(bucket|sum|count)$', '', n) for n in exposed if n.startswith('sepsis_')}
    closer = {'sepsis_alerts_day', 'sepsis_patient_days_day'} # `sepsis doctor` reads them, which has no Prometheus
    assert {n for n in ours if n not in asked} == closer
