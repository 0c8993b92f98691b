"The template of all reports: offline, verdict and contents first, on a phone, in the dark, figures with their text"
import inspect, json, re, shutil, subprocess
from base64 import b64encode
from io import BytesIO
import matplotlib.pyplot as plt, nbformat, pandas as pd, pytest
from conftest import ROOT
from sepsis_nb.report import flow, plots, stay_plot
from sepsis_nb.report.page import READERS, page_html
from sepsis_nb.report.plots import new_figure, set_alt
from sepsis_nb.report.provenance import provenance

nbf,RUNS = nbformat.v4, ('02_train', 'site', 'prove/21_benchmarks', 'prove/32_chaos', 'prove/40_scale')
OFFLINE = re.compile(r'<(?:script|iframe|link|object|embed)\b|\bsrc="(?!data:)|url\((?!["\']?data:)|@import')
MADE = 'class="provenance"' # by this template

def foreign(html):
    "What a page would load from another place, or run"
    return sorted(set(OFFLINE.findall(html)))

def png(fig):
    with BytesIO() as f:
        fig.savefig(f)
        data = {'image/png':b64encode(f.getvalue()).decode()}
    plt.close(fig)
    return nbf.new_output('display_data', data, metadata=fig._repr_mimebundle_()[1])

@pytest.fixture(scope='module')
def page():
    "A report with what reports have: prose, code, a wide table, a long text, a figure, a verdict, tagged headings"
    wide = pd.DataFrame({f'column {i}':['0.123 (0.100 to 0.150)'] for i in range(12)}).to_html()
    fig,_ = new_figure('Half of the stays are alerted', 'n = 2', (9, 3))
    set_alt(fig, 'AUROC 0.830 (0.820 to 0.840)')
    def code(source, *outputs, **metadata): return nbf.new_code_cell(source, outputs=list(outputs), metadata=metadata)
    def html(text): return nbf.new_output('execute_result', {'text/html':str(text)})
    cells = [nbf.new_markdown_cell('# A run\n\n> In one line.\n\nMore of it.'), code('import this')]
    for o in READERS: cells += [nbf.new_markdown_cell(f'## Part of {o}\n\nProse.', metadata=dict(tags=[f'for-{o}'])),
                                code('x', png(fig), html(wide))]
    cells += [code('v', html('<b>Verdict.</b> Good.'), tags=['verdict']),
              code('p', html(provenance('sepsis train -p data /home/me/x.zip', 'x.zip', seed=7)), tags=['provenance']),
              code('# Parameters\ndata = "/home/me/x.zip"', html('x'*300)), code('t', html('<td>/home/me/x.zip</td>'))]
    return page_html(nbf.new_notebook(cells=cells))

def test_nothing_is_loaded(page):
    assert not foreign(page) and len(page) < 4e5
    assert foreign('<script src="https://x">') and foreign('<img src="x.png">') and foreign('@import "x"')

def test_the_answer_comes_first(page):
    parts = '>A run<', 'In one line', 'Verdict.', MADE, '<nav aria-label="Contents of', 'More of it'
    at = [page.index(o) for o in parts]
    assert at == sorted(at)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for o in READERS: # each reader's part is one click away, beside the text and on a phone
        assert page.count(f'For the {o}: <a href="#Part-of-{o}">') == 2 and f'Part-of-{o}' in ids
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)

def test_a_report_names_no_folder(page): assert '/home' not in page and 'x.zip' in page

def test_figures_say_what_they_show(page):
    assert set(re.findall(r'<img alt="([^"]*)"', page)) == {
        'Half of the stays are alerted. n = 2. AUROC 0.830 (0.820 to 0.840).'}

def test_every_plot_tells_its_numbers():
    found = {n:o for m in (plots, stay_plot, flow) for n,o in vars(m).items() if n.startswith('plot_')}
    assert len(found) > 11 and not [n for n,o in found.items() if 'set_alt(' not in inspect.getsource(o)]

@pytest.mark.parametrize('name', RUNS)
def test_reports_have_their_parts(name):
    "A verdict, a provenance, a part for each reader; and each figure states its finding"
    cells = nbformat.read(ROOT/f'nbs/{name}.ipynb', 4).cells
    tags = [t for c in cells for t in c.metadata.get('tags', [])]
    assert all(tags.count(o) == 1 for o in ('verdict', 'provenance', *(f'for-{o}' for o in READERS)))
    drawn = [c.source for c in cells if c.cell_type == 'code' and 'plt.subplots' in c.source]
    assert all('set_title' in o or 'show_ratios' in o for o in drawn)

@pytest.mark.parametrize('report', sorted((ROOT/'reports').glob('*.html')), ids=lambda p: p.name)
def test_published(report):
    html = report.read_text()
    assert MADE in html and not foreign(html) and not re.search('alt=""', html)

def test_published_figures_are_small():
    assert sum(p.stat().st_size for p in (ROOT/'reports').glob('*.html')) < 4e6

PROBE = '''<iframe src="page.html" width=390 height=800 style="color-scheme: light"></iframe>
<iframe src="page.html" width=390 height=800 style="color-scheme: dark"></iframe><script>
const found = f => { const d = f.contentDocument, css = o => d.defaultView.getComputedStyle(d.querySelector(o))
  return {width: d.documentElement.scrollWidth, contents: css('nav.inline').display, side: css('nav.side').display,
    scroll: [...d.querySelectorAll('.scroll')].filter(o => o.scrollWidth > o.clientWidth).length,
    paper: css('body').backgroundColor, ink: css('body').color} }
onload = () => document.body.innerText = JSON.stringify([...document.querySelectorAll('iframe')].map(found))</script>'''

@pytest.mark.skipif(not shutil.which('chromium'), reason='needs chromium: apt-get install chromium')
def test_on_a_phone(page, tmp_path):
    "The page is no wider than 390 px: tables and figures scroll in it; in the dark it is dark"
    (tmp_path/'page.html').write_text(page)
    (tmp_path/'probe.html').write_text(PROBE)
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--allow-file-access-from-files',
               '--dump-dom', f'--user-data-dir={tmp_path}/profile']
    done = subprocess.run(['chromium', *options, f'file://{tmp_path}/probe.html'], capture_output=True, text=True,
                          timeout=60)
    light,dark = json.loads(re.search(r'\[.*\]', done.stdout)[0])
    for o in light,dark:
        assert (o['width'], o['side'], o['scroll']) == (390, 'none', 8) and o['contents'] != 'none', o
    def brightness(o): return [sum(map(int, re.findall(r'\d+', o[k]))) for k in ('paper', 'ink')]
    assert brightness(light)[0] > 700 > 100 > brightness(light)[1]
    assert brightness(dark)[0] < 100 < 600 < brightness(dark)[1]
