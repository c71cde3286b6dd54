"""Set up the caches of a training run: which kinds, where, filled, and the config pointed at them."""
from __future__ import annotations

import gc
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import ContextManager

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from sa2va_dpo.common.errors import InputError, setting
from sa2va_dpo.common.processes import local_rank, local_world_size, pick_device, world_size
from sa2va_dpo.common.tensor_store import CacheStore, evict, size_of
from sa2va_dpo.datasets.annotations import VAL_PAIRS_FILE
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset
from sa2va_dpo.datasets.samples import SampleMaker
from sa2va_dpo.models.run_model import Sa2VARunModel
from sa2va_dpo.models.sa2va_dpo_model import preference_config
from sa2va_dpo.models.trainable import normalise_switches

from .build import Wish, batch_of, compute, fill, fill_one, missing
from .fingerprint import fingerprint, machine_of, weights_digest
from .kinds import KINDS, Kind, choose

_GIB = 2 ** 30
# Computing a view costs what a visit saves, and some more for writing it: visits per view from which it pays.
WORTH = 1.5
SETTINGS = dict(dir='work_dirs/cache', items='auto', max_gib=50.0, lazy=False)


def prepare(cfg: Config) -> list[str]:
    """Fill the caches that ``cfg.cache`` asks for and point data sets and model at them, in place.

    To be called after :func:`engine.strategy.fit_to_machine`, by every process of a run.

    Args:
        cfg: ``cache`` is None or a dict: ``dir`` (folder; several runs may share it), ``items`` (``'auto'`` or names of
            ``caching/kinds.py``), ``max_gib`` (bound on all that lies in ``dir``; with ``items='auto'`` the largest
            kinds are left out until the rest fits), ``lazy`` (compute a view when it is first visited, not before
            training: the first step comes sooner, and a second copy of the start stays in memory; without data-loader
                workers only).
            Unless lazy, ``'auto'`` caches nothing where training is too short for it to pay.

    Returns:
        Lines for the log.

    Raises:
        InputError: impossible settings, or too little space.
    """
    asked = _settings(cfg)
    if asked is None:
        if cfg.model.get('reference') == 'stored':
            raise InputError('model.reference: "stored" reads precomputed logits: set cache=dict() as well, or '
                             'reference="initial"')
        return []
    kinds = _kinds(cfg, asked['items'])
    if not kinds:
        return ['cache: off, everything that could be cached is trained or drawn anew']
    wishes, maker, visits = _wishes(cfg, [kind.name for kind in kinds])
    rank, processes = local_rank(), local_world_size()
    model = _start_model(cfg)
    lines: list[str] = []
    with _precision(cfg, model):
        stores = _stores(cfg, kinds, model, maker, asked['dir'])
        to_compute = missing(wishes, stores)
        if asked['items'] == 'auto' and not asked['lazy'] and to_compute * WORTH > visits:
            return [
                f'cache: off, {to_compute} views would be computed for {visits} visits of training images (name the '
                'items in cache.items to have them all the same)'
            ]
        for store in stores.values():
            store.hold()
        lines += _fit(stores, _sizes(model, maker, wishes, list(stores)), asked, rank)
        wishes = [(view, tuple(name for name in names if name in stores)) for view, names in wishes]
        done = 0 if asked['lazy'] else fill(model.policy, maker, wishes, stores, rank, processes)
    when = f'{to_compute} to be computed when they are first visited' if asked['lazy'] else f'{done} computed now'
    lines.append(f'cache: {", ".join(stores) or "nothing"} of {len(wishes)} views in {asked["dir"]}, {when}')
    if asked['lazy'] and to_compute:
        _fill_lazily(cfg, model, maker, wishes, stores)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _point(cfg, stores)
    return lines


def _fill_lazily(cfg: Config, model: Sa2VARunModel, maker: SampleMaker, wishes: list[Wish],
                 stores: dict[str, CacheStore]) -> None:
    """Let the start model, which stays in memory, compute a view when a data set first asks for it."""
    names: dict[str, tuple[str, ...]] = {}
    for view, wanted in wishes:
        names[view.key()] = tuple(dict.fromkeys((*names.get(view.key(), ()), *wanted)))

    def fill_view(view) -> None:
        if view.key() not in names:  # mining asks for images that training never visits
            return
        with _precision(cfg, model):
            fill_one(model.policy, maker, (view, names[view.key()]), stores)

    for store in stores.values():
        store.fill_with(fill_view)


