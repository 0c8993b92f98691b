"Files as hospitals write them: read in one way, or refused with file, row, column and what to do"
import gzip, io, logging, re, struct, zipfile
import numpy as np, pandas as pd, pytest
from sepsis_nb.data import CHALLENGE, MONITOR, read, read_source
from sepsis_nb.rows.findings import findings
from sepsis_nb.rows.tables import Table, members, numbers, parse_table, read_table
from sepsis_nb.rows.times import times

HEAD = 'Result Time,Patient ID,'+','.join(MONITOR)
ROW = '2025-01-31 13:45:00,007,120,98.4,120,40'
PSV = '|'.join((*CHALLENGE, 'SepsisLabel'))
def stay(*rates): return '\n'.join([PSV, *(f'{r}|'+'NaN|'*38+f'{h}|0' for h,r in enumerate(rates, 1))])+'\n'

@pytest.fixture
def ward(tmp_path):
    "Writes a file and gives its path"
    def write(content, name='ward.csv'):
        path = tmp_path/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return write

def monitor(*rows, head=HEAD): return '\n'.join([head, *rows])+'\n'

# what stands in the file: the words of the error
REFUSED = {
    'line cut short':(monitor(ROW, ROW[:26]),
                      "ward.csv row 3 has 3 cells, the header has 6: '2025-01-31 13:45:00,007,12'"),
    'cut behind a separator':(monitor(ROW)+ROW[:-2], 'ward.csv row 3: the file ends within a row'),
    'cut within a number':(monitor(ROW)+ROW[:-2]+'4.', 'ward.csv row 3: the file ends within a row'),
    'cell too many':(monitor(ROW+',1'), 'ward.csv row 2 has 7 cells, the header has 6'),
    'unquoted decimal comma':(monitor(ROW.replace('98.4', '36,9')), 'row 2 has 7 cells, the header has 6'),
    'preamble':('Export of ward 3\n'+monitor(ROW), "row 1: the header 'Export of ward 3' has one cell"),
    'preamble with a comma':('Ward 3, 2025\n'+monitor(ROW), 'ward.csv row 2 has 6 cells, the header has 2'),
    'footer':(monitor(ROW)+'(1 rows affected)\n', 'ward.csv row 3 has 1 cells, the header has 6'),
    'row below an empty line':(monitor(ROW, '', ROW, 'x'), 'ward.csv row 5 has 1 cells'),
    'spreadsheet':(b'PK\3\4\x14', 'ward.csv: holds a spreadsheet or an archive, not text; save it as CSV'),
    'files joined':(monitor(ROW)+monitor(ROW), 'ward.csv row 3: the header stands again, as in files that were joined'),
    'half of UTF-16':(monitor(ROW).encode('utf-16')[:-1], 'is not UTF-16'),
    'placeholder':(monitor(ROW.replace('2025-01-31', '9999-12-31')), 'is not between 1900 and 2300; leave it empty'),
    'one column':('Patient ID\n7\n',
                  "the header 'Patient ID' has one cell; expected names with comma, semicolon, tab, |"),
    'name twice':(monitor(ROW+',1', head=HEAD+', Patient ID '), "columns 2 and 7 are both named 'Patient ID'"),
    'NUL bytes':(monitor(ROW, ROW.replace('120', '\0')), 'ward.csv row 3: holds NUL bytes'),
    'empty':('', 'ward.csv: the file is empty'), 'only a separator line':('sep=;\n', 'ward.csv: the file is empty'),
    'no rows':(HEAD+'\n', 'ward.csv: has a header and no rows'),
    'word':(monitor(ROW, ROW.replace('98.4', 'warm')), "row 3 column MDC_TEMP_Result: 'warm' is not a number"),
    'limit of detection':(monitor(ROW.replace('98.4', '<35')),
                          "'<35' is a limit of detection, not a number; read it by a map"),
    'unit in the cell':(monitor(ROW.replace('98.4', '98.4 F')), 'the unit belongs into the header'),
    'dash':(monitor(ROW.replace('98.4', '-')), "'-' is not a number; write one or leave it empty"),
    'no id':(monitor(ROW, ROW.replace('007', ' ')), 'ward.csv row 3 column Patient ID: nan is not a patient id'),
    'NULL as id':(monitor(ROW.replace('007', 'NULL')), "'NULL' is not a patient id; every row has one"),
    'rounded id':(monitor(ROW.replace('007', '1.23457E+11')),
                  "column Patient ID: '1.23457E+11' is a number that a spread"),
    'id through a float':(monitor(ROW.replace('007', '7.0')),
                          "'7.0' went through a program that takes ids for numbers"),
    'bell in an id':(monitor(ROW.replace('007', 'a\x07')), r"'a\x07' holds a character that cannot be seen"),
    'end of file of DOS':(monitor(ROW)+'\x1a', r"ward.csv row 3 has 1 cells, the header has 6: '\x1a'"),
    'id as a formula':(monitor(ROW.replace('007', '="007"')), """Patient ID: '="007"' is a formula of a spreadsheet"""),
    'hours since 1970':('patient_id,ICULOS,HR\np1,1738331100,80\n',
                        "row 2 column ICULOS: '1738331100' is more than 1e+07"),
    'no time at all':(monitor(ROW.replace('2025-01-31 13:45:00', 'noon')),
                      "column Result Time: 'noon' is not a date and time"),
    'time cut short':(monitor(ROW.replace('13:45:00', '13:4')), "'2025-01-31 13:4' is not a date and time"),
}

@pytest.mark.parametrize('kind', REFUSED)
def test_refused(ward, kind):
    content,words = REFUSED[kind]
    with pytest.raises(ValueError) as e: read(ward(content))
    assert words in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('text,row', [
    (monitor(ROW+',ok', ROW+',"calm', ROW+',ok', ROW+',"ok', head=HEAD+',note'), 3), # closed by another
    (monitor(ROW+',ok', ROW+',"calm', ROW+',ok', head=HEAD+',note'), 3),             # closed by nothing
    (monitor(ROW+',ok', ROW+',calm"', head=HEAD+',note'), 3),                        # opened by nothing
    (monitor(ROW+',"two\nlines"', head=HEAD+',note'), 2),                            # a cell with a line break
    (monitor(ROW+',ok', '"'+ROW+',ok', head=HEAD+',note'), 3)])
