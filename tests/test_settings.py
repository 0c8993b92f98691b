"Whatever stands in a settings file or a variable: a value within its range, or one line that names place and key"
from dataclasses import fields
from pathlib import Path
import pytest
from sepsis_nb.settings import SECTIONS, Settings, load_settings

KEYS = [(s, f.name, f.type) for s,cls in SECTIONS.items() for f in fields(cls)]
NUMBERS = ('', '0', '-1', '00', '1.5', '1e3', 'inf', '-inf', 'nan', '1e999', '9'*30, '9'*5000, '99999', '1_0', '٣',
           'True', 'None', '0x10', '10 s', '%d', '%(x)s', '$HOME', '{0}')
TEXTS = (*NUMBERS, '.', '..', '/', '~', '~nobody-here', '~/x', 'a b', 'a,b', 'ä ö', 'a#b', 'a%20b?c', 'a\\b', 'a/',
         '[::1]:1', 'a:0', 'a:65536', ',', 'a:1,', 'a@b:1', 'x'*300, '__consumer_offsets', "'", '"', 'ß'*200,
         '\u2028', 'a\x00b', 'a\tb', 'a\x1bb', 'a\udce4b', 'a\n b', 'a #b', '# a', '= a', '; a', '[a]',
         'http://u:pw@h', '::', '0.0.0.0')

def values(s): return [getattr(getattr(s, section), key) for section,key,_ in KEYS]

def check(section, key, places, *args, **kwargs):
    "Whether `load_settings` takes it; if not, the error is one line that names one of the places, and the key"
    try: s = load_settings(*args, **kwargs)
    except (ValueError, OSError) as e:
        line = str(e)
        assert '\n' not in line and len(line) < 600, line
        assert any(p in line for p in places), line
        assert key in line.lower() and section in line.lower() or 'line 2' in line, line
        return False
    assert s.reports.is_absolute() and s.work.is_absolute() and s.cache.is_absolute() and s.kafka.addresses
    assert all(not isinstance(v, str) or v.isprintable() for v in values(s))
    assert all(not isinstance(v, float) or 0 <= v < 1e6 for v in values(s))
    return True

@pytest.mark.parametrize('section,key,kind', KEYS, ids=lambda o: getattr(o, '__name__', o))
def test_any_value_of_a_key(tmp_path, section, key, kind):
    file,name = tmp_path/'settings.ini', f'SEPSIS_{section}_{key}'.upper()
    file.write_text('')
    taken = [check(section, key, [name, f'[{section}] {key}'], file, env={name:text}) for text in TEXTS]
    for text in TEXTS:
        file.write_bytes(f'[{section}]\n{key} = {text}\n'.encode('utf-8', 'surrogateescape'))
        check(section, key, [str(file), f'[{section}] {key}'], file, env={})
    if kind is not str: assert sum(taken) <= 10, 'a range that takes nearly everything is none'
    assert {p.name for p in tmp_path.iterdir()} == {'settings.ini'}, 'nothing is written'

def test_defaults_are_what_the_file_says():
    "The shipped settings.ini gives every default as it is, and every key that may stand in it"
    shipped = Path(__file__).parent.parent/'settings.ini'
    assert values(load_settings(shipped, env={})) == values(Settings())

@pytest.mark.parametrize('data,words', [
    ('[topics]\ninput = ä'.encode('latin-1'), 'line 2: byte 0xe4 is not UTF-8'), (b'\x80\x04\x95', 'line 1: byte 0x80'),
    ('[topics]\ninput = a'.encode('utf-16-be'), 'line 1: a zero byte'), (b'\xff\xfe[', 'is not UTF-8'),
    (b'[topics\ninput = a', 'line 1'), (b'[topics]\ninput', 'line 2'), (b'[topics]\n= a', 'line 2'),
    (b'[topics]\n[topics]', "'topics' already exists"), (b'[Topics]\n', '[Topics]: unknown section'),
    (b'[topics]\ninput = a\n# b\n input = c\n', 'holds a line break'), (b'x'*100_000, 'line 1')])
def test_any_file(tmp_path, data, words):
    file = tmp_path/'settings.ini'
    file.write_bytes(data)
    with pytest.raises(ValueError) as e: load_settings(file, env={})
    assert words in str(e.value) and str(file) in str(e.value) and '\n' not in str(e.value), e.value

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings_that_say_what_they_are(tmp_path, encoding):
    file = tmp_path/'settings.ini'
    file.write_bytes('[kafka]\r\nsasl_username = Jürgen\r\nbootstrap_servers = a:1,\r\n  b:2\r\n'.encode(encoding))
    kafka = load_settings(file, env={}).kafka
    assert (kafka.sasl_username, kafka.addresses) == ('Jürgen', [('a', 1), ('b', 2)])

def test_no_home_folder(monkeypatch, tmp_path):
    "As a user of a container without a name: the cache is in the work folder"
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])
    (tmp_path/'settings.ini').write_text('')
    assert load_settings(tmp_path/'settings.ini', env={}).cache == tmp_path/'.sepsis'/'cache'