def _settings(cfg: Config) -> dict | None:
    if cfg.get('cache') is None:
        return None
    asked = {**SETTINGS, **cfg.cache}
    unknown = sorted(set(asked) - set(SETTINGS))
    if unknown:
        raise InputError(f'cache.{unknown[0]}: no such setting; there are {", ".join(SETTINGS)}')
    if isinstance(asked['max_gib'], bool) or not isinstance(asked['max_gib'], (int, float)) or asked['max_gib'] <= 0:
        raise InputError(f'cache.max_gib: {asked["max_gib"]!r} must be a number above 0, in GiB')
    if asked['lazy']:
        for name in ('train_dataloader', 'val_dataloader'):
            if (cfg.get(name) or {}).get('num_workers', 0):
                raise InputError(
                    f'cache.lazy: {name}.num_workers is {cfg[name].num_workers}, and workers have no model to '
                    f'compute with: set it to 0, or cache.lazy=False'
                )
    if cfg.train_dataloader.dataset.type not in ('DPOVesselDataset', DPOVesselDataset, 'RoundPairs'):
        raise InputError(
            f'cache: is for preference pairs (DPOVesselDataset), not for {cfg.train_dataloader.dataset.type}: '
            f'set cache=None'
        )
    return asked


def _kinds(cfg: Config, items) -> list[Kind]:
    model = cfg.model
    trainable = 'all' if model.trainable == 'all' else normalise_switches(model.trainable)
    reference = model.get('reference', 'initial')
    # A reference that moves with the rounds has no logits that last.
    moves = (cfg.get('rounds') or {}).get('reference') == 'round'
    has_reference = preference_config(model.preference, reference).use_reference and not moves
    kinds = choose(items, trainable, has_reference, cfg.train_dataloader.dataset.get('brightness', 0.0))
    if reference == 'stored' and has_reference and KINDS['reference_low_res'] not in kinds:
        raise InputError('model.reference: "stored" needs reference_low_res among cache.items: add it, or set '
                         'reference="initial"')
    return kinds


def _wishes(cfg: Config, names: list[str]) -> tuple[list[Wish], SampleMaker, int]:
    """(every view that training and validation will ask for, with what it needs; a maker of plain samples; how often
    training will visit an image)."""
    with setting('train_dataloader.dataset'):
        train = DATASETS.build(cfg.train_dataloader.dataset)
    length = cfg.train_cfg
    visits = math.ceil(length.max_epochs * len(train)) if length.get('max_iters') is None else (
        length.max_iters * cfg.train_dataloader.batch_size * world_size())
    wishes: list[Wish] = [(view, tuple(names)) for view in train.views()]
    for hook in cfg.get('custom_hooks') or []:
        if hook.get('type') == 'PairValidationHook':
            pairs = train.validation_pairs(hook.get('ann_file', VAL_PAIRS_FILE))
            wishes += [(view, tuple(names)) for view in (pairs.views() if pairs else [])]
    # The reference's masks of validation images are those of the start, which are measured once.
    without_reference = tuple(name for name in names if name != 'reference_low_res')
    if cfg.get('val_dataloader'):
        with setting('val_dataloader.dataset'):
            wishes += [(view, without_reference) for view in DATASETS.build(cfg.val_dataloader.dataset).views()]
    return [wish for wish in wishes if wish[1]], SampleMaker(train.pre), visits


def _start_model(cfg: Config) -> Sa2VARunModel:
    """The model as training begins with it: same dtypes, same device, adapters at zero. Never compiled: what is stored
    also serves runs that are not."""
    with setting('model'):
        model = MODELS.build({**cfg.model, 'with_mllm': True, 'compile': None,
                              **({'reference': 'initial'} if 'reference' in cfg.model else {})})
    if cfg.strategy.type == 'DeepSpeedStrategy' and cfg.strategy.get('bf16', {}).get('enabled'):
        model = model.bfloat16()  # as DeepSpeed does
    return model.to(pick_device()).eval()


