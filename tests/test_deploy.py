"The files for operators, without a container engine: schemas, the tools' own checks where they are, and rules by hand"
import json, os, re, shutil, subprocess, sys, tomllib
import jsonschema, pytest, yaml
from conftest import ROOT
from sepsis_nb.cli import main
from sepsis_nb.settings import SECTIONS, load_settings

DEPLOY = ROOT/'deploy'
EXAMPLE = dict(l.split('=', 1) for l in (DEPLOY/'.env.example').read_text().splitlines() if l and l[0] != '#')

def filled(o):
    "With the variables of .env.example, which compose fills into the texts of what it has read"
    if isinstance(o, dict): return {k:filled(v) for k,v in o.items()}
    if isinstance(o, list): return [filled(v) for v in o]
    if not isinstance(o, str): return o
    return re.sub(r'\$\{(\w+)(:[-?]([^}]*))?\}', lambda m: EXAMPLE.get(m[1]) or m[3] or '', o)

COMPOSE = filled(yaml.safe_load((DEPLOY/'compose.yml').read_text()))
SERVICES = COMPOSE['services']
OWN = {n:s for n,s in SERVICES.items() if s['image'] == EXAMPLE['SEPSIS_IMAGE']}
OURS = {n:s for n,s in OWN.items() if s.get('entrypoint', ['sepsis'])[0] == 'sepsis'}

def test_compose_fits_the_specification():
    check = jsonschema.Draft7Validator(json.loads((ROOT/'tests/compose-spec.json').read_text())).validate
    check(COMPOSE)
    for key,bad in ('ports', 'many'), ('read_only', [1]), ('no_such_key', 1): # the schema can fail
        with pytest.raises(jsonschema.ValidationError):
            check(dict(services=dict(a=SERVICES['worker'] | {key:bad})))

COMPOSE_COMMAND = next((c for c in (['docker', 'compose'], ['docker-compose']) if shutil.which(c[0]) and
                        not subprocess.run([*c, 'version'], capture_output=True).returncode), None)
if COMPOSE_COMMAND: # it reads the file without an engine, too; the schema above is the check that runs everywhere
    def test_compose_reads_it():
        args = '--env-file', '.env.example', '-f', 'compose.yml', '--profile', '*', 'config', '-q'
        r = subprocess.run([*COMPOSE_COMMAND, *args], cwd=DEPLOY, capture_output=True, text=True)
        assert not r.returncode, r.stderr

def test_every_variable_has_an_example():
    named = set(re.findall(r'\$\{(\w+)', (DEPLOY/'compose.yml').read_text()))
    assert named == set(EXAMPLE)
    for n in named: assert not re.search('PASSWORD|TOKEN|SECRET|KEY', n)

def test_services_have_least_rights():
    for n,s in SERVICES.items():
        assert re.fullmatch(r'[\w./-]+:v?\d+(\.\d+)+[\w.-]*', s['image']), f'{n}: pin {s["image"]}'
        assert s['security_opt'] == ['no-new-privileges:true'] and s['logging']['options']['max-size'], n
        assert not {'privileged', 'network_mode', 'pid', 'ipc', 'cap_add', 'devices'} & set(s), n
        assert not any('docker.sock' in str(v) for v in s.get('volumes', [])), n
        for p in s.get('ports', []): assert p.startswith('127.0.0.1:') or n == 'board', f'{n}: {p} is open to all'
        for k,v in (s.get('environment') or {}).items():
            assert not re.search('PASSWORD|TOKEN|SECRET', k) or k.upper().endswith('_FILE'), f'{n}: {k} holds a secret'
    for n,s in OWN.items(): assert s['read_only'] and s['cap_drop'] == ['ALL'] and s['pids_limit'], n
    assert COMPOSE['networks']['line']['internal'], 'the broker has no login'
    assert all('line' in s['networks'] for s in SERVICES.values())