def test_quotes(ward, text, row):
    with pytest.raises(ValueError, match=f'ward.csv row {row}: a quote is not closed on its line'): read(ward(text))

READ = {
    'semicolons':monitor(ROW).replace(',', ';'), 'tabs':monitor(ROW).replace(',', '\t'),
    'pipes':monitor(ROW).replace(',', '|'),
    'sep line':'sep=;\n'+monitor(ROW).replace(',', ';'), 'sep of tabs':'sep=\\t\r\n'+monitor(ROW).replace(',', '\t'),
    'decimal comma':monitor(ROW).replace(',', ';').replace('98.4', '98,4'),
    'quoted decimal comma':monitor(ROW.replace('98.4', '"98,4"')),
    'all quoted':re.sub(r'([^,\n]+)', r'"\1"', monitor(ROW)), 'Windows lines':monitor(ROW).replace('\n', '\r\n'),
    'Mac lines':monitor(ROW).replace('\n', '\r'), 'empty lines':'\n\n'+monitor('', ROW, '')+'\n\n',
    'no line end':monitor(ROW)[:-1],
    'spaces':monitor(ROW).replace(',', ' , '), 'hard spaces':monitor(ROW).replace(',', '\xa0,\xa0'),
    'separators at the end':monitor(ROW+',', head=HEAD+','), 'an index':monitor('0,'+ROW, head=','+HEAD),
    'BOM':'\ufeff'+monitor(ROW), 'any case':monitor(ROW, head=HEAD.upper()),
    'a quoted separator':monitor(ROW+',"calm, warm"', head=HEAD+',note'),
    'doubled quotes':monitor(ROW+',"""calm"""', head=HEAD+',note'),
    'empty cells':monitor(ROW, ROW.replace('120', '')), 'NULLs':monitor(ROW, ROW.replace('120', 'NULL')),
}

@pytest.mark.parametrize('kind', READ)
def test_read(ward, kind):
    got = read(ward(READ[kind]))
    assert list(got.iloc[0])[:1] + list(got.iloc[0])[2:] == ['007', 120, 98.4, 120, 40]
    assert got.time[0] == pd.Timestamp('2025-01-31 13:45')

@pytest.mark.parametrize('name', ['ward.CSV', 'ward.tsv', 'ward.txt', 'ward.csv.gz', 'WARD.TXT.GZ'])
def test_endings(ward, name):
    raw = monitor(ROW).encode()
    assert read(ward(gzip.compress(raw) if name.lower().endswith('gz') else raw, name)).patient_id[0] == '007'

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'cp1252', 'latin-1'])
def test_encodings(ward, encoding):
    got = read(ward(monitor(ROW.replace('007', 'Jörg'),
                            head=HEAD.replace('MDC_TEMP_Result', 'MDC_TEMP_Result (°F)')).encode(encoding)))
    assert got.patient_id[0] == 'Jörg' and got.MDC_TEMP_Result[0] == 98.4

@pytest.mark.parametrize('encoding,words', [('cp850', 'byte 0x94 is not UTF-8'),
                                            ('mac-roman', 'byte 0x9A is not UTF-8'),
                                            ('utf-16-le', 'holds NUL bytes'), ('shift-jis', 'is not UTF-8')])
def test_unknown_encodings(ward, encoding, words):
    name = 'ソ' if encoding == 'shift-jis' else 'Jörg'
    with pytest.raises(ValueError, match=words): read(ward(monitor(ROW.replace('007', name)).encode(encoding)))

def test_units_in_the_header(ward, caplog):
    head = 'patient_id,ICULOS,HR[1/min],Temp (°F),Glucose [mmol/L],Creatinine (umol/L),Bilirubin_total (µmol/L),FiO2[%]'
    with caplog.at_level(logging.WARNING): got = read(ward(head+'\np1,1,120,98.6,5.5,62,15,40\n')).iloc[0]
    want = dict(HR=120, Temp=37, Glucose=99.1, Creatinine=.70, Bilirubin_total=.88, FiO2=.4)
    assert {k:round(got[k], 2) for k in want} == pytest.approx(want, rel=.01)
    assert 'unit of Glucose converted, rows=1' in caplog.text and 'HR converted' not in caplog.text
    with pytest.raises(ValueError, match=r"column HR \(mph\): unit 'mph' is not known for HR; known are 1/min"):
        read(ward('patient_id,ICULOS,HR (mph)\np1,1,80\n'))

def test_units_that_nobody_says(ward, caplog):
    def rows(head, *values):
        return f'patient_id,ICULOS,HR,{head}\n' + ''.join(f'p{k},1,80,{v}\n' for k,v in enumerate(values))
    words = 'ward.csv column Glucose: median 5.6 is unlike mg/dL .*fit in mmol/L.*Write Glucose'
    with pytest.raises(ValueError, match=words):
        read(ward(rows('Glucose', *[5.5, 5.6, 5.7]*9)))
    assert read(ward(rows('Glucose', *[100, 101, 102]*9))).Glucose[0] == 100
    with caplog.at_level(logging.WARNING): read(ward(rows('Glucose [mg/dL]', *[5.5, 5.6, 5.7]*9)))
    assert 'values unlike their unit, rows=27 stays=27, first ward.csv column Glucose' in caplog.text

def test_units_over_files(ward, tmp_path):
    head,more = 'patient_id,ICULOS,HR,Glucose\n', [5.5, 5.6, 5.7]
    for k in range(40): ward(head+''.join(f'p{k},{h},80,{v}\n' for h,v in enumerate(more)), f'set/p{k}.csv')
    with pytest.raises(ValueError, match='column Glucose: median 5.6 is unlike mg/dL'): read(tmp_path/'set')
    with pytest.raises(ValueError, match='column Glucose: median 5.6 is unlike mg/dL'):
        read(sorted((tmp_path/'set').iterdir()))

