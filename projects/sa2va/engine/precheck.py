"""What a training run would stumble over later, found before its model is loaded and listed at once."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

from sa2va_dpo.common.errors import InputError, InputProblems
from sa2va_dpo.datasets.annotations import PAIRS_FILE, VAL_FILE, VAL_PAIRS_FILE
from sa2va_dpo.datasets.precheck import check_root
from sa2va_dpo.datasets.seg_dataset import preprocessor_of

from .settings import TOP_LEVEL, known_names
from .validation_images import check_counts

_FREE = ('strategy', 'env_cfg', 'visualizer', 'custom_imports', 'model', 'trackers')  # read by rules of their own


def precheck(cfg: Mapping) -> None:
    """Check settings against the constructors that take them, annotations, questions, and the headers of all files.

    Raises:
        InputProblems: all that is wrong, each in a line.
    """
    problems = list(unread_settings(cfg))
    try:
        check_counts((cfg.get('default_hooks') or {}).get('validation_images') or {})
    except ValueError as error:
        problems.append(f'default_hooks.validation_images.{error}')
    roots: dict[str, tuple[set[str], set[str]]] = {}
    for name in ('train_dataloader', 'val_dataloader'):
        for node in nodes(cfg.get(name)):
            if not isinstance(node.get('data_root'), str):
                continue
            pairs, segs = roots.setdefault(node['data_root'], (set(), set()))
            if node.get('type') == 'DPOVesselDataset':
                pairs.update((str(node.get('ann_file', PAIRS_FILE)), VAL_PAIRS_FILE))
            elif node.get('type') == 'AnnotatedMasks':
                segs.add(str(node.get('ann_file', VAL_FILE)))
    check_prompt = None
    checkpoint = cfg.get('checkpoint', cfg['model'].get('checkpoint'))
    if isinstance(checkpoint, str):
        try:
            check_prompt = preprocessor_of(checkpoint).check_prompt
        except InputError as error:
            problems.append(str(error))
    for root, (pairs, segs) in roots.items():
        if Path(root).is_dir():
            try:
                check_root(root, sorted(pairs), sorted(segs), check_prompt)
            except InputProblems as error:
                problems += error.problems
    if problems:
        raise InputProblems(problems)


def unread_settings(cfg: Mapping) -> Iterator[str]:
    """A line for each setting that the class which it is for does not take."""
    for top in TOP_LEVEL:
        if top in _FREE:
            continue
        for where, node in _places(cfg.get(top), (top,)):
            names = known_names(where, node)
            if names is not None and isinstance(node.get('type'), str):
                for name in node:
                    if name not in names:
                        yield (f'{".".join(map(str, (*where, name)))}: {node["type"]} has no such setting; it has '
                               f'{", ".join(known for known in names if known not in ("type", "_scope_"))[:200]}')


def nodes(value: Any) -> Iterator[Mapping]:
    """Every dict in a config value, itself included."""
    return (node for _, node in _places(value, ()))


def _places(value: Any, where: tuple) -> Iterator[tuple[tuple, Mapping]]:
    if isinstance(value, Mapping):
        yield where, value
    listed = isinstance(value, (list, tuple))
    for name, below in value.items() if isinstance(value, Mapping) else enumerate(value) if listed else ():
        yield from _places(below, (*where, name))