def test_what_services_name_is_there():
    for n,s in SERVICES.items():
        assert set(s.get('depends_on', [])) <= set(SERVICES) and set(s['networks']) <= set(COMPOSE['networks'])
        assert set(s.get('secrets', [])) <= set(COMPOSE['secrets']), n
        used = {v for v in (s.get('environment') or {}).values() if str(v).startswith('/run/secrets/')}
        assert {v.rpartition('/')[2] for v in used} == set(s.get('secrets', [])), f'{n}: secrets and variables differ'
        for v in s.get('volumes', []):
            if isinstance(v, dict):
                assert v['read_only'] and not v['bind']['create_host_path'], n
                assert v['source'] == EXAMPLE['TRAIN_DATA'] or (DEPLOY/v['source']).is_dir(), f'{n}: no {v["source"]}'
            else: assert v.split(':')[0] in COMPOSE['volumes'], n
    table = (DEPLOY/'secrets/README.md').read_text()
    for o in COMPOSE['secrets'].values(): assert f"`{o['file'].rpartition('/')[2]}`" in table
    needs = [d for s in SERVICES.values() if isinstance(d := s.get('depends_on'), dict)]
    waited = {n for d in needs for n,how in d.items() if how['condition'] == 'service_healthy'}
    assert waited and all('healthcheck' in SERVICES[n] for n in waited)

@pytest.mark.parametrize('name', OURS)
def test_services_run_commands_with_settings_that_there_are(name, tmp_path):
    s,at = OURS[name], str(tmp_path)
    command = s.get('entrypoint', [])[1:] or s.get('command', ['worker']) # as of the image
    found = main
    for word in command[:2 if command[0] == 'topics' else 1]: found = found.commands[word]
    for n in s.get('secrets', []): (tmp_path/n).write_text('0123456789abcdef\n')
    env = {k:str(v).replace('/run/secrets', at) for k,v in s['environment'].items()}
    known = {f'SEPSIS_{o.upper()}_' for o in SECTIONS}
    assert all(any(k.startswith(o) for o in known) for k in env), env
    assert load_settings(env=env).kafka.bootstrap_servers == 'kafka:9092'

def steps(text):
    "Instructions of a Dockerfile as (name, arguments)"
    text = re.sub(r'(?m)^\s*#.*\n', '', text).replace('\\\n', ' ')
    return [tuple(l.split(None, 1)) for l in text.splitlines() if l.strip()]

def complaints(text):
    "What is wrong with a Dockerfile, as hadolint would have it"
    found,last = [], {}
    for name,rest in steps(text):
        last[name] = rest
        pinned = re.match(r'\S+:v?\d+\.\d[\w.-]*( AS \w+)?$', rest)
        if name == 'FROM' and not pinned: found.append(f'unpinned {rest}')
        if name == 'ADD': found.append('ADD: use COPY')
        if name in ('CMD', 'ENTRYPOINT') and not rest.startswith('['): found.append(f'{name} in shell form')
        if name == 'RUN' and re.search(r'\b(curl|wget|sudo)\b|https?://', rest): found.append('fetches by hand')
        tidy = '--no-install-recommends' in rest and 'rm -rf /var/lib/apt/lists' in rest
        if 'apt-get install' in rest and not tidy: found.append('apt-get leaves more than it should')
        if 'pip install' in rest and '-c constraints.txt' not in rest: found.append('pip without constraints.txt')
        if name in ('ENV', 'ARG') and re.search('PASSWORD|TOKEN|SECRET', rest): found.append(f'a secret in {name}')
        if name == 'FROM': last.pop('USER', None) # of the stage before
    if not re.fullmatch(r'[1-9]\d*:[1-9]\d*', last.get('USER', '')): found.append('USER is not a number above 0')
    return found

def test_dockerfile():
    text = (DEPLOY/'Dockerfile').read_text()
    assert not complaints(text)
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    for extra in re.search(r"'\.\[([\w,]+)\]'", text)[1].split(','): assert extra in project['optional-dependencies']
    rules = [l for l in (DEPLOY/'Dockerfile.dockerignore').read_text().splitlines() if l and l[0] != '#']
    for name,rest in steps(text):
        if name != 'COPY' or '--from' in rest: continue
        for source in rest.split()[:-1]: assert (ROOT/source).exists() and f'!{source}' in rules, source
    made = re.search(r'install -d .* -m 0700 ([/\w ]+)', text)[1].split()
    for s in OWN.values(): # a named volume takes owner and mode of the folder in the image
        for v in s.get('volumes', []): assert isinstance(v, dict) or v.split(':')[1] in made

