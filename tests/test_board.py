"The ward board in a real Chromium: what it shows, what it says when it is not current, and whose click counts"
import json, ssl, time
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPCookieProcessor, HTTPSHandler, Request, build_opener
import pytest, trustme
from click.testing import CliRunner
from kafka import OffsetAndMetadata, TopicPartition
from sepsis_nb.cli import main
from sepsis_nb.prove.harness import Line
from sepsis_nb.settings import BoardConfig
from sepsis_nb.stream.tail import RecordSender
from sepsis_nb.ward.acks import acks_frame
from sepsis_nb.ward.board import start_board

CHROMIUM = Path('/usr/bin/chromium')
sync_api = pytest.importorskip('playwright.sync_api', reason='needs playwright: pip install "sepsis-nb[dev]"')
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f'needs {CHROMIUM}: apt-get install chromium')
expect = sync_api.expect
expect.set_options(timeout=60_000) # of a loaded machine; how late the screen is, prove/42_board_load measures
RESP = dict(feature='Resp_max_6h', signal='Resp', text='respiration rate, highest of the last 6 h', value=31.,
            unit='1/min', hours=.5, effect=.42)
TEMP = dict(feature='Temp', signal='Temp', text='body temperature', value=None, unit='°C', hours=None, effect=-.1)

class Ward:
    "A line without a worker, whose part the test plays: it writes outputs and alerts, and commits"
    def __init__(self, line):
        self.line,self.s,t,self.n = line, line.s, line.s.topics, 0
        self.s = replace(self.s, board=BoardConfig(silent_s=1, quiet_min=600, port=0))
        self.out,self.alerts,self.rows = (RecordSender(self.s.kafka, o) for o in (t.output, t.alerts, t.input))
    def score(self, id, risk, alert=False, why=None, reasons=(), hour=None, **signals):
        "An output, and its alert with the explanation `why`"
        self.n += 1
        o = dict(patient_id=id, prediction_probabilities=[1-risk, risk], threshold=.3, alert=alert,
                 original_data=dict(patient_id=id, time=self.n/60 if hour is None else hour, HR=81.) | signals,
                 source=dict(topic=self.s.topics.input, partition=0, offset=self.n), model=dict(version='7'),
                 quality=dict(indeterminate=bool(reasons), reasons=list(reasons)))
        self.out.send(id.encode(), json.dumps(o).encode())
        policy = dict(threshold=.3, clears_below=.25, refractory_h=12.)
        if why: self.alerts.send(id.encode(), json.dumps(o | dict(explanation=why, policy=policy)).encode())
    def commit(self):
        "Answer all rows of the input topic"
        t = self.s.topics.input
        done = {TopicPartition(t, p):OffsetAndMetadata(n, '', -1) for p,n in self.line.ends(t).items()}
        self.line.admin.alter_group_offsets(self.s.worker.app_id, done)

@pytest.fixture(scope='module')
def ward(kafka, tmp_path_factory):
    with Line(tmp_path_factory.mktemp('board')) as line:
        w = Ward(line)
        yield w
        for o in w.out, w.alerts, w.rows: o.close()

@pytest.fixture(scope='module')
def board(ward):
    with start_board(ward.s) as b: yield b

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=str(CHROMIUM), args=['--no-sandbox'])
        yield b
        b.close()

@contextmanager
def opened(browser, url, **how):
    "A page in a context of its own; fails if it asks another host, or says an error"
    context = browser.new_context(**dict(viewport=dict(width=1280, height=800)) | how)
    page,asked,said = context.new_page(), [], []
    page.on('request', lambda r: asked.append(r.url))
    page.on('pageerror', lambda e: said.append(str(e)))
    page.on('console', lambda m: said.append(m.text) if 'Content Security Policy' in m.text else None)
    page.goto(url)
    try: yield page
    finally: context.close()
    host = url.split('/')[2]
    assert not said and not [u for u in asked if u.split('/')[2] != host]

def row(page, id): return page.locator(f'#rows .row[data-key="{id}"]')

def test_content_and_live_update(ward, board, browser):
    ward.score('p1', .12, HR=91., Temp=98.6, unit='Ward 7')
    ward.score('p2', .2, reasons=['no heart rate for 6 h'])
    with opened(browser, board.url) as page:
        expect(row(page, 'p1')).to_contain_text('12 %')
        for o in 'Below threshold', 'Ward 7', '91', '37', 'alerts at 30 %': expect(row(page, 'p1')).to_contain_text(o)
        expect(row(page, 'p2')).to_contain_text('no heart rate for 6 h')
        assert '20 %' not in row(page, 'p2').inner_text(), 'an indeterminate risk means nothing'
        ward.score('p1', .34)
        expect(row(page, 'p1')).to_contain_text('34 %')
        expect(page.locator('#rows .row').first).to_contain_text('p1') # it stands above its threshold now
        expect(page.locator('.notice')).to_contain_text('not a medical device')

