"""The facts of a run: each has one name at the top of a config and a list of places that use it.

To mmengine a config's names are plain text: a child that writes ``beta = 0.2`` leaves ``model.preference.beta`` as its
base had it. :func:`settle` makes every place say what the name says, or the name what the place says where the place
was written.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterator

from sa2va_dpo.common.bundled import bundled
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.losses.objective import PreferenceConfig
from sa2va_dpo.models.view_geometry import ViewGeometry

from .settings import known_names

MISSING = object()
Where = tuple  # of keys and list positions, from the top of the config
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def _is_number(value) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def _is_count(value) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and value >= 1


def is_view(value) -> bool:
    """Whether a setting ``view`` makes sense; None: as the checkpoint states it."""
    try:
        ViewGeometry.of(value)
    except (InputError, TypeError):
        return False
    return True


@dataclass(frozen=True)
class Fact:
    """One fact of a run.

    Attributes:
        name: at the top of a config, and of ``--cfg-options``.
        places: dotted paths, ``*`` for every item of a list. The first leads: setting it sets the fact; the others
            follow.
        valid: whether a value makes sense.
        needs: what a value must be, for the message.
        same: every place has to hold one value, so that each of them leads.
    """
    name: str
    places: tuple[str, ...]
    valid: Callable[[Any], bool]
    needs: str
    same: bool = False

    def live(self, cfg) -> list[Where]:
        """The places that something in ``cfg`` reads."""
        return [where for place in self.places for where in _expand(cfg, tuple(place.split('.')))
                if _is_read(cfg, where)]


FACTS: tuple[Fact, ...] = (
    Fact('checkpoint', ('model.checkpoint', *(f'{loader}.{part}.preprocessor' for loader in LOADERS
                                              for part in ('dataset', 'collate_fn'))),
         lambda v: isinstance(v, str) and bool(v), 'the directory of a checkpoint'),
    Fact('data_root', ('train_dataloader.dataset.data_root',
                       *(f'{loader}.dataset.source.data_root' for loader in LOADERS[1:])),
         lambda v: isinstance(v, str) and bool(v), 'the output folder of the pair generator'),
    Fact('score_size', ('model.score_size', 'train_dataloader.dataset.score_size'),
         lambda v: v is None or _is_count(v), 'a number of pixels, or None for the SAM2 input size', same=True),
    Fact('seed', ('randomness.seed', 'train_dataloader.dataset.seed'),
         lambda v: v is None or v == 0 and _is_number(v) or _is_count(v), 'a whole number of at least 0'),
    Fact('beta', ('model.preference.beta',), lambda v: _is_number(v) and v > 0, 'a number above 0'),
    Fact('label_smoothing', ('model.preference.label_smoothing',), lambda v: _is_number(v) and 0 <= v < 0.5,
         'a number of at least 0 and below 0.5'),
    Fact('lr', ('optim_wrapper.optimizer.lr', 'param_scheduler.*.eta_max'), lambda v: _is_number(v) and v >= 0,
         'a number of at least 0'),
    Fact('max_epochs', ('train_cfg.max_epochs',), lambda v: v is None or _is_number(v) and v > 0, 'a number above 0'),
    Fact('max_iters', ('train_cfg.max_iters',), lambda v: v is None or _is_count(v), 'a whole number of at least 1'),
    Fact('batch_size', ('train_dataloader.batch_size', 'strategy.train_micro_batch_size_per_gpu'), _is_count,
         'a whole number of at least 1'),
    Fact('min_iou_gap', ('train_dataloader.dataset.min_iou_gap',), lambda v: _is_number(v) and 0 <= v <= 1,
         'a number from 0 to 1'),
    Fact('view', tuple(f'{loader}.dataset.view' for loader in LOADERS), is_view,
         'fields of a view: grid, overlap, blend, context, whole_share (docs/resolution.md)', same=True),
    # The window over which a logged value is averaged is the stretch since the last line.
    Fact('log_interval', ('default_hooks.logger.interval', 'log_processor.window_size'), _is_count,
         'a whole number of at least 1'),
)


def get(cfg, where: Where) -> Any:
    """The value at ``where``, or ``MISSING``."""
    node = cfg
    for key in where:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return node


def put(cfg, where: Where, value) -> None:
    """Write ``value`` at ``where``; dicts on the way are made."""
    node = cfg
    for key in where[:-1]:
        if get(node, (key,)) is MISSING:
            node[key] = {}
        node = node[key]
    node[where[-1]] = value


def spell(where: Where) -> str:
    """As ``--cfg-options`` spells it."""
    return '.'.join(map(str, where))


def _expand(cfg, pattern: Where) -> Iterator[Where]:
    if '*' not in pattern:
        yield pattern
        return
    at = pattern.index('*')
    items = get(cfg, pattern[:at])
    for index in range(len(items) if isinstance(items, (list, tuple)) else 0):
        yield from _expand(cfg, (*pattern[:at], index, *pattern[at + 1:]))


def _is_read(cfg, where: Where) -> bool:
    parent = get(cfg, where[:-1])
    if where == ('randomness', 'seed'):
        return parent is MISSING or isinstance(parent, dict)
    if not isinstance(parent, dict):
        return False
    names = known_names(where[:-1], parent)
    return where[-1] in parent if names is None else where[-1] in names


def settle(cfg, before, was_set: Callable[[Where], bool], command_line: bool = False) -> dict[Where, Any]:
    """Let every place of every fact hold one value, in place.

    Args:
        cfg: a config after one layer (a file on its bases, or the command line on a file) was laid on ``before``.
        before: the settled config below the layer; empty for a file without bases.
        was_set: whether the layer itself wrote the setting at a place.
        command_line: the layer is the command line.

    Returns:
        What was written: place -> value.

    The rule, for each fact. What the layer set is the value: the leading place before the name, because that is what
    mmengine reads; on the command line the two must agree. Where the layer set neither, the value is the one before. A
    following place that the layer set itself, or that differed before, stays; every other one follows.

    Raises:
        InputError: settings of one layer contradict each other, or a value makes no sense.
    """
    written: dict[Where, Any] = {}

    def write(where: Where, value) -> None:
        old = get(cfg, where)
        if old is MISSING or old != value or type(old) is not type(value):
            put(cfg, where, value)
            written[where] = value

    guide = _guide_values(cfg)
    given: dict[str, Any] = {}
    for fact in FACTS:
        places = fact.live(cfg)
        if not places:
            continue
        top = (fact.name,)
        leading = places if fact.same else places[:1]
        values = {where: get(cfg, where) for where in (top, *leading)
                  if was_set(where) and get(cfg, where) is not MISSING}
        if not command_line and len(values) > 1:
            values.pop(top, None)
        if not values and fact.name in guide:
            values = {places[0]: guide[fact.name]}
        value = _one_value(fact, values, cfg, before, places[0])
        if value is MISSING:
            continue
        if fact.name == 'checkpoint':
            value = bundled(value) if isinstance(value, str) else value
        if not fact.valid(value):
            raise InputError(f'{spell(next(iter(values), top))}: {value!r} must be {fact.needs}')
        if values and value is not None:
            given[fact.name] = value
        old = (MISSING, get(before, top), get(before, places[0]))
        for where in places:
            if where in leading or not was_set(where) and get(before, where) in old:
                write(where, value)
        write(top, value)
    _one_length(cfg, given, command_line, write)
    return written


def _one_value(fact: Fact, values: dict[Where, Any], cfg, before, main: Where) -> Any:
    """The fact's value after a layer that set ``values``."""
    distinct = list(values.items())
    for where, value in distinct[1:]:
        first, other = distinct[0]
        if value != other:
            raise InputError(f'{spell(first)}={other!r} and {spell(where)}={value!r} are one setting ({fact.name}) and '
                             f'contradict each other: give one of them')
    if distinct:
        return distinct[0][1]
    for source, where in ((before, (fact.name,)), (cfg, (fact.name,)), (cfg, main)):
        if get(source, where) is not MISSING:
            return get(source, where)
    return MISSING