@pytest.mark.parametrize('line, words', {
    'FROM python:latest':'unpinned', 'FROM python':'unpinned', 'ADD https://x.example/a /a':'ADD',
    'CMD sepsis worker':'shell', 'RUN curl https://x.example | sh':'by hand',
    'RUN apt-get update && apt-get install -y git':'apt-get',
    'RUN pip install numpy':'constraints', 'ENV DB_PASSWORD=x':'secret', 'USER root':'USER', 'USER 0:0':'USER'}.items())
def test_the_rules_can_fail(line, words):
    text = (DEPLOY/'Dockerfile').read_text()+line+'\n'
    assert any(words in o for o in complaints(text))

def test_prometheus_and_grafana_name_what_there_is():
    p = yaml.safe_load((DEPLOY/'prometheus/prometheus.yml').read_text())
    assert set(p) == {'global', 'rule_files', 'scrape_configs'} and p['rule_files'] == ['alerts.yml']
    for job in p['scrape_configs']:
        assert set(job) <= {'job_name', 'static_configs', 'dns_sd_configs'}
        for d in job.get('dns_sd_configs', []):
            env = {k:str(v) for k,v in SERVICES[d['names'][0]]['environment'].items()}
            assert d['type'] == 'A' and d['port'] == int(env['SEPSIS_WORKER_WEB_PORT'])
            assert env['SEPSIS_WORKER_WEB_HOST'] == '0.0.0.0', 'nobody could ask it'
    source, = yaml.safe_load((DEPLOY/'grafana/provisioning/datasources/prometheus.yml').read_text())['datasources']
    assert source['url'] == 'http://prometheus:9090'
    boards, = yaml.safe_load((DEPLOY/'grafana/provisioning/dashboards/sepsis.yml').read_text())['providers']
    assert boards['options']['path'] in [v['target'] for v in SERVICES['grafana']['volumes'] if isinstance(v, dict)]