def test_an_alert_arrives(ward, board, browser):
    with opened(browser, board.url) as page:
        expect(page.locator('#count')).to_contain_text('beds')
        ward.score('p3', .42, True, why=[RESP, TEMP])
        expect(page.locator('#said')).to_have_text('New alert: p3, risk 42 %')
        assert page.locator('#said').get_attribute('role') == 'alert' and page.title().startswith('(')
        expect(page.locator('#rows .row').first).to_contain_text('ALERT')
        row(page, 'p3').get_by_role('link').click()
        expect(page.locator('#alerts')).to_contain_text('respiration rate, highest of the last 6 h')
        for o in '31 1/min', '30 min', '↑ raises', '↓ lowers', 'unknown', 'clears below 25 %':
            expect(page.locator('#alerts')).to_contain_text(o)
        expect(page.locator('#plots canvas')).to_have_count(2) # risk and heart rate
        ward.score('p3', .5)
        expect(page.locator('#now')).to_contain_text('50 %')
    ward.score('p4', .6, True)
    with opened(browser, f'{board.url}/bed?key=p4') as page:
        expect(page.locator('#alerts')).to_contain_text('No explanation came with this alert')

MARKUP = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

@pytest.mark.parametrize('id', [MARKUP, 'a\nb\r\0c', 'ü/?#&% x', 'y'*900], ids=['markup', 'control', 'path', 'long'])
def test_whatever_a_record_carries_is_text(ward, board, browser, id):
    "In each field that is shown, on a narrow screen; and the page of the bed is found and answers"
    why = dict(RESP, text=MARKUP, signal=MARKUP, unit=MARKUP)
    ward.score(id, .4, True, why=[why], reasons=[MARKUP], unit=MARKUP, **{MARKUP:1})
    while id not in board.live.ward.beds: time.sleep(.05)
    narrow = dict(viewport=dict(width=360, height=740))
    address = f'{board.url}/bed?key={quote(id)}'
    with opened(browser, board.url, **narrow) as page, opened(browser, address, **narrow) as bed:
        expect(bed.locator('#alerts .alertbox')).to_have_count(1)
        expect(page.locator('#rows .row').first).to_be_visible()
        bed.locator('#now').get_by_role('button').click()
        fill(bed, 'N. Ortiz', MARKUP)
        expect(bed.locator('#alerts .answers')).to_contain_text(MARKUP)
        for o in page, bed:
            assert o.evaluate('window.hit') is None
            assert o.evaluate('document.scrollingElement.scrollWidth') <= 360

def fill(page, by, reason, kind='acknowledge'):
    d = page.locator('#answer')
    d.locator(f'[value={kind}]').check()
    d.get_by_label('Your name').fill(by)
    d.get_by_label('Reason').fill(reason)
    d.get_by_role('button', name='Send').click()
    expect(d).to_be_hidden()

def test_an_answer_reaches_every_board(ward, board, browser, monkeypatch):
    with start_board(ward.s) as other, opened(browser, board.url) as page, opened(browser, other.url) as second:
        ward.score('p5', .5, True)
        row(page, 'p5').get_by_role('button').click()
        fill(page, 'N. Ortiz', 'blood <b>cultures</b>')
        for o in page, second: expect(row(o, 'p5')).to_contain_text('Seen, still high')
        expect(row(second, 'p5')).to_contain_text('N. Ortiz')
        row(second, 'p5').get_by_role('button', name='Change').click()
        fill(second, 'B. Lind', 'in surgery', 'snooze')
        for o in page, second: expect(row(o, 'p5')).to_contain_text('Snoozed')
        page.goto(f'{board.url}/bed?key=p5')
        expect(page.locator('.answers')).to_contain_text('by N. Ortiz')
        expect(page.locator('.answers')).to_contain_text('blood <b>cultures</b>')
        ward.score('p5', .1)
        expect(page.locator('#now')).to_contain_text('Snoozed') # until its end: somebody has asked for that
    for k,v in ward.line.env.items():
        if k.startswith('SEPSIS_'): monkeypatch.setenv(k, v)
    out = CliRunner().invoke(main, ['acks', '--patient', 'p5', '--last', '1h']).output
    assert 'N. Ortiz' in out and 'in surgery' in out
    assert list(acks_frame('p5', settings=ward.s).kind) == ['acknowledge', 'snooze']

