"A real endpoint that fails, hangs, refuses and restarts, a forwarder that is killed: no alert is lost without a letter"
import json, logging, os, signal, socket, ssl, subprocess, threading, time, uuid
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import orjson, pytest, trustme
from kafka import KafkaProducer
from sepsis_nb.prove.harness import SEPSIS
from sepsis_nb.settings import load_settings
from sepsis_nb.stream.kafka import client_args, create_topics, read_topic
from sepsis_nb.ward.fhir import alert_key
from sepsis_nb.ward.forward import Forwarder

PATIENT = 'Mustermann-4711' # what no log may show

class Ward:
    "An endpoint that answers each alert as `says` has it: one item a try, then 200"
    def __init__(self, tls=None):
        self.says,self.got,self.tls,self.port,self.server = {}, [], tls, 0, None # got: (key, body, headers, Unix s)
        self.start()

    def start(self):
        ward = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *_): pass
            def do_POST(self):
                body = self.rfile.read(int(self.headers['Content-Length']))
                ward.got.append((key := self.headers['Idempotency-Key'], body, dict(self.headers), time.time()))
                act = steps.pop(0) if (steps := ward.says.get(key)) else 200
                if callable(act): return act(self)
                status,head,text = act if isinstance(act, tuple) else (act, {}, b'')
                self.send_response(status)
                for k,v in (head | {'Content-Length':len(text)}).items(): self.send_header(k, str(v))
                self.end_headers()
                self.wfile.write(text)
        class Server(ThreadingHTTPServer):
            daemon_threads,block_on_close = True, False
            def handle_error(self, *_): pass # a forwarder that hangs up, or is killed
        self.server = Server(('127.0.0.1', self.port), Handler)
        self.port = self.server.server_address[1]
        if self.tls: self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self): return f'http{"s" if self.tls else ""}://127.0.0.1:{self.port}/alerts?sig=s3cret'
    def keys(self): return [k for k,*_ in list(self.got)]

@contextmanager
def ward(**kwargs):
    o = Ward(**kwargs)
    try: yield o
    finally: o.stop()

class Alerts:
    "Topics and a group of its own, with alerts in them"
    def __init__(self, n=0, **env):
        tag = uuid.uuid4().hex[:8]
        topics = 'input', 'output', 'dead_letter', 'alerts', 'state'
        names = {f'SEPSIS_TOPICS_{k.upper()}':f'{k}-{tag}' for k in topics}
        self.env = names | dict(SEPSIS_TOPICS_PARTITIONS='2', SEPSIS_FORWARD_GROUP=f'forward-{tag}',
                                SEPSIS_FORWARD_TIMEOUT_S='20', SEPSIS_FORWARD_LONGEST_S='.2') | env
        mine = {k:v for k,v in os.environ.items() if k.startswith('SEPSIS_')}
        self.s,self.n = load_settings(env=mine | self.env), 0
        create_topics(self.s.kafka, self.s.topics)
        self.keys = self.send(n)

    def send(self, n, values=None):
        "Alerts to both partitions in turn; their keys"
        with KafkaProducer(**client_args(self.s.kafka)) as p:
            values = values or [self.alert(self.n+i) for i in range(n)]
            for i,v in enumerate(values): p.send(self.s.topics.alerts, v, PATIENT.encode(), partition=(self.n+i)%2)
        self.n += len(values)
        return [alert_key(v) for v in values] if n else []

    def alert(self, i):
        return orjson.dumps(dict(
            patient_id=PATIENT, prediction_probabilities=[.7, .3], original_data=dict(patient_id=PATIENT, HR=118, i=i),
            source=dict(topic='input-topic', partition=i%2, offset=i), threshold=.1,
            model=dict(name='sepsis', version='3', run_id='r'), alert=True,
            quality=dict(indeterminate=False, reasons=[])))

    def letters(self): # offset on the alerts topic to (value, reason)
        found = read_topic(self.s.topics.dead_letter, self.s.kafka)
        return [(r.value, {k:v.decode() for k,v in r.headers}) for r in found]

def run(alerts, url, until, seconds=60, form='json'):
    "Forward until something is true; what became of the alerts"
    end = time.monotonic()+seconds
    with closing(Forwarder(alerts.s, url, form)) as f:
        while not until(f):
            assert time.monotonic() < end, f.counts
            f.step()
        return f.counts

