"""What a training run is, on record in its work directory, so that nobody goes on with a run that is not theirs.

The record is :mod:`sa2va_dpo.common.ownership`'s ``owner.json``: the config and the content of every file that decides
the result. A run that finds another's record is refused with the first differences named.
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError, log_tracebacks_to
from sa2va_dpo.common.files import directory_hashes, hash_file, read_json
from sa2va_dpo.common.processes import rank
from sa2va_dpo.common.signals import go_on
from sa2va_dpo.datasets.annotations import PAIRS_FILE, VAL_FILE, VAL_PAIRS_FILE

from .round_images import unlabelled_images
from .run_folder import newest_whole

KIND = 'training'
# What a training run writes into its work directory, but for error.log, which a job in the same folder may have
# written.
OURS = (
    'iter_*.pth',
    'best_*.pth',
    'last_checkpoint',
    'config.py',
    'val_history.json',
    'alarms.json',
    'start_masks.npz',
    'rounds.json',
    'rounds',
    'earlier_*',
    '[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]_[0-9][0-9][0-9][0-9][0-9][0-9]',
)
# A run may go on for longer, validate and log at other times, and keep its caches elsewhere.
FREE = tuple(
    f'config.{name}'
    for name in (
        'cache',
        'log_interval',
        'max_iters',
        'max_epochs',
        'train_cfg.max_iters',
        'train_cfg.max_epochs',
        'train_cfg.val_interval',
        'val_cfg',
        'test_cfg',
        'test_dataloader',
        'test_evaluator',
        'val_evaluator',
        'default_hooks',
        'custom_hooks',
        'log_processor',
        'log_level',
        'visualizer',
        'trackers',
        'env_cfg',
        'custom_imports',
        'default_scope',
    )
)
_NOT_PART = ('work_dir', 'launcher', 'resume', 'load_from')
DIGITS = 32  # of a hash in a record: 128 bits
_FILE_FIELDS = ('image', 'chosen_mask', 'rejected_mask', 'gt_mask', 'mask')


def annotation_hashes(data_root: str | os.PathLike, names: Iterable[str]) -> dict[str, str]:
    """Path below the data root -> hash of those annotation files that exist and of every file that they name.

    Raises:
        InputError: an annotation file is no JSON list.
    """
    root, found = Path(data_root), {}
    for name in names:
        if not (root / name).is_file():
            continue
        found[name] = hash_file(root / name)[:DIGITS]
        for entry in read_json(root / name, 'correct the file or generate it again', kind=list):
            for field in _FILE_FIELDS:
                path = entry.get(field) if isinstance(entry, dict) else None
                # Whether a path is allowed and there is for the data set to say.
                if isinstance(path, str) and path not in found and (root / path).is_file():
                    found[path] = hash_file(root / path)[:DIGITS]
    return found


def folder_hashes(folder: str | os.PathLike) -> dict[str, str]:
    """Path below a folder -> hash of each of its files: a checkpoint directory, images, masks."""
    return {name: value[:DIGITS] for name, value in directory_hashes(folder).items()}


def plain(cfg) -> dict:
    """A config as JSON values; classes and functions by name."""
    return json.loads(json.dumps(cfg.to_dict(), default=lambda value: getattr(value, '__qualname__', str(value))))


def training_identity(cfg: Mapping) -> dict:
    """What decides the result of a training run: ``config`` (all settings), ``checkpoint`` (files of the base) and
    ``data`` (annotations, images and masks of training and validation), as content hashes."""
    settings = {name: value for name, value in plain(cfg).items() if name not in _NOT_PART}
    data: dict[str, dict] = {}
    for loader in ('train_dataloader', 'val_dataloader'):
        for node in _nodes(settings.get(loader)):
            if isinstance(node.get('data_root'), str):
                data.setdefault(node['data_root'], {}).update(
                    annotation_hashes(node['data_root'], _annotation_files(node))
                )
            for key in ('images_dir', 'gt_dir'):
                if isinstance(node.get(key), str) and Path(node[key]).is_dir():
                    data[node[key]] = folder_hashes(node[key])
    for place in _round_places(settings.get('rounds') or {}):
        if Path(place).is_dir():
            data[place] = folder_hashes(place)
        elif Path(place).is_file():
            # A list of images: what it says, and what is at the places that it names.
            named = {str(image): hash_file(image)[:DIGITS] for image in unlabelled_images(place)}
            data[place] = {'': hash_file(place)[:DIGITS], **named}
    checkpoint = settings.get('model', {}).get('checkpoint')
    files = folder_hashes(checkpoint) if checkpoint and Path(checkpoint).is_dir() else {}
    return dict(config=settings, checkpoint=files, data=data)


def claim_training(cfg, overwrite: bool = False) -> list[str]:
    """Make ``cfg.work_dir`` this run's until the process ends; by every process of a launch, before anything is
    written.

    Args:
        cfg: complete; with ``resume`` and, for a checkpoint that was named, ``load_from``.
        overwrite: remove what another run left there.

    Returns:
        Lines for the user.

    Raises:
        InputError: another run's files are there, or the checkpoint to go on from is another run's.
    """
    identity = training_identity(cfg)
    if cfg.get('resume') and cfg.get('load_from'):
        _check_origin(Path(cfg.load_from), identity)
    if rank() == 0:
        withdraw(cfg.work_dir)
    held = ownership.claim(cfg.work_dir, KIND, identity, OURS, overwrite=overwrite, free=FREE, flag='--work-dir')
    log_tracebacks_to(cfg.work_dir)
    go_on(f'{cfg.work_dir}: the same command with --resume goes on from the newest checkpoint there')
    lines = [held.cleared] if held.cleared else []
    if held.found and not cfg.get('resume'):
        lines.append(
            f'{cfg.work_dir}: this very run was begun here before and starts anew, what it left is moved aside '
            '(--resume goes on from its last checkpoint)'
        )
    if cfg.get('resume') and not cfg.get('load_from'):
        found, damaged = newest_whole(cfg.work_dir)
        lines += damaged
        if found is None:
            lines.append(f'{cfg.work_dir}: no whole checkpoint to resume from: training begins at the start')
        cfg.resume, cfg.load_from = found is not None, None if found is None else str(found)
    return [] if rank() else lines


def _check_origin(checkpoint: Path, identity: Mapping) -> None:
    record = ownership.read_record(checkpoint.resolve().parent)
    if record is None or record.get('kind') != KIND:
        return
    changed = ownership.differences(record['identity'], identity, FREE)
    if changed:
        raise InputError(f'--resume {checkpoint}: is of another run: {"; ".join(changed[:3])}: '
                         'repeat the command of that run, or start anew without --resume')


def publish(work_dir: Path, training: Path) -> list[str]:
    """Show the files of a training run in a sub-folder under the guide's names in ``work_dir``, as links.

    Nothing that is there is touched; returns the names that were taken.
    """
    withdraw(work_dir)
    taken = []
    for path in sorted(
        path for pattern in ('iter_*.pth', 'best_*.pth', 'config.py') for path in training.glob(pattern)
    ):
        link = work_dir / path.name
        if os.path.lexists(link):
            taken.append(path.name)
        else:
            link.symlink_to(Path(training.name) / path.name)
    return taken


def withdraw(work_dir: str | os.PathLike) -> None:
    """Remove the links of :func:`publish`: whoever trains in ``work_dir`` itself must not write through them."""
    work_dir = Path(work_dir)
    if work_dir.is_dir():
        for path in work_dir.iterdir():
            if path.is_symlink() and Path(os.readlink(path)).parts[:1] == (KIND,):
                path.unlink()


def _annotation_files(node: Mapping) -> tuple[str, ...]:
    if node.get('type') == 'DPOVesselDataset':
        name = node.get('ann_file', PAIRS_FILE)
        return name, VAL_PAIRS_FILE
    return (node.get('ann_file', VAL_FILE),)


def _round_places(rounds: Mapping) -> list[str]:
    """Folders, and lists of images, that a run with rounds reads beside its data root."""
    labelled = rounds.get('labelled')
    folders = list(labelled.values()) if isinstance(labelled, Mapping) else []
    places = [rounds.get(key) for key in ('unlabelled', 'unlabelled_gt', 'predictions')]
    return [place for place in (*places, *(rounds.get('members') or ()), *folders) if isinstance(place, str)]


def _nodes(value) -> Iterator[Mapping]:
    if isinstance(value, Mapping):
        yield value
        for below in value.values():
            yield from _nodes(below)
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _nodes(below)