def test_a_new_server_is_found_again(ward, browser):
    with start_board(ward.s) as first:
        port = int(first.url.rpartition(':')[2])
        with opened(browser, first.url) as page:
            ward.score('p6', .7, True)
            expect(row(page, 'p6')).to_contain_text('ALERT')
            page.evaluate('window.same = true')
            first.stop()
            expect(page.locator('#banner')).to_contain_text('connection to the board was lost')
            expect(row(page, 'p6')).to_contain_text('was 70 %')
            ward.score('p6', .8)
            with start_board(ward.s, port):
                expect(row(page, 'p6').locator('.risk b')).to_have_text('80 %')
                expect(page.locator('#banner')).to_be_hidden()
                assert page.evaluate('window.same'), 'the page was not loaded again'
                row(page, 'p6').get_by_role('button').click()
                fill(page, 'N. Ortiz', 'seen')
                expect(row(page, 'p6')).to_contain_text('Seen')
            with start_board(ward.s, port): # the answer comes back from its topic
                page.reload()
                expect(row(page, 'p6')).to_contain_text('N. Ortiz')

def test_a_silent_worker(ward, board, browser):
    ward.score('p1', .34)
    with opened(browser, board.url) as page:
        expect(row(page, 'p1')).to_contain_text('34 %')
        ward.rows.send(b'p1', b'{}')
        expect(page.locator('#banner')).to_contain_text('NOT CURRENT: the worker is silent. 1 rows wait')
        expect(row(page, 'p1')).to_contain_text('was 34 %')
        expect(row(page, 'p1')).to_contain_text('not current')
        ward.commit()
        expect(page.locator('#banner')).to_be_hidden()
        expect(row(page, 'p1').locator('.risk b')).to_have_text('34 %')

def test_keyboard_alone(ward, board, browser):
    ward.score('p7', .9, True)
    with opened(browser, board.url) as page:
        expect(page.locator('#rows .row').first).to_contain_text('p7')
        def active(): return page.evaluate('document.activeElement.getAttribute("aria-label") || ""')
        for _ in range(30):
            page.keyboard.press('Tab')
            if 'alert of p7' in active(): break
        ward.score('p8', .95, True) # the list keeps its order while a key user is in it
        expect(page.locator('#said')).to_contain_text('p8')
        expect(page.locator('#held')).to_be_visible()
        assert 'alert of p7' in active()
        page.keyboard.press('Enter')
        expect(page.locator('#answer')).to_be_visible()
        page.keyboard.type('K. Eys')
        page.keyboard.press('Tab')
        page.keyboard.type('seen')
        page.keyboard.press('Enter')
        expect(row(page, 'p7')).to_contain_text('K. Eys')
        page.keyboard.press('Enter'); page.keyboard.press('Escape')
        expect(page.locator('#answer')).to_be_hidden()

# Visible texts whose contrast with what is behind them is below 4.5, as WCAG 2.2 has it
CONTRAST = '''() => {
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const part = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = s => { const [r, g, b] = rgb(s).map(part); return .2126 * r + .7152 * g + .0722 * b; };
  const paint = e => getComputedStyle(e).backgroundColor;
  const back = e => !e || (rgb(paint(e))[3] ?? 1) ? e || document.body : back(e.parentElement);
  const worded = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const seen = e => worded(e) && e.checkVisibility() && !e.disabled && !e.closest('svg, option, .unseen, .skip');
  return [...document.querySelectorAll('body *')].filter(seen).flatMap(e => {
    const [x, y] = [getComputedStyle(e).color, paint(back(e))].map(light).sort((p, q) => q - p);
    const ratio = (x + .05) / (y + .05);
    return ratio < 4.5 ? [`${e.className} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`] : [];
  }); }'''

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow_screen_contrast_and_print(ward, board, browser, scheme):
    id = f'{scheme} & narrow'
    long = TEMP | dict(text='systolic blood pressure, standard deviation of the last 12 h')
    ward.score(id, .4, True, why=[RESP, TEMP, long])
    for path in '', f'/bed?key={quote(id)}':
        while id not in board.live.ward.beds: time.sleep(.05)
        with opened(browser, board.url+path, viewport=dict(width=360, height=740), color_scheme=scheme) as page:
            expect(page.locator('#rows .row, #alerts table').first).to_be_visible()
            assert page.evaluate('document.scrollingElement.scrollWidth') <= 360
            cut = '[...document.querySelectorAll("section")].filter(o => o.scrollWidth > o.clientWidth).length'
            assert not page.evaluate(cut), 'a table is cut off, and with it what raises the risk'
            assert page.evaluate(CONTRAST) == []
            page.emulate_media(media='print')
            expect(page.locator('.notice')).to_be_visible()
            for o in page.locator('button').all(): expect(o).to_be_hidden()

