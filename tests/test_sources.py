"Sources under other names: the built-in maps, the second hospital, what `inspect` shows and what `map` drafts"
import tomllib
import pandas as pd, pytest
from conftest import ROOT
from sepsis_nb.data import SAMPLE_EICU

MAPS = {p.stem:tomllib.loads(p.read_text()) for p in sorted((ROOT/'sepsis_nb/maps').glob('*.toml'))}

def names(table):
    "Columns or codes that a table of a map takes for signals"
    for o in table.get('signals', {}).values():
        yield from (c if isinstance(c, str) else c.get('name') for c in (o if isinstance(o, list) else [o]))

@pytest.fixture(scope='module')
def eicu(): return {p.stem:pd.read_parquet(p) for p in SAMPLE_EICU.glob('*.parquet')}

def test_second_hospital_is_what_was_published(eicu):
    assert (eicu['dyn'].shape, eicu['outc'].shape, eicu['sta'].shape) == ((42524, 50), (42524, 3), (896, 5))
    septic = eicu['outc'].groupby('stay_id').label.any()
    assert (len(septic), septic.sum(), eicu['outc'].label.sum()) == (896, 63, 806)

def test_map_of_yaib_names_every_column(eicu):
    for o in MAPS['yaib']['table']:
        roles = {o[k] for k in ('patient', 'time', 'label') if k in o}
        assert roles | set(names(o)) == set(eicu[o['files'].removesuffix('.*')])
