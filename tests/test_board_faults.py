"A ward board whose topics hold what nobody should have written, vanish, or are compacted, and pages that take nothing"
import json, logging, socket, time
from contextlib import contextmanager
from dataclasses import replace
from urllib.request import urlopen
import pytest
from kafka.admin import ConfigResource
from sepsis_nb.prove.harness import Line
from sepsis_nb.settings import BoardConfig
from sepsis_nb.stream.kafka import create_topics, topic_configs
from sepsis_nb.stream.tail import RecordSender
from sepsis_nb.ward import board as page
from sepsis_nb.ward.acks import Ack, ack_record, acks_frame
from sepsis_nb.ward.board import start_board
from sepsis_nb.ward.history import patient_events

def scored(id, n, risk=.1, alert=False, **more):
    return dict(patient_id=id, prediction_probabilities=[1-risk, risk], threshold=.3, alert=alert,
                original_data=dict(patient_id=id, time=n/60, HR=80.), source=dict(topic='in', partition=0, offset=n),
                model=dict(version='7'), quality=dict(indeterminate=False, reasons=[])) | more

@pytest.fixture
def line(kafka, tmp_path):
    with Line(tmp_path) as o:
        o.s = replace(o.s, board=BoardConfig(port=0, silent_s=5))
        yield o

def send(line, topic, *values, key=b'p1'):
    with RecordSender(line.s.kafka, topic) as sender:
        for v in values: sender.send(key, v if v is None or isinstance(v, bytes) else json.dumps(v).encode())

def until(found, seconds=60):
    end = time.monotonic()+seconds
    while not (got := found()):
        assert time.monotonic() < end, 'it did not come'
        time.sleep(.1)
    return got

def status(board): return board.live.status(int(time.time()*1000))

ODD = (b'', None, b'[]', b'null', b'7', b'{"a":NaN}', b'\xff', b'['*2000, scored([], 1), scored(['p1'], 1),
       scored('x'*1001, 1), scored('p1', 1, risk=7), scored('p1', 1, threshold='0.3'), scored('p1', 1, alert='no'),
       scored('p1', 1, source=dict(topic='in', partition=0, offset=1e300)),
       json.dumps(scored('p1', 1)).replace('80.0', '['*300+']'*300).encode())

def test_odd_records_are_counted_and_end_no_board(line, caplog):
    "Nor one that starts later; and no log says whose records they are"
    t = line.s.topics
    for topic in t.output, t.alerts, t.acks: send(line, topic, *ODD)
    send(line, t.output, scored('Mustermann', 2, prediction_probabilities='Mustermann'), scored('p2', 1))
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with start_board(line.s) as b:
            until(lambda: 'p2' in b.live.ward.beds)
            assert until(lambda: (n := status(b)['unreadable']) == 3*len(ODD)+1 and n)
            assert list(b.live.ward.beds) == ['p2'] and urlopen(f'{b.url}/bed.json?key=p2').status == 200
    assert 'unreadable topic=' in caplog.text and 'Mustermann' not in caplog.text

def test_a_patient_is_answered_whatever_the_id(line):
    "Line break, markup, 600 characters that begin like those of another patient"
    ids = 'a\nb', '<img src=x onerror=alert(1)>', 'ü/?#& x', *('y'*600+k for k in '12')
    for n,id in enumerate(ids): send(line, line.s.topics.output, scored(id, n, .4, True), key=id.encode())
    with start_board(line.s) as b:
        until(lambda: len(b.live.ward.beds) == len(ids))
        now = int(time.time()*1000)
        for n,id in enumerate(ids):
            send_ack = ack_record(Ack(id, 'acknowledge', 'N. Ortiz', 'seen', now, None, ('in', 0, n)))
            send(line, line.s.topics.acks, send_ack[1], key=send_ack[0])
        until(lambda: {o.state(now) for o in b.live.ward.beds.values()} == {'acknowledged'})
    assert sorted(acks_frame(settings=line.s).patient_id) == sorted(o.replace('\n', ' ') for o in ids)

def test_an_acknowledgement_that_cannot_be_read_is_an_event(line):
    good = ack_record(Ack('p1', 'acknowledge', 'N. Ortiz', 'seen', 1_700_000_000_000, None, ('in', 0, 1)))[1]
    far = json.dumps(json.loads(good) | dict(time=10**18)).encode()
    send(line, line.s.topics.acks, good, b'scribble', far, None)
    events = patient_events('p1', settings=line.s)
    assert list(events.kind) == ['acknowledge', 'unreadable', 'unreadable', 'unreadable']
    assert all(f'topic {line.s.topics.acks} offset' in o for o in events.text[1:])
    assert list(acks_frame(settings=line.s).kind) == list(events.kind)
    send(line, line.s.topics.output, dict(patient_id='p1', source=dict(topic='in', partition=0, offset=1)))
    with pytest.raises(ValueError, match=f'topic {line.s.topics.output} partition . offset 0: not an output message'):
        patient_events('p1', settings=line.s)