def _guide_values(cfg) -> dict[str, Any]:
    """What ``preference=dict(type='guide')`` brings along where nobody writes it: the guide's own values."""
    preference = get(cfg, ('model', 'preference'))
    if not isinstance(preference, dict) or preference.get('type') != 'guide':
        return {}
    return {name: getattr(PreferenceConfig, name) for name in ('beta', 'label_smoothing') if name not in preference}


def _one_length(cfg, given: dict[str, Any], command_line: bool, write) -> None:
    """A run is so many epochs or so many iterations long: what a layer gives replaces what stood there before."""
    if len({'max_epochs', 'max_iters'} & set(given)) == 2 and command_line:
        raise InputError(f'max_epochs={given["max_epochs"]} and max_iters={given["max_iters"]} contradict each other: '
                         f'give one of them')
    if get(cfg, ('max_epochs',)) in (MISSING, None) or get(cfg, ('max_iters',)) in (MISSING, None):
        return
    loser = 'max_iters' if 'max_epochs' in given and 'max_iters' not in given else 'max_epochs'
    write((loser,), None)
    write(('train_cfg', loser), None)


def unsettled(cfg) -> list[str]:
    """Where a name and its leading place differ: ``'beta=0.2, but model.preference.beta=0.1'``."""
    found = []
    for fact in FACTS:
        top, places = get(cfg, (fact.name,)), fact.live(cfg)
        value = get(cfg, places[0]) if places else MISSING
        if top is not MISSING and places and value != top and bundled(str(top)) != value:
            found.append(f'{fact.name}={top!r}, but {spell(places[0])}={value!r}')
    return found
