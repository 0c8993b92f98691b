"Streaming early warning of sepsis: train in a notebook, score a table, a patient or a Kafka stream"
from importlib import import_module

__version__ = "0.1.0"
# name to its module, which is imported when the name is asked for
_DOOR = dict(load_scorer='model.load', read='data', outputs_frame='stream.outputs', follow='stream.outputs',
             follow_frames='stream.outputs')

def __getattr__(name):
    if name not in _DOOR: raise AttributeError(f'module sepsis_nb has no attribute {name}')
    return getattr(import_module(f'sepsis_nb.{_DOOR[name]}'), name)

def __dir__(): return [*globals(), *_DOOR]
