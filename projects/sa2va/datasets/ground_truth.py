"""Which ground-truth mask belongs to which image, which images share a patient, and splits that respect it."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Hashable, Sequence, TypeVar

import numpy as np

from sa2va_dpo.common.console import progress
from sa2va_dpo.common.errors import InputError, InputProblems

from . import containers
from .mask_io import image_size, is_binary, list_images, natural_key, read_mask, read_probability
from .names import FOV_SUFFIXES, GT_SUFFIXES, SECOND_SUFFIXES, bases, key, printable, readings

# A trailing eye marker: two eyes of one person look alike, so they must not be split.
# It follows a digit or a separator: "blood" and "period" end in letters that only look like one.
_EYE = re.compile(r'^(.*?[^\W_])(?:[\W_]+|(?<=\d))(?:OD|OS|left|right|L|R)$', re.IGNORECASE)
_LONG_LOOK = 3000  # images whose headers take long enough for a progress bar

Item = TypeVar('Item')


class MaskFolder:
    """The masks of a folder or of a file, found by the stem of their image (``datasets/names.py``).

    Args:
        directory: a folder of masks, a folder with one JSON file of outlines, or such a file (COCO, or upstream Sa2VA's
            ``annotations.json``); listed once.

    Raises:
        InputError: no such folder, or it holds no mask.
    """

    def __init__(self, directory: str | Path) -> None:
        self.masks = list_masks(Path(directory))
        self._by_base: dict[str, list[tuple[str, Path]]] = {}
        for mask in self.masks:
            for base, suffix in readings(key(mask.stem)):
                self._by_base.setdefault(base, []).append((suffix, mask))

    def find(self, stem: str, image: Path | None = None) -> Path | None:
        """The mask of an image stem, ``None`` without one. Of two observers' masks the first's.

        Args:
            image: the image itself, which may lie in the same folder and is not its own mask.

        Raises:
            InputError: two masks fit; both are named.
        """
        found = self.all(stem, image)
        first = [mask for suffix, mask in found if suffix not in SECOND_SUFFIXES] or [mask for _, mask in found]
        if len(first) > 1:
            # A field of view may lie beside the mask, under a name that is a mask's elsewhere.
            named = [mask for suffix, mask in found if suffix in FOV_SUFFIXES]
            first = [mask for mask in first if mask not in named or not any(
                is_field_of_view(mask, other) for other in first if other not in named)]
        if len(first) > 1:
            raise InputError(f'{printable(first[1])}: {printable(first[0].name)} is a mask of the same image '
                             f'{printable(stem)!r}: keep one of them')
        return first[0] if first else None

    def all(self, stem: str, image: Path | None = None) -> list[tuple[str, Path]]:
        """(suffix, mask) of everything whose name fits, fields of view beside them included."""
        whole, *rest = bases(key(stem))
        found = self._others(whole, image)
        if any(suffix not in FOV_SUFFIXES for suffix, _ in found):
            return found
        # DRIVE: 21_training_mask is the field of view, 21_manual1 the mask.
        return found + [entry for base in rest for entry in self._others(base, image) if entry[0]]

    def _others(self, base: str, image: Path | None) -> list[tuple[str, Path]]:
        return [(suffix, mask) for suffix, mask in self._by_base.get(base, []) if image is None or mask != image]


def list_masks(directory: Path) -> list[Path]:
    """The masks of a folder or of a JSON file of outlines, in natural order.

    Raises:
        InputError: there is none.
    """
    if directory.is_file() and directory.suffix.lower() == '.json':
        return containers.entries(directory)
    outlines = sorted(directory.glob('*.json')) if directory.is_dir() else []
    try:
        return list_images(directory)
    except InputError:
        if len(outlines) > 1:
            raise InputError(
                f'{directory}: holds {outlines[0].name} and {outlines[1].name}: name the one that is meant'
            ) from None
        if not outlines:
            raise
    return containers.entries(outlines[0])


def match_ground_truth(images: Sequence[Path], gt_dir: str | Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pair every image with its mask, by the names that public data sets use (``datasets/names.py``).

    Images and masks may lie in one folder: what is another file's mask is no image then.

    Returns:
        (image, mask) pairs in the order of ``images``, and the images without ground truth.

    Raises:
        InputError: two images share a stem, or two masks fit one image; both are named.
    """
    if images and all(image.parent.resolve() == Path(gt_dir).resolve() for image in images):
        images = without_masks(images)
    check_stems(images)
    masks = MaskFolder(gt_dir)
    found = [(image, masks.find(image.stem, image)) for image in images]
    return [(image, mask) for image, mask in found if mask], [image for image, mask in found if not mask]