needs_promtool = pytest.mark.skipif(not shutil.which('promtool'), reason='no promtool here: apt-get install prometheus')
def promtool(*args):
    r = subprocess.run(['promtool', *map(str, args)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return r.returncode, r.stdout

@needs_promtool
def test_prometheus_takes_its_files_and_all_queries_of_the_dashboard(tmp_path):
    assert promtool('check', 'config', DEPLOY/'prometheus/prometheus.yml')[0] == 0
    text = (DEPLOY/'grafana/sepsis.json').read_text()
    queries = [q for p in json.loads(text)['panels'] for o in p.get('targets', ()) if (q := o.get('expr'))]
    assert len(queries) > 10
    def checked(queries):
        queries = [re.sub(r'\$__\w+', '5m', q) for q in queries] # what Grafana fills in
        rules = [dict(record=f'q{i}', expr=q) for i,q in enumerate(queries)]
        (tmp_path/'rules.yml').write_text(yaml.safe_dump(dict(groups=[dict(name='dashboard', rules=rules)])))
        return promtool('check', 'rules', tmp_path/'rules.yml')
    code,said = checked(queries)
    assert not code, said
    assert checked(['sum(sepsis_rows_total'])[0], 'the check can fail'

CALM = { # a day and more, by the minute, of a line on which nobody is to be called
    'up{job="worker",instance="w"}':'1x1600', 'sepsis_partitions_assigned{instance="w"}':'4x1600',
    'sepsis_lag_rows{instance="w",partition="0"}':'0x1600', 'sepsis_ready{instance="w"}':'1x1600',
    'sepsis_last_commit_timestamp_seconds{instance="w"}':'0+60x1600',
    'sepsis_start_timestamp_seconds{instance="w"}':'0x1600', 'sepsis_rows_total{instance="w"}':'0+1000x1600',
    'sepsis_dead_letters_total{instance="w",reason="no-signal"}':'0x1600',
    'sepsis_unanswered_total{instance="w"}':'0x1600',
    'sepsis_latency_seconds_bucket{instance="w",le="1"}':'0+1000x1600',
    'sepsis_latency_seconds_bucket{instance="w",le="30"}':'0+1000x1600',
    'sepsis_latency_seconds_bucket{instance="w",le="+Inf"}':'0+1000x1600',
    'sepsis_alerts_total{instance="w"}':'0+0.05x1600', 'sepsis_patient_hours_total{instance="w"}':'0+10x1600',
    'sepsis_alert_budget{instance="w"}':'0.2x1600', 'sepsis_model_logged_timestamp_seconds{instance="w"}':'0x1600',
    'sepsis_model_info{instance="w",version="1",run_id="a"}':'1x1600'}
TROUBLE = dict( # alert to the series that are otherwise then
    SepsisWorkerDown=dict(up='0x1600'), SepsisNoWorkerHasPartitions=dict(sepsis_partitions_assigned='0x1600'),
    SepsisLagGrows=dict(sepsis_lag_rows='0+500x1600'), SepsisNotReady=dict(sepsis_ready='0x1600'),
    SepsisNoCommit=dict(sepsis_lag_rows='5x1600', sepsis_last_commit_timestamp_seconds='0x1600'),
    SepsisDeadLetters=dict(sepsis_dead_letters_total='0+50x1600'),
    SepsisRowsLost=dict(sepsis_unanswered_total='0+1x1600'),
    SepsisLatency={'sepsis_latency_seconds_bucket{instance="w",le="1"}':'0x1600'},
    SepsisBurdenOverBudget=dict(sepsis_alerts_total='0+0.2x1600'),
    SepsisModelOld=dict(sepsis_model_logged_timestamp_seconds='-34560000x1600'),
    SepsisModelsDiffer={'sepsis_model_info{instance="v",version="2",run_id="b"}':'1x1600'})

def test_each_alert_rule_has_its_trouble():
    rules = yaml.safe_load((DEPLOY/'prometheus/alerts.yml').read_text())['groups'][0]['rules']
    assert {o['alert'] for o in rules} == set(TROUBLE)

@needs_promtool
@pytest.mark.parametrize('alert', ['', *TROUBLE])
def test_an_alert_rule_fires_in_its_trouble_and_no_other_does(alert, tmp_path):
    other = TROUBLE.get(alert, {})
    series = {k:other.get(k.partition('{')[0], v) for k,v in CALM.items()} | {k:v for k,v in other.items() if '{' in k}
    fires = [dict(labels=f'{{alertname="{alert}"}}', value=1)] if alert else []
    expect = dict(expr='group by (alertname) (ALERTS{alertstate="firing"})', eval_time='26h', exp_samples=fires)
    test = dict(interval='1m', input_series=[dict(series=k, values=v) for k,v in series.items()],
                promql_expr_test=[expect])
    whole = dict(rule_files=[str(DEPLOY/'prometheus/alerts.yml')], evaluation_interval='1m', tests=[test])
    (tmp_path/'test.yml').write_text(yaml.safe_dump(whole))
    code,said = promtool('test', 'rules', tmp_path/'test.yml')
    assert not code, said

UNITS = sorted((DEPLOY/'systemd').glob('*.service'))

def unit(path):
    "Key of a unit to its values"
    found = {}
    for l in path.read_text().splitlines():
        if '=' in l and l[0] not in '#[': found.setdefault(l.split('=', 1)[0], []).append(l.split('=', 1)[1])
    return found

@pytest.mark.parametrize('path', UNITS, ids=lambda p: p.stem)
def test_units_have_least_rights(path):
    u = unit(path)
    assert u['User'] == ['sepsis'] and u['CapabilityBoundingSet'] == [''] and u['ProtectSystem'] == ['strict']
    for k in 'NoNewPrivileges', 'PrivateTmp', 'PrivateDevices', 'ProtectHome': assert u[k] == ['yes']
    program,command,*_ = u['ExecStart'][0].split()
    assert program == '/opt/sepsis/bin/sepsis' and command in {*main.commands, 'board'}
    env = dict(o.split('=', 1) for l in u['Environment'] for o in l.split())
    own = {k:v for k,v in env.items() if k.startswith('SEPSIS_') and k != 'SEPSIS_SETTINGS'}
    load_settings(env=own)
    assert os.EX_CONFIG in map(int, u.get('RestartPreventExitStatus', ['78'])) and u['UMask'] == ['0077']

@pytest.mark.parametrize('path', UNITS, ids=lambda p: p.stem)
def test_a_command_of_the_runbook_reads_what_the_units_read(path):
    "Else `sepsis doctor` would check the built-in broker and store, and say that all is well"
    words = dict(o.split('=', 1) for l in unit(path)['Environment'] for o in l.split())
    env = {k:v.replace('%S', '/var/lib').replace('%C', '/var/cache') for k,v in words.items()}
    cells = json.loads((ROOT/'nbs/runbook.ipynb').read_text())['cells']
    shell = next(s for c in cells if 'sepsis() {' in (s := ''.join(c['source'])))
    words = re.search(r' env (.+?) /opt/sepsis/bin/sepsis "\$@"', shell, re.S)[1].split()
    assert dict(o.split('=', 1) for o in words if o != '\\') == {k:v for k,v in env.items() if k != 'PYTHONUNBUFFERED'}

@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='no systemd-analyze here: apt-get install systemd')
@pytest.mark.parametrize('path', UNITS, ids=lambda p: p.stem)
def test_systemd_takes_the_units(path, tmp_path):
    there = tmp_path/path.name.replace('@.', '@1.')
    there.write_text(path.read_text().replace('/opt/sepsis/bin/sepsis', sys.executable)) # which need not be there
    def analyze(*args): return subprocess.run(['systemd-analyze', '--no-pager', *args, there], text=True,
                                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    r = analyze('verify')
    assert not r.returncode and not r.stdout.strip(), r.stdout
    assert not analyze('security', '--offline=true', '--threshold=20').returncode, 'exposure above 2.0'
    there.write_text(there.read_text()+'\n[Service]\nProtectSytsem=strict\n')
    assert 'Unknown key' in analyze('verify').stdout

def test_no_secret_can_be_committed():
    for o in COMPOSE['secrets'].values(): # as git would see them
        r = subprocess.run(['git', 'check-ignore', '-q', f"deploy/{o['file'].removeprefix('./')}"], cwd=ROOT)
        assert not r.returncode, o['file']
    tracked = subprocess.run(['git', 'ls-files', 'deploy/secrets'], cwd=ROOT, capture_output=True, text=True).stdout
    assert tracked.split() == ['deploy/secrets/README.md']

@pytest.mark.parametrize('name', ['compose.yml', 'Dockerfile'])
def test_the_files_say_that_they_were_not_run(name):
    assert 'No container engine was at hand' in (DEPLOY/name).read_text()

def test_the_runbook_names_what_there_is():
    "Its commands, the tests that it points to, and what it must answer; the page itself runs the commands"
    cells = json.loads((ROOT/'nbs/runbook.ipynb').read_text())['cells']
    text = '\n'.join(''.join(c['source']) for c in cells)
    named = set(re.findall(r'(?<![\w/-])sepsis ([a-z]+)', text))
    assert {'doctor', 'forget', 'redrive', 'topics', 'broker', 'forward'} <= named <= set(main.commands), named
    pointed = re.findall(r'tests/(\w+\.py)(?:::(\w+))?', text)
    for file,test in pointed: assert f'def {test}' in (ROOT/'tests'/file).read_text(), (file, test)
    wanted = ('Start', 'Stop', 'Upgrade', 'Roll back', 'The model is bad', 'The broker is lost', 'A disk is full',
              "Remove a patient's data", 'A certificate ends')
    assert not {o for o in wanted if f'## {o}\n' not in text}
    for u in re.findall(r'sepsis-[a-z]+(?=@| )', text): assert any(p.name.startswith(u) for p in UNITS), u