def test_each_alert_once_in_order_as_it_is(kafka):
    a = Alerts(6, SEPSIS_FORWARD_TOKEN='t0ken')
    with ward() as w:
        assert run(a, w.url, lambda f: f.counts['forwarded'] == 6) == dict(forwarded=6, tries=6)
        assert sorted(w.keys()) == sorted(a.keys)
        for p in 0, 1: assert [k for k in w.keys() if f'-{p}-' in k[11:14]] == a.keys[p::2]
        assert {b for _,b,*_ in w.got} == {a.alert(i) for i in range(6)}
        heads = w.got[0][2]
        assert (heads['Authorization'], heads['Content-Type']) == ('Bearer t0ken', 'application/json')
        assert heads['Sepsis-Alert-Time'][:2] == '20'
        more = a.send(1) # another member goes on behind the six
        run(a, w.url, lambda f: f.counts['forwarded'])
        assert w.keys()[6:] == more

def hang(handler): time.sleep(1.5)
def hang_up(handler): handler.connection.shutdown(socket.SHUT_RDWR)
def trickle(handler):
    "A byte now and then, for longer than a try may take"
    for c in b'HTTP/1.1 200 OK\r\nX: 123456789':
        time.sleep(.1)
        handler.wfile.write(bytes([c]))

def test_what_may_pass_is_tried_again_and_holds_up_no_other_partition(kafka):
    a = Alerts(4, SEPSIS_FORWARD_TIMEOUT_S='.7')
    with ward() as w:
        w.says[a.keys[0]] = [503, (429, {'Retry-After':'1'}, b''), 401, hang, hang_up, trickle]
        n = run(a, w.url, lambda f: f.counts['forwarded'] == 4)
        assert n['forwarded'] == 4 and n['tries'] >= 10 and not a.letters()
        mine = [t for k,*_,t in w.got if k == a.keys[0]]
        assert len(mine) >= 7 and mine[2]-mine[1] >= 1, 'Retry-After'
        assert max(t for k,*_,t in w.got if k in a.keys[1::2]) < mine[2], 'the other partition waited'
        assert w.keys()[-1] == a.keys[2], 'the order of a partition'

def test_what_is_refused_or_fails_for_too_long_is_a_letter(kafka, caplog):
    a = Alerts(4, SEPSIS_FORWARD_TRIES='3')
    a.send(0, [b'no alert', b''])
    caplog.set_level(logging.INFO)
    with ward() as w:
        w.says |= {a.keys[0]:[(400, {}, f'unknown patient {PATIENT}\n'.encode())], a.keys[1]:[500, 502, 503, 504],
                   a.keys[2]:[(307, {'Location':w.url}, b'')]}
        n = run(a, w.url, lambda f: f.counts['forwarded']+f.counts['dead_letters'] == 6)
    assert (n['forwarded'], n['dead_letters']) == (1, 5) and w.keys().count(a.keys[1]) == 3
    found = {h['partition']+'/'+h['offset']:(v, h) for v,h in a.letters()}
    assert {h['topic'] for _,h in found.values()} == {a.s.topics.alerts} and len(found) == 5
    assert found['0/0'][0] == a.alert(0)
    assert found['0/0'][1]['reason'].startswith('forward-refused: HTTP 400 unknown patient')
    assert found['1/0'][1]['reason'].startswith('forward-failed: 3 tries, last HTTP 503')
    assert found['0/1'][1]['reason'].startswith('forward-refused: HTTP 307')
    assert all(found[o][1]['reason'].startswith('not-an-alert') for o in ('0/2', '1/2'))
    assert PATIENT not in caplog.text and 's3cret' not in caplog.text and 'answer=HTTP' in caplog.text

ODD = [(302, {'Location':'mailto:x'}, b''), (308, {'Location':'http://xn--/'}, b''),
       (503, {'Retry-After':f'Thu, 01 Jan {"9"*20} 00:00:00 GMT'}, b''), (404, {'Location':f'/{PATIENT}\0'}, b'')]

def test_an_odd_answer_or_record_ends_no_forwarder(kafka, caplog):
    "A redirect that is no address, a far date, what is no HTTP, a source that cannot be a header"
    a = Alerts(3, SEPSIS_FORWARD_TRIES='3')
    caplog.set_level(logging.INFO)
    good = orjson.loads(a.alert(0))
    sources = dict(topic='é'), dict(topic='a\r\nX: y'), dict(topic=[]), dict(partition='0'), dict(offset=None)
    bad = [good | dict(source=good['source'] | o) for o in sources]
    a.send(0, [*map(orjson.dumps, bad), b'[]', b'null', b'\xff', None])
    last = a.send(2)
    with ward() as w:
        w.says |= {a.keys[0]:ODD[:1], a.keys[1]:ODD[1:2], a.keys[2]:ODD[2:]}
        n = run(a, w.url, lambda f: f.counts['forwarded']+f.counts['dead_letters'] == 14)
    assert (n['forwarded'], n['dead_letters']) == (3, 11) and set(w.keys()) == {*a.keys, *last}
    assert 'answer=no HTTP' in caplog.text and PATIENT not in caplog.text

