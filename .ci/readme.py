"Write README.md, with its pictures, from the executed nbs/index.ipynb (its own cells only, no code that is hidden)"
import os, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parent.parent
out,index = Path(sys.argv[1] if len(sys.argv) > 1 else root), root/'nbs/index.ipynb'

def has_figure(cell): return cell.cell_type == 'code' and any('image/png' in o.get('data', {}) for o in cell.outputs)

hide = TagRemovePreprocessor(enabled=True, remove_input_tags={'hide-input'}, remove_cell_tags={'hide'})
text,found = MarkdownExporter(preprocessors=[hide]).from_filename(str(index), {'output_files_dir':'reports/readme'})
figures = [c.source for c in nbformat.read(index, 4).cells if has_figure(c)]
alts = iter([re.search(r'^# (.+)', source, re.M)[1] for source in figures]) # its first comment is the alt text
text = re.sub(r'\s*!\[png\]', lambda m: f'\n\n![{next(alts)}]', text)
text = re.sub(r'\n{3,}', '\n\n', re.sub(r'^```\n(?=import|from|others)', '```python\n', text, flags=re.M)).strip()+'\n'
def from_root(m): # a link from nbs/, seen from the project's folder
    return m[0] if re.match('https?:|#|reports/readme/', m[1]) else f']({os.path.normpath("nbs/"+m[1])})'
text = re.sub(r'\]\(([^)]+)\)', from_root, text)
links = {o.split('#')[0] for o in re.findall(r'\]\(([^)]+)\)', text) if not re.match('https?:|#', o)}
broken = sorted(o for o in links-set(found['outputs']) if not (root/o).exists())
if broken: sys.exit(f'nbs/index.ipynb links to files that do not exist: {", ".join(broken)}')
(out/'README.md').write_text(text)
for old in (out/'reports/readme').glob('*.png'): old.unlink()
for name,data in found['outputs'].items():
    path = out/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
