"""``candidates.json``: images of a data root with several masks each, of which people choose the best."""
from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file, hash_json, hash_text, read_json
from sa2va_dpo.datasets.annotations import CANDIDATES_FILE, resolve
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.evaluation.counts import disagreement

from .pairs import FOLDER
from .reviewers import reviewer_key

MOST = 31  # who holds a region is one bit each of an int32


@dataclass(frozen=True)
class Candidate:
    """One mask (path relative to the data root), where it came from and the model's own opinion of it."""

    mask: str
    source: str | None = None
    predicted_iou: float | None = None


@dataclass(frozen=True)
class CandidateImage:
    """An image and its candidates, in the order of the file; ``disagreement`` is 1 - mean pairwise IoU."""

    image: str
    prompt: str
    candidates: tuple[Candidate, ...]
    disagreement: float
    gt_mask: str | None = None


@dataclass(frozen=True)
class CandidateSet:
    """What a data root's ``candidates.json`` holds.

    Attributes:
        images: by path relative to the root, in the order of the file.
        fingerprint: of the file and of every image and mask that it names; a journal belongs to one fingerprint.
    """

    root: Path
    images: dict[str, CandidateImage]
    fingerprint: str

    @property
    def file(self) -> Path:
        return self.root / CANDIDATES_FILE

    def journal(self, reviewer: str) -> Path:
        """Of a reviewer by name."""
        return self.root / FOLDER / f'picks.{reviewer_key(reviewer)}.jsonl'

    @property
    def pickable(self) -> list[str]:
        """Images, those on which the candidates disagree most first. Where all are the same there is nothing to
        pick."""
        shown = [entry for entry in self.images.values() if len(entry.candidates) > 1 and entry.disagreement > 0]
        return [entry.image for entry in sorted(
            shown, key=lambda entry: (-entry.disagreement, hash_text(f'{self.fingerprint} {entry.image}')))]

    def wanted(self, clicks: int | None) -> int:
        """How many images are to be decided: all that can be, or as many as a budget allows."""
        return len(self.pickable) if clicks is None else min(clicks, len(self.pickable))

    def masks(self, image: str) -> np.ndarray:
        """bool [N, H, W], in the order of the file.

        Raises:
            InputError: a mask cannot be read, or the masks differ in size.
        """
        return read_masks(self.root, [candidate.mask for candidate in self.images[image].candidates])


def read_masks(root: Path, names: list[str]) -> np.ndarray:
    """bool [N, H, W] of paths below ``root``; raises InputError where one is unreadable or of another size."""
    masks = [read_mask(resolve(root, name)) for name in names]
    for name, mask in zip(names, masks):
        if mask.shape != masks[0].shape:
            raise InputError(
                f'{name}: is {mask.shape[1]} x {mask.shape[0]} pixels, {names[0]} is {masks[0].shape[1]} x '
                f'{masks[0].shape[0]}: all candidates of an image must have its size'
            )
    return np.stack(masks)


def has_candidates(root: str | os.PathLike) -> bool:
    return (Path(root) / CANDIDATES_FILE).is_file()


