"""Which ground-truth mask belongs to which image, which images share a patient, and splits that respect it."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Hashable, Sequence, TypeVar

import numpy as np

from sa2va_dpo.common.errors import InputError
from .mask_io import list_images, natural_key

# What public vessel data sets append to an image's stem to name its mask (DRIVE, CHASE_DB1, STARE, XCAD, ...).
GT_SUFFIXES = ('_mask', '_gt', '_manual1', '_1stHO')

# A trailing eye marker: two eyes of one person look alike, so they must not be split.
# It follows a digit or a separator: "blood" and "period" end in letters that only look like one.
_EYE = re.compile(r'^(.*?[^\W_])(?:[\W_]+|(?<=\d))(?:OD|OS|left|right|L|R)$', re.IGNORECASE)

Item = TypeVar('Item')


class MaskFolder:
    """The masks of a folder, found by image stem: bare or with one of :data:`GT_SUFFIXES`.

    Args:
        directory: listed once.

    Raises:
        InputError: no such folder, or it holds no image.
    """

    def __init__(self, directory: str | Path) -> None:
        self._by_stem: dict[str, list[Path]] = {}
        for mask in list_images(directory):
            for stem in {mask.stem, *(mask.stem.removesuffix(suffix) for suffix in GT_SUFFIXES)}:
                self._by_stem.setdefault(stem, []).append(mask)

    def find(self, stem: str) -> Path | None:
        """The mask of an image stem, ``None`` without one.

        Raises:
            InputError: two masks fit; both are named.
        """
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            raise InputError(f'{found[1]}: {found[0].name} is a mask of the same image {stem!r}: keep one of them')
        return found[0] if found else None


def match_ground_truth(images: Sequence[Path], gt_dir: str | Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pair every image with the mask of the same stem, bare or with one of :data:`GT_SUFFIXES`.

    Returns:
        (image, mask) pairs in the order of ``images``, and the images without ground truth.

    Raises:
        InputError: two images share a stem, or two masks fit one image; both are named.
    """
    check_stems(images)
    masks = MaskFolder(gt_dir)
    found = [(image, masks.find(image.stem)) for image in images]
    return [(image, mask) for image, mask in found if mask], [image for image, mask in found if not mask]


def check_stems(images: Sequence[Path]) -> None:
    """Raises InputError where two images differ in nothing but their format: their masks would share a name."""
    seen: dict[str, Path] = {}
    for image in images:
        if image.stem in seen:
            raise InputError(f'{image}: {seen[image.stem].name} has the same stem, so their masks cannot be told apart: '
                             'rename one of them')
        seen[image.stem] = image


def patient_of(stem: str, group_regex: str | None = None) -> str:
    """The patient an image stem belongs to.

    Args:
        group_regex: its first group (or whole match) is the patient; ``None`` strips a trailing eye marker
            (``Image_01L`` -> ``Image_01``, ``case-7_OD`` -> ``case-7``).

    Raises:
        InputError: not a regular expression, or it does not match the stem.
    """
    if group_regex is None:
        match = _EYE.match(stem)
        return match.group(1) if match else stem
    try:
        match = re.search(group_regex, stem)
    except re.error as error:
        raise InputError(f'--group_regex {group_regex!r}: not a regular expression ({error})') from None
    if match is None:
        raise InputError(f'--group_regex {group_regex!r}: does not match {stem!r}: every stem must tell its patient')
    return match.group(1) if match.groups() else match.group(0)


def split_by_group(items: Sequence[Item], fraction: float, seed: int,
                   key: Callable[[Item], Hashable]) -> tuple[list[Item], list[Item]]:
    """Split whole groups at random.

    Args:
        items: in an order that does not depend on the machine.
        fraction: share of the groups that is held out, in [0, 1); rounded, at least one where it is above 0.
        seed: of the shuffle.
        key: the group of an item.

    Returns:
        (rest, held out), each in the order of ``items``.

    Raises:
        InputError: ``fraction`` outside [0, 1), or a split is asked for and there is only one group.
    """
    if not 0 <= fraction < 1:
        raise InputError(f'fraction {fraction}: must be at least 0 and below 1')
    groups = sorted({key(item) for item in items}, key=lambda group: natural_key(Path(str(group))))
    if fraction == 0:
        return list(items), []
    if len(groups) < 2:
        raise InputError(f'{len(items)} images of one patient cannot be split: add images of other patients, '
                         'set the fraction to 0, or tell patients apart with --group_regex')
    count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    held = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[:count]}
    return [item for item in items if key(item) not in held], [item for item in items if key(item) in held]