@pytest.mark.parametrize('part', ['original_data', 'prediction_probabilities', 'quality', 'model', 'explanation'])
def test_an_alert_with_a_part_missing_is_a_letter_and_the_next_goes_out_as_fhir(kafka, part):
    pytest.importorskip('fhir.resources')
    a = Alerts(0, SEPSIS_FORWARD_PATIENT_SYSTEM='urn:oid:1.2.3')
    good = orjson.loads(a.alert(0))
    a.send(0, [orjson.dumps(good | {part:o}) for o in ([], ['x'])]+[a.alert(1)]*2)
    with ward() as w:
        n = run(a, w.url, lambda f: f.counts['forwarded']+f.counts['dead_letters'] == 4, form='fhir')
    assert n['forwarded'] >= 2

def test_an_endpoint_that_restarts_gets_all(kafka):
    a = Alerts(3)
    w = Ward()
    w.stop() # refused from now on
    def until(f):
        if f.counts['tries'] == 4 and not f.counts['forwarded'] and w.server.socket.fileno() < 0: w.start()
        return f.counts['forwarded'] == 3
    n = run(a, w.url, until)
    w.stop()
    assert n['tries'] > 4 and sorted(w.keys()) == sorted(a.keys) and not a.letters()

def test_tls_is_verified(kafka, tmp_path, caplog):
    ca,other = trustme.CA(), trustme.CA()
    for name,o in dict(ca=ca, other=other).items(): o.cert_pem.write_to_path(tmp_path/f'{name}.pem')
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert('127.0.0.1').configure_cert(tls)
    with ward(tls=tls) as w:
        for cafile,verified in (str(tmp_path/'other.pem'), False), ('', False), (str(tmp_path/'ca.pem'), True):
            a = Alerts(1, SEPSIS_FORWARD_CAFILE=cafile, SEPSIS_FORWARD_TRIES='1')
            n = run(a, w.url, lambda f: f.counts['forwarded']+f.counts['dead_letters'])
            assert n['forwarded'] == verified and len(w.got) == verified
            if not verified: assert 'CERTIFICATE_VERIFY_FAILED' in a.letters()[0][1]['reason']

@pytest.fixture
def command(kafka, tmp_path):
    "Starts `sepsis forward` for some alerts; what still runs at the end is killed"
    started = []
    def start(a, url, *args):
        env = os.environ | a.env
        started.append(subprocess.Popen([*SEPSIS, 'forward', url, *args], env=env, cwd=tmp_path, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]
    yield start
    for p in started:
        if p.poll() is None: p.kill()
        p.wait()
        p.stdout.close()

def wait(found, seconds=60):
    end = time.monotonic()+seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(.02)

def test_killed_and_resumed_loses_nothing(command, tmp_path):
    (tmp_path/'token').write_text('t0ken\n')
    a = Alerts(8, SEPSIS_FORWARD_TOKEN_FILE=str(tmp_path/'token'),
               SEPSIS_FORWARD_PATIENT_SYSTEM='urn:oid:1.2.3')
    with ward() as w:
        w.says[a.keys[6]] = [hang] # it has the alert, and is about to say so
        first = command(a, w.url, '--as', 'fhir')
        wait(lambda: a.keys[6] in w.keys())
        first.kill()
        text = first.communicate()[0]
        second = command(a, w.url, '--as', 'fhir')
        wait(lambda: set(w.keys()) == set(a.keys) and w.keys().count(a.keys[6]) == 2)
        time.sleep(.2)
        second.send_signal(signal.SIGTERM)
        text += second.communicate(timeout=40)[0]
        assert second.returncode == 0 and 'alerts forwarded in' in text
    bodies = {}
    for k,body,head,_ in w.got:
        assert head['Content-Type'] == 'application/fhir+json' and head['Authorization'] == 'Bearer t0ken'
        assert bodies.setdefault(k, body) == body, 'a repeat is the same, byte for byte'
    risk = json.loads(bodies[a.keys[0]])['entry'][0]['resource']
    assert risk['subject']['identifier'] == dict(system='urn:oid:1.2.3', value=PATIENT)
    assert f'forwarded key={a.keys[0]} answer=HTTP 200' in text
    for secret in PATIENT, 't0ken', 's3cret': assert secret not in text

def test_what_is_wrong_is_said_before_the_start(command):
    a = Alerts()
    def said(*args, **env):
        a.env |= env
        p = command(a, *args)
        return p.communicate(timeout=60)[0], p.returncode
    text,code = said('https://ward.example/', '--as', 'fhir', SEPSIS_TOPICS_ALERTS='no-such-topic')
    assert code == 1 and text.startswith('Error: [forward] patient_system is empty'), text
