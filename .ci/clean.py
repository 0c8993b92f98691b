"""What git keeps of a notebook: no counts, times or ids of a run, and no outputs that differ from run to run.

As git's filter (set by `make env`) from stdin to stdout; with paths, in place; as JupyterLab's hook (`make lab`) at
each save. A cell whose outputs differ from run to run is tagged `varies`.
"""
import json, sys
from pathlib import Path
from nbdev.clean import clean_nb
from nbdev.config import get_config

def clean(text):
    "The text of a notebook, cleaned; anything else as it is"
    try: nb = json.loads(text)
    except ValueError: return text
    if nb.get('nbformat') != 4: return text
    cfg = get_config(path=Path(__file__).parent)
    clean_nb(nb, clean_ids=cfg.clean_ids, allowed_cell_metadata_keys=cfg.allowed_cell_metadata_keys)
    nb['metadata'].pop('widgets', None)
    for c in nb['cells']:
        if 'outputs' not in c: continue
        if 'varies' in c['metadata'].get('tags', []): c['outputs'] = []
        c['outputs'] = [o for o in c['outputs'] if o.get('name') != 'stderr' and not _is_widget(o)]
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n'

def _is_widget(o): return 'application/vnd.jupyter.widget-view+json' in o.get('data', {})

def pre_save(model, **kw):
    "JupyterLab's hook before it writes a file, so that git sees no change where there is none"
    if model['type'] == 'notebook': model['content'] = json.loads(clean(json.dumps(model['content'])))

def main(paths):
    for p in (f for o in paths for f in (Path(o).rglob('*.ipynb') if Path(o).is_dir() else [Path(o)])):
        if '.ipynb_checkpoints' in p.parts: continue
        text = p.read_text(encoding='utf-8')
        if (new := clean(text)) != text: p.write_text(new, encoding='utf-8')
    if paths: return
    sys.stdin.reconfigure(encoding='utf-8')
    sys.stdout.reconfigure(encoding='utf-8')
    sys.stdout.write(clean(sys.stdin.read()))

if __name__ == '__main__': main(sys.argv[1:])