@pytest.mark.parametrize('name', ['output', 'alerts', 'acks', 'input'])
def test_a_topic_that_is_deleted_is_missed_and_read_again_from_its_start(line, name):
    topic = getattr(line.s.topics, name)
    with start_board(line.s) as b:
        send(line, line.s.topics.output, *(scored('old', n) for n in range(20)))
        until(lambda: 'old' in b.live.ward.beds)
        assert not until(lambda: status(b))['stale']
        line.admin.delete_topics([topic])
        until(lambda: status(b)['stale'] == 'missing')
        assert status(b)['topic'] == topic
        until(lambda: topic not in line.admin.list_topics())
        create_topics(line.s.kafka, line.s.topics)
        send(line, line.s.topics.output, scored('new', 1))
        until(lambda: not status(b)['stale'] and 'new' in b.live.ward.beds)
        assert b.live.failure is None

def test_a_topic_made_again_at_once_loses_no_record(line):
    "Its new records are as many as the old ones, so an offset tells nothing"
    t = line.s.topics
    with start_board(line.s) as b:
        send(line, t.output, *(scored('old', n) for n in range(20)))
        until(lambda: 'old' in b.live.ward.beds and b.live.ward.beds['old'].hour == 19/60)
        line.admin.delete_topics([t.output])
        until(lambda: t.output not in line.admin.list_topics())
        create_topics(line.s.kafka, t)
        send(line, t.output, scored('first', 1), *(scored('new', n) for n in range(30)))
        until(lambda: 'new' in b.live.ward.beds and b.live.ward.beds['new'].hour == 29/60)
        until(lambda: 'first' in b.live.ward.beds)
        until(lambda: b.live.ward.beds['new'].hour == 29/60) # they are read a second time

def test_a_compacted_topic_of_acknowledgements_is_refused(line, caplog):
    t = line.s.topics
    def alter(key, value):
        line.admin.alter_configs([ConfigResource('topic', t.acks, {key:value})])
        until(lambda: topic_configs(line.admin, [t.acks], [key])[t.acks][key] == value) # a moment later
    alter('retention.ms', '86400000')
    create_topics(line.s.kafka, t)
    assert f'topic {t.acks} keeps acknowledgements for 1 days' in caplog.text
    alter('cleanup.policy', 'compact')
    words = f'topic {t.acks} has cleanup.policy=compact, expected delete'
    with pytest.raises(ValueError, match=words): create_topics(line.s.kafka, t)
    with pytest.raises(ValueError, match=words):
        with start_board(line.s): pass

@contextmanager
def connections(board, n):
    "Pages that ask for events and take none"
    found = [socket.socket() for _ in range(n)]
    for c in found:
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        c.connect(('127.0.0.1', board.port))
        c.sendall(f'GET /events HTTP/1.1\r\nHost: 127.0.0.1:{board.port}\r\n\r\n'.encode())
    try: yield found
    finally:
        for c in found: c.close()

def test_pages_that_take_nothing_give_their_places_to_others(line, monkeypatch):
    monkeypatch.setattr(page, 'STALLED_S', 5)
    with start_board(line.s) as b:
        with RecordSender(line.s.kafka, line.s.topics.output) as sender:
            sender.send(b'', b'')
            for k in range(4000):
                sender.producer.send(sender.topic, json.dumps(scored(f'{k:04d}'+'x'*500, k)).encode(), str(k).encode())
            sender.producer.flush()
        until(lambda: len(b.live.ward.beds) == 4000)
        with connections(b, 5):
            until(lambda: len(b.hub.clients) == 5)
            until(lambda: not b.hub.clients)
            assert urlopen(f'{b.url}/health').read() == b'ok'
            with connections(b, 1) as (own,): assert own.recv(15) == b'HTTP/1.1 200 OK'

def test_a_flood_of_pages_is_bounded(line):
    with start_board(line.s) as b, connections(b, page.MOST_CLIENTS+60):
        until(lambda: len(b.hub.clients) == page.MOST_CLIENTS)
        assert urlopen(f'{b.url}/health').read() == b'ok'
        with connections(b, 1) as (own,): assert own.recv(12) == b'HTTP/1.1 503'
