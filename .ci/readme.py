"Write README.md, with its pictures, from the executed nbs/index.ipynb (its own cells only, no code that is hidden)"
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parent.parent
out = Path(sys.argv[1] if len(sys.argv) > 1 else root)
hide = TagRemovePreprocessor(enabled=True, remove_input_tags={'hide-input'}, remove_cell_tags={'hide'})
exporter = MarkdownExporter(preprocessors=[hide])
text,found = exporter.from_filename(str(root/'nbs/index.ipynb'), {'output_files_dir':'reports/readme'})
alts = iter([re.search(r'^# (.+)', c.source, re.M)[1] for c in nbformat.read(root/'nbs/index.ipynb', 4).cells
             if c.cell_type == 'code' and any('image/png' in o.get('data', {}) for o in c.outputs)]) # a figure's first comment says what it shows
text = re.sub(r'\s*!\[png\]', lambda m: f'\n\n![{next(alts)}]', text)
text = re.sub(r'\n{3,}', '\n\n', re.sub(r'^```\n(?=import|from|others)', '```python\n', text, flags=re.M))
(out/'README.md').write_text(text.strip()+'\n')
for name,data in found['outputs'].items():
    path = out/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