def test_two_separators():
    assert list(parse_table(b'id;Temp, body;HR\n7;37;80\n', 'f.csv').df) == ['id', 'Temp, body', 'HR']
    with pytest.raises(ValueError, match='may be separated by comma or semicolon; write sep=, as the first line'):
        parse_table('id;Temp, °C\n7;36,9\n'.encode(), 'f.csv')
    assert parse_table('sep=;\nid;Temp, °C\n7;36,9\n'.encode(), 'f.csv').df['Temp, °C'][0] == '36,9'

def test_rows_as_an_editor_shows_them():
    t = parse_table(b'\nsep=,\nid,HR\n\n1,80\n\n\n2,x\n', 'f.csv')
    with pytest.raises(ValueError, match="f.csv row 8 column HR: 'x' is not a number"): numbers(t.df.HR, t)

@pytest.mark.parametrize('cells,sep,want', [
    (['36,9', '37'], ';', [36.9, 37]), (['0,123', '1,234'], ';', [.123, 1.234]), (['36.9', '37'], ';', [36.9, 37]),
    (['1e3', '-2,5E-1'], ';', [1000, -.25]), (['1.234', '0.5'], ';', [1.234, .5]), (['1.234'], ',', [1.234])])
def test_decimal_signs(cells, sep, want):
    t = parse_table('\n'.join([f'id{sep}HR', *(f'7{sep}{c}' for c in cells)]).encode()+b'\n', 'f.csv')
    assert list(numbers(t.df.HR, t)) == want

@pytest.mark.parametrize('cells,words', [
    (['1,234'], "'1,234' may be in thousands or have three decimals"), (['1.234'], "'1.234' may be in thousands"),
    (['36,9', '1.234'], "row 3 column HR: '1.234' has a point, and other numbers of the file have a comma"),
    (['36,9', '37.5'], "row 2 column HR: '36,9' has a comma, and other"), (['36,9', '<35,5'], "'<35,5' is a limit"),
    (['36.9', '1,234'], 'may have a separator of thousands'),
    (['1.234,5'], 'separator of thousands|has a point'), (["1'234.5"], 'may have a separator of thousands')])
def test_ambiguous_numbers(cells, words):
    t = parse_table('\n'.join(['id;HR', *(f'7;{c}' for c in cells)]).encode()+b'\n', 'f.csv')
    with pytest.raises(ValueError, match=words): numbers(t.df.HR, t)

