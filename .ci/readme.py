"Write README.md, with its pictures, from the executed nbs/index.ipynb (its own cells only, no code that is hidden)"
import sys
from pathlib import Path
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parent.parent
out = Path(sys.argv[1] if len(sys.argv) > 1 else root)
hide = TagRemovePreprocessor(enabled=True, remove_input_tags={'hide-input'}, remove_cell_tags={'hide'})
exporter = MarkdownExporter(preprocessors=[hide])
text,found = exporter.from_filename(str(root/'nbs/index.ipynb'), {'output_files_dir':'reports/readme'})
(out/'README.md').write_text(text.strip()+'\n')
for name,data in found['outputs'].items():
    path = out/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