def read_candidates(root: str | os.PathLike) -> CandidateSet:
    """Read and check ``candidates.json`` of a data root. A missing ``disagreement`` is measured.

    Raises:
        InputError: the file or one of its records is bad, a file it names is missing or outside the root, or an image
            stands twice.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f'--data_root {root}: no such folder')
    path = root / CANDIDATES_FILE
    content = read_json(path, missing='candidates are written where images have no masks (docs/review.md)', kind=list)
    if not content:
        raise InputError(f'{path}: is an empty list: there is nothing to pick from')
    images: dict[str, CandidateImage] = {}
    parts = [hash_json(content)]
    for index, entry in enumerate(content):
        where = f'{path}: record {index}'
        found = _image(where, entry, root)
        if found.image in images:
            raise InputError(
                f'{where}: image {found.image!r} stands in the file before: put all its candidates into one record'
            )
        images[found.image] = found
        parts += [hash_file(resolve(root, name)) for name in (found.image, *(one.mask for one in found.candidates))]
    return CandidateSet(root, images, hash_text('|'.join(parts))[:32])


def _image(where: str, entry: Any, root: Path) -> CandidateImage:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: is a {type(entry).__name__}, must be an object with named fields')
    image, prompt = _file(where, entry, 'image', root), _text(where, entry, 'prompt')
    listed = entry.get('candidates')
    if not isinstance(listed, list) or not listed:
        raise InputError(f'{where}: candidates must be a list of at least one mask')
    if len(listed) > MOST:
        raise InputError(f'{where}: has {len(listed)} candidates, at most {MOST} can be looked at: make fewer')
    candidates = []
    for number, item in enumerate(listed):
        place = f'{where}: candidate {number}'
        if not isinstance(item, dict):
            raise InputError(f'{place}: is a {type(item).__name__}, must be an object with the field mask')
        candidates.append(Candidate(
            _file(place, item, 'mask', root),
            _text(place, item, 'source') if item.get('source') is not None else None,
            _number(place, item, 'predicted_iou') if item.get('predicted_iou') is not None else None))
    gt = _file(where, entry, 'gt_mask', root) if entry.get('gt_mask') is not None else None
    if entry.get('disagreement') is not None:
        apart = _number(where, entry, 'disagreement')
    else:
        apart = disagreement(read_masks(root, [candidate.mask for candidate in candidates]))
    return CandidateImage(image, prompt, tuple(candidates), apart, gt)


def _text(where: str, entry: dict, name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: {name} is {value!r}, must be non-empty text')
    return value


def _file(where: str, entry: dict, name: str, root: Path) -> str:
    value = _text(where, entry, name)
    try:
        found = resolve(root, value).is_file()
    except InputError as error:
        raise InputError(f'{where}: {name} {error}') from None
    except (OSError, ValueError):  # a name longer than the file system takes, a null byte
        found = False
    if not found:
        raise InputError(f'{where}: {name} {value!r}: no such file under {root}')
    return value


def _number(where: str, entry: dict, name: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f'{where}: {name} is {value!r}, must be a finite number')
    return float(value)


def distinct(masks: np.ndarray) -> list[int]:
    """Indices of bool [N, H, W] whose mask is no repetition of an earlier one."""
    seen: dict[bytes, int] = {}
    for index, mask in enumerate(masks):
        seen.setdefault(hashlib.blake2b(np.packbits(mask)).digest(), index)
    return list(seen.values())


def regions(masks: np.ndarray, smallest: int = 9) -> tuple[np.ndarray, int]:
    """Parts of the disagreement, each wholly accepted or refused by every candidate.

    Pixels on which the same candidates agree, connected over edges and corners, are one region. Regions of fewer than
    ``smallest`` pixels are not offered to a reviewer, who could not hit them: they stay 0.

    Args:
        masks: bool [N, H, W], N at most ``MOST``.

    Returns:
        int32 [H, W] with 0 where nothing is offered, else the region from 1 on (largest number: the second value).
    """
    if len(masks) > MOST:
        raise ValueError(f'at most {MOST} masks, not {len(masks)}')
    code = np.zeros(masks.shape[1:], np.int32)
    for index, mask in enumerate(masks):
        code |= mask.astype(np.int32) << index
    code[code == (1 << len(masks)) - 1] = 0
    labels = label(code, connectivity=2, background=0).astype(np.int32)
    area = np.bincount(labels.ravel())
    area[0] = 0
    large = np.flatnonzero(area >= smallest)
    table = np.zeros(len(area), np.int32)
    table[large] = np.arange(1, len(large) + 1)
    return table[labels], len(large)


def compose(masks: np.ndarray, labels: np.ndarray, right: set[int], base: int | None) -> np.ndarray:
    """The mask that a reviewer put together.

    Args:
        masks: bool [N, H, W].
        labels: int32 [H, W] of :func:`regions`.
        right: regions that are vessel; every other region is not.
        base: candidate that decides on the parts too small to be offered; None: the majority of the candidates does
            (a draw is no).

    Returns:
        bool [H, W]: where all candidates agree, as they say.
    """
    rest = masks[base] if base is not None else masks.sum(0) * 2 > len(masks)
    table = np.zeros(int(labels.max(initial=0)) + 1, bool)
    table[[region for region in right if 0 < region < len(table)]] = True
    return np.where(labels > 0, table[labels], rest)