def _precision(cfg: Config, model: Sa2VARunModel) -> ContextManager:
    if cfg.optim_wrapper.type != 'AmpOptimWrapper':
        return nullcontext()
    return torch.autocast(
        next(model.parameters()).device.type, getattr(torch, cfg.optim_wrapper.get('dtype') or 'float16')
    )


def _stores(
    cfg: Config, kinds: list[Kind], model: Sa2VARunModel, maker: SampleMaker, directory: str
) -> dict[str, CacheStore]:
    device = next(model.parameters()).device
    precision = f'{device.type}, autocast {model.policy.autocast_dtype}, {cfg.optim_wrapper.type == "AmpOptimWrapper"}'
    preprocessing = maker.pre.fingerprint()
    marks = {kind.name: fingerprint(kind.name, weights_digest(model.policy, kind.modules), preprocessing, precision,
                                    machine_of(str(device)))
             for kind in kinds}
    return {name: CacheStore(Path(directory) / f'{name}-{mark}') for name, mark in marks.items()}


def _sizes(model: Sa2VARunModel, maker: SampleMaker, wishes: list[Wish], names: list[str]) -> dict[str, int]:
    """Bytes of every kind over all views, from the first view (others may have another number of tiles)."""
    results = compute(model.policy, batch_of(maker, wishes[0][0], model.policy), names)
    return {name: sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            * len({view.key(name) for view, wanted in wishes if name in wanted}) for name, tensors in results.items()}


def _fit(stores: dict[str, CacheStore], sizes: dict[str, int], asked: dict, rank: int) -> list[str]:
    """Keep within ``max_gib`` and the disk: drop kinds (``'auto'``, from ``stores``) and old caches."""
    lines, bound, root = [], asked['max_gib'] * _GIB, Path(asked['dir'])
    while sum(sizes[name] for name in stores) > bound:
        largest = max(stores, key=sizes.get)
        what = f'{largest} needs {sizes[largest] / _GIB:.3g} GiB and max_gib is {asked["max_gib"]:g}'
        if asked['items'] != 'auto':
            raise InputError(
                f'cache: {what}: raise cache.max_gib, take {largest} out of cache.items, or set flip_prob=0 '
                f'(flips are four views of an image)'
            )
        lines.append(f'cache: {what}: left out')
        del stores[largest]
    if rank:
        return lines
    present = {name: size_of(store.directory) for name, store in stores.items()}
    needed = sum(max(0, sizes[name] - present[name]) for name in stores)
    total = size_of(root)
    keep = {store.directory.name for store in stores.values()}
    over = total + needed - bound
    if over > 0:
        freed = evict(root, keep, int(over))
        lines.append(f'cache: {freed / _GIB:.3g} GiB of earlier runs removed to stay within max_gib')
        if freed < over:
            raise InputError(
                f'cache: {root} holds {(total - freed) / _GIB:.3g} GiB that other runs use, {needed / _GIB:.3g} '
                f'GiB more are needed and max_gib is {asked["max_gib"]:g}: raise cache.max_gib or choose '
                f'another cache.dir'
            )
    free = shutil.disk_usage(root).free
    if needed > free:
        raise InputError(
            f'cache: {needed / _GIB:.3g} GiB are needed in {root}, the disk has {free / _GIB:.3g} GiB: free '
            f'space, choose another cache.dir, or lower cache.max_gib'
        )
    return lines


def _point(cfg: Config, stores: dict[str, CacheStore]) -> None:
    """Let data sets read the stores, and leave out of memory what they replace."""
    folders = {name: str(store.directory) for name, store in stores.items()}
    cfg.train_dataloader.dataset.cache = folders
    if cfg.get('val_dataloader'):
        cfg.val_dataloader.dataset.cache = {name: path for name, path in folders.items() if name != 'reference_low_res'}
    if 'reference_low_res' in folders:
        cfg.model.reference = 'stored'
    # Mining asks for views that no cache holds.
    if 'seg_states' in folders and not cfg.get('rounds'):
        cfg.model.with_mllm = False