def ask(opener, url, data=None, **headers):
    "(status, text) of a request"
    try:
        with opener.open(Request(url, data, headers), timeout=10) as r: return r.status, r.read().decode()
    except HTTPError as e: return e.code, e.read().decode()

def test_sign_in_and_refusals(ward, browser):
    token = 'correct horse battery'
    ward.score('p3', .42)
    with start_board(replace(ward.s, board=BoardConfig(port=0, token=token, ids='pseudonym'))) as b:
        plain = build_opener()
        assert ask(plain, f'{b.url}/bed.json?key=p3')[0] == 401
        assert ask(plain, f'{b.url}/health', Host='evil.example')[0] == 421
        with opened(browser, b.url) as page:
            page.get_by_label('Token').fill('wrong'); page.keyboard.press('Enter')
            expect(page.get_by_role('alert')).to_have_text('This is not the token.')
            page.get_by_label('Token').fill(token); page.keyboard.press('Enter')
            expect(page.locator('#rows .row').first).to_be_visible()
            shown = page.locator('#rows .row').first.get_attribute('data-key')
            assert len(shown) == 9 and '>p3<' not in page.content()
            cookie, = page.context.cookies()
            assert (cookie['httpOnly'], cookie['sameSite']) == (True, 'Strict') and token not in json.dumps(cookie)
            given = json.dumps(dict(key=shown, kind='acknowledge', by='x', reason='y', alert=[])).encode()
            head = dict(Cookie=f"{cookie['name']}={cookie['value']}")
            assert ask(plain, f'{b.url}/answer', given, **head)[0] == 403, 'no CSRF token'
            csrf = page.locator('meta[name=board]').get_attribute('data-csrf')
            good = head | {'X-CSRF-Token':csrf}
            assert ask(plain, f'{b.url}/answer', given, **good, Origin='https://evil.example')[0] == 403
            assert ask(plain, f'{b.url}/answer', given, **good)[0] == 400, 'it names no alert'
            page.get_by_role('button', name='Sign out').click()
            expect(page.get_by_label('Token')).to_be_visible()

def test_tls(ward, tmp_path):
    ca = trustme.CA()
    cert = ca.issue_cert('localhost')
    cert.private_key_and_cert_chain_pem.write_to_path(tmp_path/'both.pem')
    ca.cert_pem.write_to_path(tmp_path/'ca.pem')
    files = dict(ssl_certfile=str(tmp_path/'both.pem'), ssl_keyfile=str(tmp_path/'both.pem'))
    secure = dict(port=0, address='https://localhost', token='x'*16, **files)
    with start_board(replace(ward.s, board=BoardConfig(**secure))) as b:
        port = b.port
        jar,context = CookieJar(), ssl.create_default_context(cafile=tmp_path/'ca.pem')
        opener = build_opener(HTTPSHandler(context=context), HTTPCookieProcessor(jar))
        sent = urlencode(dict(token='x'*16)).encode()
        ask(opener, f'https://localhost:{port}/sign-in', sent, Host='localhost')
        assert [c.secure for c in jar] == [True]
        with suppress(OSError): assert ask(build_opener(), f'http://localhost:{port}/health')[0] != 200

def test_a_thousand_beds(ward, board, browser):
    for k in range(1000):
        id = f'q{k:04d}'
        o = dict(patient_id=id, prediction_probabilities=[.9, .1], threshold=.3, alert=False, model=dict(version='7'),
                 original_data=dict(patient_id=id, HR=70.), source=dict(topic='t', partition=1, offset=k),
                 quality=dict(indeterminate=False, reasons=[]))
        ward.out.producer.send(ward.s.topics.output, json.dumps(o).encode(), id.encode())
    ward.out.producer.flush()
    with opened(browser, board.url) as page:
        expect(page.locator('#count')).to_contain_text('beds')
        page.locator('#rows .row').nth(999).wait_for(state='attached')
        page.locator('#find').fill('q0777')
        expect(page.locator('#count')).to_contain_text('1 of 1')
        ward.score('q0777', .28, hour=1e6)
        expect(row(page, 'q0777')).to_contain_text('28 %')
