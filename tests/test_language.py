"One word for one thing: the terms of the field, in exported code, in prose and in what users read"
import re
import nbformat, pytest
from conftest import ROOT

# banned: say instead
BANNED = {
    r'\brings?\b(?! buffer)|\brung\b|\brang\b|\bringing\b':'alert', r'\balarm(s|ed|ing)?\b':'alert',
    r'\bunsure\b|\bdoubts?\b|\bheedless\b|\bstrange\b':'indeterminate', r'\bblind\b':'unaware; weak',
    r'\bmend(s|ed|ing)?\b':'fix', r'\blest\b':'so that … not', r'\bworths?\b':'utility; contribution',
    r'\belsewhere\b':'external validation; in another place', r'\bdealt\b':'split', r'\bswept\b':'cleared',
    r'\bdraws of the ward\b|\bdrawn wards?\b':'resample of the cohort', r'\bcries wolf\b':'alerts always',
    r'\bnobody has rung\b':'no alert'}
WORDS = re.compile('|'.join(f'(?:{p})' for p in BANNED), re.I)

def spoken(text):
    "Text with identifiers taken apart into words"
    return re.sub(r'[_\d]', ' ', text)

def found(text): return sorted({m[0].lower() for m in WORDS.finditer(spoken(text))})

PAGES = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT/'nbs').as_posix())
def test_page(page):
    cells = nbformat.read(page, 4).cells
    texts = [c.source for c in cells if c.cell_type == 'markdown' or c.cell_type == 'code']
    assert not {w for t in texts for w in found(t)}

NAMES = 'README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'reports/README.md', 'settings.ini', 'Makefile'

@pytest.mark.parametrize('name', NAMES)
def test_text(name): assert not found((ROOT/name).read_text())

REPORTS = sorted((ROOT/'reports').glob('*.html'))

@pytest.mark.parametrize('report', REPORTS, ids=lambda p: p.name)
def test_report(report):
    hidden = r'<(script|style)\b.*?</\1>|data:image/png;base64,[^"]*|<[^>]+>'
    text = re.sub(hidden, ' ', report.read_text(), flags=re.S)
    assert not found(text)

def test_the_check_can_fail():
    assert found('the bell rang; stay_rings, mended') == ['mended', 'rang', 'rings']
    assert not found('a ring buffer, a range, a ward')