def without_masks(images: Sequence[Path]) -> list[Path]:
    """The images of a folder that holds their masks and fields of view as well."""
    suffixes = {suffix.lower() for suffix in (*GT_SUFFIXES, *SECOND_SUFFIXES, *FOV_SUFFIXES)}
    belonging = {base.lower() + suffix for image in images for base in bases(key(image.stem)) for suffix in suffixes}
    left = [image for image in images if key(image.stem).lower() not in belonging]
    by_stem: dict[str, list[Path]] = {}
    for image in left:
        by_stem.setdefault(key(image.stem), []).append(image)
    # HRF in one folder: 01_dr.JPG is the photograph, 01_dr.tif its mask.
    twins = {twin for pair in by_stem.values() if len(pair) == 2 for twin in pair if is_binary(read_probability(twin))}
    return [image for image in left if image not in twins]


def is_field_of_view(path: Path, mask: Path) -> bool:
    """Whether a mask is the round field that a camera sees: large, and with the vessels of another mask in it."""
    if image_size(path) != image_size(mask):
        return False
    field, vessels = read_mask(path), read_mask(mask)
    return bool(
        field.mean() >= 0.3 and field.sum() >= 2 * vessels.sum() and (field & vessels).sum() >= 0.95 * vessels.sum()
    )


def check_sizes(matched: Sequence[tuple[Path, Path | None]]) -> None:
    """Look at the headers of images and masks, before hours of work rather than after.

    Raises:
        InputProblems: files that cannot be read or are too large, or masks of another size than their image.
    """
    problems = size_problems(matched)
    if problems:
        raise InputProblems(problems)


def size_problems(matched: Sequence[tuple[Path, Path | None]]) -> list[str]:
    """A line for each file whose header :func:`check_sizes` refuses; each file is opened once."""
    problems: dict[str, None] = {}
    sizes: dict[Path, tuple[int, int] | None] = {}
    for image, mask in progress(matched, desc='headers', unit='image', disable=len(matched) < _LONG_LOOK):
        for path in (image, mask):
            if path is not None and path not in sizes:
                sizes[path] = None
                try:
                    sizes[path] = image_size(path)
                except InputError as error:
                    problems[str(error)] = None
        first, second = sizes[image], sizes[mask] if mask is not None else None
        if mask is not None and first is not None and second is not None and first != second:
            problems[size_problem(image, mask, first, second)] = None
    return list(problems)


def size_problem(image: Path, mask: Path, image_size: tuple[int, int], mask_size: tuple[int, int]) -> str:
    """What is wrong with a mask of another (width, height) than its image, for one line."""
    turned = ' (rows and columns are exchanged: transpose it)' if mask_size == image_size[::-1] else ''
    return (
        f'{printable(mask)}: is {mask_size[0]} x {mask_size[1]}, its image {printable(image.name)} is {image_size[0]} '
        f'x {image_size[1]}: ground truth must have the size of the image{turned}'
    )


def check_stems(images: Sequence[Path]) -> None:
    """Raises InputError where two images differ in nothing but their format: their masks would share a name."""
    seen: dict[str, Path] = {}
    for image in images:
        other = seen.setdefault(key(image.stem), image)
        if other is not image:
            raise InputError(
                f'{printable(image)}: {printable(other.name)} has the same stem, so their masks cannot be told '
                'apart: rename one of them'
            )


def patient_of(stem: str, group_regex: str | None = None) -> str:
    """The patient an image stem belongs to.

    Args:
        group_regex: its first group (or whole match) is the patient; ``None`` strips a trailing eye marker
            (``Image_01L`` -> ``Image_01``, ``case-7_OD`` -> ``case-7``).

    Raises:
        InputError: not a regular expression, or it does not match the stem.
    """
    stem = key(stem)
    if group_regex is None:
        match = _EYE.match(stem)
        return match.group(1) if match else stem
    try:
        match = re.search(group_regex, stem)
    except re.error as error:
        raise InputError(f'--group_regex {group_regex!r}: not a regular expression ({error})') from None
    if match is None:
        raise InputError(
            f'--group_regex {group_regex!r}: does not match {printable(stem)!r}: every stem must tell its patient'
        )
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