def archive(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as z:
        for name,text in files.items(): z.writestr(name, text)
    return out.getvalue()

def marked(raw, at, value):
    "An archive with a number in all heads of its members: flags at 6, method at 8"
    out = bytearray(raw)
    for sign,more in ((b'PK\x03\x04', 0), (b'PK\x01\x02', 2)):
        for m in re.finditer(re.escape(sign), raw): struct.pack_into('<H', out, m.start()+at+more, value)
    return bytes(out)

WHOLE = archive({'a/p1.psv':stay(80, 81), '__MACOSX/a/._p1.psv':'\0', '.hidden/p1.psv':'x', 'a/~$p1.psv':'x'})
@pytest.mark.parametrize('raw,words', [
    (marked(WHOLE, 8, 9), 'ward.zip: a/p1.psv cannot be unpacked: it is packed with deflate64; pack it again'),
    (marked(WHOLE, 8, 98), 'it is packed by method 98; pack it again with deflate'),
    (marked(WHOLE, 6, 1), 'it is encrypted; unpack it, and name the folder'),
    (WHOLE[:60]+b'\xff'*9+WHOLE[69:], 'a/p1.psv cannot be unpacked: it is damaged ('),
    (WHOLE[:-30], 'ward.zip: not a whole zip file; fetch it again'), (b'x', 'not a whole zip file'),
    (archive({'p1.csv.psv/x.doc':'x'}), 'ward.zip: no .psv file in it'),
    (archive({'../p1.psv':stay(80)}), '../p1.psv would be outside of the archive'),
    (archive({'C:\\p1.psv':stay(80)}), 'would be outside of the archive'),
    (archive({'p\x071.psv':stay(80)}), "the file name 'p\\x071.psv' is no UTF-8 that can be shown"),
    (archive({'a/p1.psv':stay(80), 'b/p1.psv':stay(81)}), 'a/p1.psv and b/p1.psv are both of the stay p1')])
def test_archives(ward, raw, words):
    with pytest.raises(ValueError) as e: read(ward(raw, 'ward.zip'))
    assert words in str(e.value) and '\n' not in str(e.value)

def test_archive_that_is_too_large(ward, monkeypatch):
    path = ward(archive({'p1.psv':b'0'*2_000_000}), 'ward.zip')
    monkeypatch.setattr('psutil.virtual_memory', lambda: type('M', (), dict(available=10**6))())
    with pytest.raises(ValueError, match='ward.zip: unpacks to 0.0 GB, and 0.0 GB of memory are free'): read(path)
    bomb = ward(gzip.compress(b'0'*2_000_000), 'ward.csv.gz')
    with pytest.raises(ValueError, match='ward.csv.gz: unpacks to'): read_table(bomb)

def test_rubbish_beside_stays(ward, tmp_path):
    for name in 'set/P1.PSV', 'set/b/p2.psv': ward('\ufeff'+stay(80, 81), name)
    for name in 'set/._p1.psv', 'set/.x/p3.psv', 'set/__MACOSX/p4.psv', 'set/~$p5.psv', 'set/notes.doc': ward('\0',
                                                                                                              name)
    assert read(tmp_path/'set').patient_id.tolist() == ['P1']*2 + ['p2']*2
    assert len(read(ward(WHOLE, 'ward.zip'))) == 2

def test_tables_in_a_set(ward, tmp_path, caplog):
    for name,who in (('a.csv', '7'), ('sub/b.tsv', '8'), ('LICENSE.txt', 'Some words'), ('SHA256SUMS.txt', 'x')):
        ward(monitor(ROW.replace('007', who)) if who.isdigit() else who, f'set/{name}')
    assert read(tmp_path/'set').patient_id.tolist() == ['7', '8']
    ward(stay(80), 'set/p1.psv')
    with caplog.at_level(logging.WARNING): assert read(tmp_path/'set').patient_id.tolist() == ['p1']
    assert 'files not read' in caplog.text and 'a.csv, sub/b.tsv' in caplog.text
    ward('Some words', 'other/words.txt')
    with pytest.raises(ValueError, match="words.txt row 1: the header 'Some words' has one"): read(tmp_path/'other')

def test_stay_in_two_sets(ward, tmp_path):
    ward(stay(80), 'a/p1.psv'), ward(stay(81), 'b/p1.psv')
    with pytest.raises(ValueError, match='both have the stay p1; give each stay a name'): read([tmp_path/'a',
                                                                                                tmp_path/'b'])
    with pytest.raises(ValueError, match='a/p1.psv and b/p1.psv are both of the stay p1'): read(tmp_path)

@pytest.mark.parametrize('text,words', [
    (stay(80, 81)[:-5], 'p2.psv row 3 has 40 cells|p2.psv row 3 has 39 cells'),
    (stay(80, 81)[:-2], 'p2.psv row 3: the file ends within a row'),
    (stay(80, '"81'), 'p2.psv row 3: a quote is not closed'),
    (stay(80, 'x'), "p2.psv row 3 column HR: 'x' is not a number"),
    (stay(80, 'inf'), "p2.psv row 3 column HR: 'inf' is infinite"),
    (stay(80).replace('HR|', 'HR|HR|').replace('80|', '80|80|'), "columns 1 and 2 are both named 'HR'")])
def test_cut_stay_in_a_set(ward, tmp_path, text, words):
    ward(stay(80, 82), 'set/p1.psv'), ward(text, 'set/p2.psv'), ward(stay(80, 82), 'set/p3.psv')
    with pytest.raises(ValueError, match=words): read(tmp_path/'set')

def test_set_read_at_once_and_one_by_one(ward, tmp_path):
    texts = stay(80, 81), stay(82).replace('\n', '\r\n'), stay(83, 'NaN', 84)+'\n', stay(85)[:-1]
    for k,text in enumerate(texts): ward(text, f'set/p{k}.psv')
    together = read(tmp_path/'set')
    apart = pd.concat([read(p) for p in sorted((tmp_path/'set').iterdir())], ignore_index=True)
    pd.testing.assert_frame_equal(together, apart)

def test_assumed_is_said(ward, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        read(ward(monitor(ROW+',3', head=HEAD+',bed °').encode('cp1252')[:-1]))
    said = [o.getMessage() for o in caplog.records]
    for words in 'encoding assumed, rows=0', 'file without a line end, rows=1', 'ignored columns, rows=1':
        assert any(words in o for o in said)

@pytest.mark.parametrize('save', [
    lambda df,p: df.set_index('Patient ID').to_parquet(p), lambda df,
    p: df.set_index(['Patient ID', 'Result Time']).to_parquet(p),
    lambda df,p: df[df.HR > 80].to_parquet(p), lambda df,
    p: df.assign(**{'Patient ID':pd.Categorical(df['Patient ID'])}).to_parquet(p)])
def test_parquet(tmp_path, save):
    df = pd.DataFrame({'Patient ID':['0', '007', '7'], 'Result Time':pd.to_datetime(['2025-01-31']*3),
                       'HR':[80, 81, 82]})
    save(df, tmp_path/'ward.parquet')
    got = read(tmp_path/'ward.parquet')
    assert got.patient_id.tolist()[-2:] == ['007', '7'] and got.HR.tolist()[-2:] == [81, 82]

@pytest.mark.parametrize('column,words', [
    (dict(patient_id=[1.5, 2]), 'ward.parquet row 1 column patient_id: 1.5 is no whole number that is exact'),
    (dict(patient_id=[True, False]), 'is no text or whole number'),
    (dict(patient_id=pd.to_datetime(['2025-01-31']*2)), 'is no text or whole number'),
    (dict(HR=[dict(v=1), dict(v=2)]), 'column HR: .* is not a number'),
    (dict(patient_id=[1., np.nan]), 'row 2 column patient_id: nan is not a patient id'),
    (dict(HR=[[1], [2]]), 'column HR: .* is not a number'),
    (dict(HR=pd.to_datetime(['2025-01-31']*2)), 'is a time, not a number'),
    (dict(HR=[np.inf, 1]), 'row 1 column HR: inf is infinite'), (dict(time=[1.7e9, 1.7e9]), 'time_as = "epoch-s"'),
    (dict(time=[True, False]), 'is not a time'), (dict(time=['13:45']*2), 'has no date')])
def test_parquet_refused(tmp_path, column, words):
    pd.DataFrame(dict(patient_id=['a', 'b'], HR=[80., 81]) | column).to_parquet(tmp_path/'ward.parquet')
    with pytest.raises(ValueError, match=words): read(tmp_path/'ward.parquet')

def test_large_integer_ids_beside_missing_values(tmp_path):
    ids = pd.array([2**53+1, 2**53+3], 'Int64')
    pd.DataFrame(dict(patient_id=ids, HR=pd.array([80, None], 'Int64'))).to_parquet(tmp_path/'ward.parquet')
    assert read(tmp_path/'ward.parquet').patient_id.tolist() == ['9007199254740993', '9007199254740995']

def test_ids_as_bytes(tmp_path):
    pd.DataFrame(dict(patient_id=[b'007', b'7'], HR=[80., 81])).to_parquet(tmp_path/'ward.parquet')
    assert read(tmp_path/'ward.parquet').patient_id.tolist() == ['007', '7']

@pytest.mark.parametrize('name', ['set.csv', 'set/p1.psv'])
def test_units_of_the_challenge_columns(ward, name):
    "The names of its columns do not prove its units"
    rows = pd.DataFrame(dict.fromkeys(CHALLENGE, np.nan), range(12)).assign(
        Glucose=np.linspace(5, 7, 12), ICULOS=range(1, 13), SepsisLabel=0)
    if name == 'set.csv': path = ward(rows.assign(patient_id='a').to_csv(index=False), name)
    else: path = ward(rows.to_csv(index=False, sep='|', na_rep='NaN'), name).parent
    with pytest.raises(ValueError, match='column Glucose: median 6 is unlike mg/dL .* would fit in mmol/L'): read(path)

MAP = """[[table]]
layout = "wide"
patient = "id"
time = "h"
"""
LONG = MAP.replace('wide', 'long')+"""code = "item"
value = "v"
unit = "u"
[table.signals]
Glucose = "glu"
"""
def test_a_unit_of_some_rows_is_none_of_the_others(ward):
    rows = [f'{k},0,glu,5.8,{u}' for k in range(40) for u in [('mmol/L', '')[k % 2]]]
    long = ward('\n'.join(['id,h,item,v,u', *rows])+'\n', 'long.csv')
    wide = ward('id,h,lab,poc\n'+''.join(f'{k},0,,5.8\n{k},1,5.8,\n' for k in range(40)), 'wide.csv')
    two = 'Glucose = [{name = "lab", unit = "mmol/L"}, "poc"]'
    for path,text in ((long, LONG), (wide, f'{MAP}[table.signals]\n{two}\n')):
        with pytest.raises(ValueError, match='of the values, median 5.8, is unlike mg/dL'):
            read(path, map=ward(text, 'ward.toml'))

def test_a_header_that_says_the_wrong_unit(ward, caplog):
    "Its values are like those of the canonical unit, before they were converted"
    own = ward('patient_id,time,Glucose [mmol/L]\n'+''.join(f'a,{k},{120+k%9}\n' for k in range(20)), 'own.csv')
    mapped = ward('id,h,lab [mmol/L]\n'+''.join(f'a,{k},{120+k%9}\n' for k in range(20)), 'mapped.csv')
    text = ward(f'{MAP}[table.signals]\nGlucose = "lab [mmol/L]"\n', 'ward.toml')
    for path,name in ((own, ''), (mapped, text)):
        caplog.clear()
        read(path, map=name)
        assert 'is unlike mg/dL' in caplog.text and 'as it stood, not converted from mmol/L' in caplog.text

def test_true_is_one_for_a_label_and_no_rate(ward, tmp_path):
    head = 'patient_id,time,HR,Gender,label\n'
    got = read(ward(head+'a,1,80,true,false\na,2,81,True,TRUE\n')).iloc[1]
    assert (got.HR, got.Gender, got.label) == (81, 1, 1)
    with pytest.raises(ValueError, match="row 2 column HR: 'true' is not a number"): read(ward(head+'a,1,true,1,0\n'))
    for rates in [True, False], [True, None]:
        pd.DataFrame(dict(patient_id='a', HR=rates, Gender=[True, False])).to_parquet(tmp_path/'ward.parquet')
        with pytest.raises(ValueError, match="row 1 column HR: .* is not a number"): read(tmp_path/'ward.parquet')
    none = pd.DataFrame(dict(patient_id='a', HR=[80., 81], Temp=pd.to_datetime([None, None])))
    none.to_parquet(tmp_path/'ward.parquet')
    assert read(tmp_path/'ward.parquet').Temp.isna().all()

def test_units_and_times_that_nobody_says(ward):
    source = read_source(ward('patient_id,Glucose,HR [1/min],Gender\na,120,80,1\na,121,81,1\n'))
    found = findings(source.df, source.notes).set_index('finding')
    assert found.loc['unit assumed', 'first'] == 'ward.csv: Glucose' and found.rows['unit assumed'] == 2
    assert found.rows['row without a time'] == 2
    assert 'unit assumed' not in set(read_source(ward(stay(80, 81), 'p1.psv')).notes.finding)

@pytest.mark.parametrize('packed', [False, True])
def test_files_of_other_kinds_are_named(ward, tmp_path, packed):
    names = 'a.csv', 'b.xlsx', 'c.json', 'd.csv.bz2', 'e.feather', 'f.dat', 'README.md', '.hidden'
    for o in names: ward('patient_id,time,HR\na,1,80\n', f'set/{o}')
    path = tmp_path/'set'
    if packed:
        path = tmp_path/'set.zip'
        with zipfile.ZipFile(path, 'w') as z:
            for o in names: z.write(tmp_path/'set'/o, o)
    text = ward('[[table]]\nlayout = "wide"\npatient = "patient_id"\ntime = "time"\nsignals = {HR = "HR"}\n', 'm.toml')
    for name in '', text:
        notes = read_source(path, map=name).notes.set_index('finding')
        assert notes.loc['files of another kind', 'first'] == 'b.xlsx, c.json, d.csv.bz2, e.feather, f.dat'

def test_a_table_without_times_beside_rows(ward, tmp_path):
    ward('patient_id,time,HR\na,1,80\n', 'set/rows.csv'), ward('patient_id,Age,Gender\na,80,1\n', 'set/static.csv')
    with pytest.raises(ValueError, match='some files have times and some have none'): read(tmp_path/'set')

def test_no_known_column(ward):
    for head in 'patient_id,time,code,value,unit', 'patient_id,time,Glucose mmol/L,HR_bpm,bed':
        with pytest.raises(ValueError, match='ward.csv: no column carries a known signal; .* `sepsis map ward.csv'):
            read(ward(head+'\na,0,5,6,7\n'))

def test_name_that_is_no_text(tmp_path):
    (tmp_path/'p\udcff.psv').write_text(stay(80))
    with pytest.raises(ValueError, match='is no UTF-8 that can be shown; rename it'): read(tmp_path)

def test_damaged_parquet(ward):
    for raw in b'', b'PAR1', b'PAR1'*99:
        with pytest.raises(ValueError, match='ward.parquet: not a whole parquet file') as e: read(ward(raw,
                                                                                                       'ward.parquet'))
        assert '\n' not in str(e.value)

# a day with times that only one reading fits: in any of these ways it is 13:45 on 31 January 2025
WARD = Table(pd.DataFrame(), 'f.csv')
def column(*cells): return pd.Series(cells, name='time')
@pytest.mark.parametrize('text', [
    '2025-01-31 13:45', '2025-01-31T13:45:00', '2025-01-31 13:45:00.000', '2025-01-31T13:45:00Z',
    '2025-01-31 14:45+01:00',
    '2025-01-31 14:45:00 +0100', '2025-01-31T14:45:00.1234567+01', '2025/01/31 13:45', '2025.1.31 13:45',
    '31/1/2025 13:45',
    '31-01-2025 13:45', '31.01.2025, 13:45', '1/31/2025 1:45:00 PM', '31-Jan-2025 13:45', '31 JAN 2025 1:45 p.m.',
    'January 31, 2025 13:45', '31st January 2025 13:45', '31JAN2025:13:45:00.00', '20250131T134500', '20250131134500',
    '202501311345', '20250131134500.000+0000', 20250131134500, 202501311345])
def test_one_reading(text):
    assert str(times(column(text), WARD)[0])[:16] == '2025-01-31 13:45'

@pytest.mark.parametrize('cells,words', [
    (['01/02/2025'], '1 February or 2 January'), (['1.2.2025'], '1 February or 2 January'),
    (['31/01/25'], 'a year of two digits'), (['25-01-31'], 'a year of two digits'),
    (['31-JAN-25'], 'a year of two digits'),
    (['13/01/2025', '01/13/2025'],
     "row 2 column time: '13/01/2025' begins with the day, row 3 '01/13/2025' with the month"),
    (['2025-01-31', None, '31.01.2025'], "'2025-01-31' and row 4 '31.01.2025' are written in two ways"),
    (['31 Jan 2025', 'Jan 31 2025'], 'written in two ways'),
    (['2025-01-31 10:00', '2025-01-31T10:00Z'], 'has a time zone, row 2'),
    (['13:45'], 'has no date'), (['1:45 PM'], 'has no date'), (['26:30', '27:30'], 'time_as = "hh:mm"'),
    (['1:02:03'], 'has no date'),
    (['45688.5'], 'time_as = "spreadsheet" or time_as = "hours"'), (['1738331100'], 'time_as = "epoch-s"'),
    (['1738331100000'], 'time_as = "epoch-ms"'), (['2025-02-29'], 'not a date of the calendar'),
    (['31.04.2025'], 'not a date of the calendar'), (['2025-01-31 24:30'], 'not a time of day'),
    (['31/01/2025 13:45 PM'], 'not a time of day'),
    (['2025-01-31 13:60'], 'not a time of day'), (['2025-01-31 13:45 EST'], 'is not a date and time'),
    (['Freitag'], 'is not a date'),
    (['31. Mai 2025'], 'names no month in English'), (['1', '2025-01-31'], 'is not a date and time'),
    (['1', 'x'], 'is not a date'),
    (['1 days 25:61:00'], 'is no duration'), ([1.7e15], 'is more than 1e+07 hours; write hours or a date')])
def test_no_single_reading(cells, words):
    with pytest.raises(ValueError) as e: times(column(*cells), WARD)
    assert words in str(e.value) and str(e.value).startswith('f.csv row ') and '\n' not in str(e.value)

@pytest.mark.parametrize('cells,how,want', [
    (['01/02/2025'], 'day-first', '2025-02-01'), (['01/02/2025'], 'month-first', '2025-01-02'),
    (['31/01/99'], 'day-first', '1999-01-31'),
    (['01-FEB-25 01.45.00 PM'], 'day-first', '2025-02-01 13:45'), (['45688'], 'spreadsheet', '2025-01-31'),
    (['0'], 'epoch-s', '1970-01-01'),
    ([1738331100], 'epoch-s', '2025-01-31 13:45'), (['1,5'], 'days', 36), (['90'], 'minutes', 1.5),
    ([7200], 'seconds', 2), 
    (['-1:30'], 'hh:mm', -1.5), (['100:00:36'], 'hh:mm', 100.01), (['45688'], 'hours', 45688)])
def test_declared(cells, how, want):
    got = times(column(*cells), WARD._replace(decimal=',' if ',' in str(cells[0]) else '.'), how)[0]
    assert got == (pd.Timestamp(want) if isinstance(want, str) else want)

@pytest.mark.parametrize('cells,how', [(['13/01/2025'], 'month-first'), (['1:75'], 'hh:mm'),
                                       (['2025-01-31'], 'hh:mm'), (['x'], 'epoch-s'),
                                       (['2025-01-31'], 'hours'), (['1e9'], 'hours'), (['1e300'], 'epoch-s'),
                                       (['1'], 'fortnights')])
def test_declared_against_the_rows(cells, how):
    with pytest.raises(ValueError, match='f.csv'): times(column(*cells), WARD, how)

def test_one_word_among_hours():
    with pytest.raises(ValueError, match="f.csv row 4 column time: 'never' is not a number, as most"):
        times(column('1', '2', 'never'), WARD)

def test_a_year_of_two_digits_may_come_first():
    with pytest.raises(ValueError, match='two digits, at either end'): times(column('25/01/30'), WARD)
    year = pd.Timestamp.now().year
    text = f'25/01/{(year+1)%100:02d}'
    for how in 'day-first', 'month-first':
        with pytest.raises(ValueError, match='f.csv row 2 column time'): times(column(text), WARD, how)
    assert times(column(f'25/01/{year%100:02d}'), WARD, 'day-first')[0] == pd.Timestamp(year, 1, 25)

def test_zone_of_a_spreadsheets_days():
    for cell in '45688.5', 45688.5:
        assert times(column(cell), WARD, 'spreadsheet', 'Europe/Berlin')[0] == pd.Timestamp('2025-01-31 11:00')
    assert times(column('0'), WARD, 'epoch-s', 'Europe/Berlin')[0] == pd.Timestamp('1970-01-01')

def test_summer_time():
    def read(*cells): return times(column(*cells), WARD, zone='Europe/Berlin')
    assert list(read('2025-03-30 01:59', '2025-03-30 03:00')) == [pd.Timestamp('2025-03-30 00:59'),
                                                                  pd.Timestamp('2025-03-30 01:00')]
    assert read('2025-10-26 02:30+02:00', '2025-10-26 02:30+01:00').diff()[1] == pd.Timedelta(hours=1)
    for cell,words in (('2025-03-30 02:30', 'no time in Europe/Berlin'),
                       ('2025-10-26 02:30', 'stands twice in Europe/Berlin')):
        with pytest.raises(ValueError, match=f"f.csv row 2 column time: '{cell}' .*{words}"): read(cell)
        typed = pd.Series(pd.to_datetime([cell]), name='time')
        with pytest.raises(ValueError, match=words): times(typed, WARD, zone='Europe/Berlin')

def test_missing_times():
    assert times(column(None, 'NULL', '2025-01-31'), WARD).isna().tolist() == [True, True, False]
    assert times(column(None, None), WARD).isna().all() and len(times(pd.Series([], name='time', dtype='str'),
                                                                      WARD)) == 0
    assert times(column(pd.NaT, pd.Timestamp('2025-01-31')), WARD).isna().tolist() == [True, False]

def test_ids_of_the_whole_file(ward):
    "In order, one reading for a column, and what is alike but not the same is a finding"
    text = 'patient_id,ICULOS,HR\n 007,1,80\n7,1,80\nJo\u0308rg,1,80\nJörg,2,81\n007 ,2,80\n'
    got = read(ward(text))
    assert got.patient_id.tolist() == ['007', '7', 'Jörg', 'Jörg', '007']
    found = findings(got).set_index('finding')
    assert found.rows['ids that are alike'] == 3 and found.stays['ids that are alike'] == 2
    assert members(ward('x').parent) != []

@pytest.mark.parametrize('other', ['\uff10\uff10\uff17', '\u0660\u0660\u0667', 'A\xa01'])
def test_ids_in_other_digits_are_a_finding(ward, other):
    text = f'patient_id,ICULOS,HR\n007,1,80\nA1,1,80\n{other},1,80\n'
    assert findings(read(ward(text))).set_index('finding').rows['ids that are alike'] == 2

SMALL = 'id,HR,note\n007,80,ok\n007,81.5,"calm, warm"\n8,,x y\n8,120,9.25\n'
WHOLE_ROWS = parse_table(SMALL.encode(), 'f.csv').df
def rows_of(text):
    "The rows of a text file as lists and its notes; None if it is refused"
    try: t = parse_table(text.encode(), 'f.csv')
    except ValueError as e:
        assert str(e).startswith('f.csv') and '\n' not in str(e)
        return None
    return t.df.fillna('').to_numpy().tolist(), t.notes

def test_cut_anywhere():
    "A file cut at any byte is refused, or has its first rows; only the last value may be shorter, and a note says so"
    whole,read = WHOLE_ROWS.fillna('').to_numpy().tolist(), 0
    for k in range(SMALL.index('\n')+1, len(SMALL)):
        if (got := rows_of(SMALL[:k])) is None: continue
        (rows,notes),read = got, read+1
        if SMALL[k-1] == '\n':
            assert rows == whole[:len(rows)] and not notes
            continue
        *before,last = rows
        assert notes and before == whole[:len(before)]
        (*cells,end),(*want,whole_end) = last, whole[len(before)]
        assert cells == want and whole_end.startswith(end)
    assert 4 < read < 20 # most cuts are found

@pytest.mark.parametrize('more', ['"', ',', '\n', '\r', '"\n', '\0', ';', '""'])
def test_stray_character_anywhere(more):
    "Wherever it stands, no row is lost and none is made: the file is refused, or has its rows with one cell changed"
    whole = WHOLE_ROWS.fillna('').to_numpy().tolist()
    for k in range(SMALL.index('\n')+1, len(SMALL)+1):
        if (got := rows_of(SMALL[:k]+more+SMALL[k:])) is None: continue
        assert len(got[0]) == len(whole)
        assert sum(a != b for x,y in zip(got[0], whole) for a,b in zip(x, y)) <= 1

@pytest.mark.parametrize('sep,decimal,encoding,end',
                         [(',', '.', 'utf-8', '\n'), (';', ',', 'cp1252', '\r\n'), ('\t', ',', 'utf-16', '\n'),
                                                      ('|', '.', 'utf-8-sig', '\r'), (';', '.', 'latin-1', '\n')])
def test_every_way_of_writing_gives_the_same_rows(sep, decimal, encoding, end):
    rng = np.random.default_rng(1)
    df = pd.DataFrame(dict(id=[f'{k:04d}' for k in range(60)], HR=rng.normal(80, 9, 60).round(2),
                           Temp=rng.normal(37, 1, 60),
                           when=pd.date_range('2025-01-20 10:00', periods=60, freq='7h'), note='süß, "5 µg"'))
    df.loc[::7, 'HR'] = np.nan
    text = df.to_csv(index=False, sep=sep, decimal=decimal, lineterminator=end, date_format='%d.%m.%Y %H:%M', na_rep='')
    t = parse_table(text.encode(encoding), 'f.csv')
    assert t.decimal == decimal and t.df.id.tolist() == df.id.tolist() and set(t.df.note) == {'süß, "5 µg"'}
    for c in 'HR', 'Temp': np.testing.assert_array_equal(numbers(t.df[c], t), df[c])
    assert times(t.df.when, t).tolist() == df.when.tolist()

def test_cut_stay_is_found_in_a_set_as_alone(ward, tmp_path):
    text = stay(80, 81)
    ward(stay(80, 82), 'set/p1.psv')
    def outcome(*paths):
        try: return read(paths).iloc[:,1:].fillna(-9).to_numpy().tolist()
        except ValueError as e: return str(e).partition('.psv ')[2]
    for k in range(len(text)-len(text.splitlines()[-1])-2, len(text)+1, 7):
        path = ward(text[:k], 'set/p2.psv')
        together,apart = outcome(tmp_path/'set'), outcome(path)
        assert together[2:] == apart if isinstance(together, list) else together == apart, k

@pytest.mark.parametrize('digits', [4, 5, 6, 10])
def test_day_numbers_have_whole_seconds(digits):
    "07:00 is 45688.29167 with five decimals, which is no 07:00:00.288"
    t = pd.Series(pd.date_range('2025-01-31', periods=200, freq='h').as_unit('us'))
    text = [f'{o:.{digits}f}' for o in (t-pd.Timestamp('1899-12-30'))/pd.Timedelta('1D')]
    assert times(pd.Series(text, name='t'), parse_table(b'a,b\n1,2\n', 'x.csv'), 'spreadsheet').tolist() == t.tolist()

def test_bilirubin_of_twenty_stays(ward):
    "In µmol/L it looks like mg/dL of the very ill; of few stays it is a finding, and of many refused"
    def rows(stays, head='Bilirubin_total'): # medians of the reference's stays, in µmol/L
        x = np.random.default_rng(3).permutation(np.geomspace(3, 48, stays)).round(1)
        return ward(f'patient_id,ICULOS,HR,{head}\n' + ''.join(f'p{k},1,80,{v}\n' for k,v in enumerate(x)))
    with pytest.raises(ValueError, match='Bilirubin_total: median 12.* would fit in µmol/L .then 0.70'): read(rows(20))
    found = read_source(rows(5)).notes.set_index('finding').advice
    assert 'would fit in µmol/L' in found['values unlike their unit']
    assert 'values unlike their unit' not in set(read_source(rows(20, 'Bilirubin_total [µmol/L]')).notes.finding)

def test_fahrenheit_becomes_celsius(ward, caplog):
    "`read` gives °C; what the stream sends stays as it came"
    path = ward('patient_id,ICULOS,HR,Temp\np1,1,80,98.6\np1,2,80,37\np2,1,80,95\n')
    with caplog.at_level(logging.WARNING): assert read(path).Temp.round(1).tolist() == [37, 37, 35]
    assert 'temperature in mixed units, rows=1 stays=1' in caplog.text
    assert read_source(path).df.Temp.tolist() == [98.6, 37, 95]
    assert read(ward(monitor(ROW))).MDC_TEMP_Result.tolist() == [98.4]

def test_a_unit_that_nothing_checks_is_said(ward):
    found = read_source(ward('patient_id,ICULOS,HR,CRP\n'+'p1,1,80,12\n'*9)).notes.set_index('finding')
    assert 'CRP could be in mg/dL, nmol/L' in found.advice['unit assumed, and not checked']
    assert 'unit assumed, and not checked' not in set(read_source('sample').notes.finding)

EVENT_MAP = '''name = "l"
[[table]]
files = "*.csv"
layout = "long"
patient = "patient_id"
time = "time"
code = "code"
value = "value"
[table.signals]
HR = "hr"
'''
def test_messages_name_the_place(ward, tmp_path):
    ward(EVENT_MAP, 'l.toml')
    head = 'patient_id,time,code,value\n'
    for name,row in dict(x='p1,2025-01-31 10:00:00,hr,80', y='p2,2025-01-31 10:00:00Z,hr,80').items():
        ward(f'{head}{row}\n', f'two/{name}.csv')
    with pytest.raises(ValueError, match='^x.csv and y.csv row 2 column time: .*Z. has a time zone, row 2'):
        read(tmp_path/'two', map=tmp_path/'l.toml')
    ward(f'{head}p1,2025-01-31 10:00:00,hr,\n', 'null/x.csv')
    with pytest.raises(ValueError, match="none; x.csv row 2 .code 'hr'.: event of a known code without a value"):
        read(tmp_path/'null', map=tmp_path/'l.toml')
    ward(EVENT_MAP.replace('HR =', 'Procalcitonin ='), 'l.toml')
    with pytest.raises(ValueError, match=r'unknown signal .* name that as \[data\] signals'):
        read(tmp_path/'two', map=tmp_path/'l.toml')
    col = pd.Series(['5', 'inf', None], name='onset')
    with pytest.raises(ValueError, match="o.csv row 3 column onset: 'inf' is not a time"):
        times(col, Table(pd.DataFrame(), 'o.csv'))

def test_a_file_without_rows_beside_full_ones(ward, tmp_path):
    ward('name = "w"\n[[table]]\nfiles = "*.csv"\npatient = "patient_id"\ntime = "t"\n'
         '[table.signals]\nHR = "hr"\n', 'w.toml')
    for k,row in enumerate(('p1,1,80\n', '')):
        ward('patient_id,t,hr\n'+row, f'map/{k}.csv')
        ward('patient_id,ICULOS,HR\n'+row, f'own/{k}.csv')
    for path,m in ((tmp_path/'map', str(tmp_path/'w.toml')), (tmp_path/'own', '')):
        found = read_source(path, map=m)
        assert len(found.df) == 1 and found.notes.set_index('finding')['first']['file without rows'] == '1.csv'
    for path,m in (('map', str(tmp_path/'w.toml')), ('own', '')):
        (tmp_path/path/'0.csv').unlink()
        with pytest.raises(ValueError, match='no rows|without rows'): read(tmp_path/path, map=m)
