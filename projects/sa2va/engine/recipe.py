"""The settings of a run as lines of text: all that matter, and those that differ from the default."""
from __future__ import annotations

import json
from typing import Any, Mapping

from sa2va_dpo.common.differences import flat

from .facts import FACTS, LOADERS, MISSING, get

_NO_RECIPE = ('checkpoint', 'data_root')
# Where data and caches lie, and what only says how a run looks while it goes.
_PLACES = ('cache', 'custom_imports', 'default_scope', 'env_cfg', 'launcher', 'load_from', 'log_level', 'resume',
           'work_dir')


def recipe(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run was trained with.

    Args:
        config: as plain values (``engine/run_record.py``).
    """
    wanted: dict[str, Any] = {'model.type': get(config, ('model', 'type'))}
    for fact in FACTS:
        if fact.name not in _NO_RECIPE:
            found = [get(config, (fact.name,)), *(get(config, tuple(place.split('.'))) for place in fact.places[:1])]
            wanted[fact.name] = next((value for value in found if value is not MISSING and value is not None), MISSING)
    for where in (('model', 'preference'), ('model', 'trainable'), ('model', 'reference'), ('rounds',),
                  ('optim_wrapper', 'optimizer', 'type'), ('train_dataloader', 'dataset', 'pairs_per_image'),
                  ('train_dataloader', 'dataset', 'flip_prob'), ('train_dataloader', 'dataset', 'brightness')):
        wanted.update(flat(get(config, where), '.'.join(where)))
    for name in ('beta', 'label_smoothing'):
        wanted.pop(f'model.preference.{name}', None)
    return [(name, show(value)) for name, value in wanted.items() if value is not MISSING]


def differing(default: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, default, here) of the settings of a config that differ, a fact once and under its own name."""
    first, second = dict(flat(default)), dict(flat(here))
    led = {place: fact.name for fact in FACTS for place in fact.places}
    names = [name for name in dict.fromkeys([*first, *second]) if name.split('.')[0] not in (*_PLACES, *_NO_RECIPE)]
    found = []
    for name in names:
        was, now = first.get(name, MISSING), second.get(name, MISSING)
        follows = led.get(name) not in (None, name) or name.endswith(('.preprocessor', '.data_root', '.checkpoint'))
        if was != now and not follows and not name.startswith(tuple(f'{loader}.collate_fn' for loader in LOADERS)):
            found.append((name, show(was), show(now)))
    return found


def show(value: Any) -> str:
    """A value as a config spells it, or a dash where there is none."""
    if value is MISSING:
        return '–'
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
