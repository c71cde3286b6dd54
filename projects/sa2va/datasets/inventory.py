"""What a folder of data holds, and what about it is suspicious: which images fit which masks, sizes, levels, copies."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import numpy as np

from sa2va_dpo.common import console
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file

from . import outlines
from .field_of_view import find_field_of_view
from .ground_truth import MaskFolder, match_ground_truth, patient_of
from .mask_io import image_size, is_binary, list_images, mask_levels, read_image_rgb, read_mask, read_probability
from .names import SECOND_SUFFIXES, printable

_DEPTH = 4  # of folders below the one that is named
_LOOKED_AT = 3  # files of a folder that tell whether it holds masks
# Vessels cover up to a sixth of an image; what covers half of it is a field of view, an inverted mask or a photograph.
NEARLY_ALL = 0.5


@dataclass
class DataSet:
    """One folder of images with its masks, and what was found.

    Attributes:
        images, masks: where they lie; the same folder where both lie together.
        matched: image, mask and field of view (or ``None``).
        errors: findings with which pairs cannot be made; warnings: those that a person should look at. Each names its
            file.
        suspicious: images that a finding is about.
        sizes: (width, height) -> number of images; levels: what a mask holds ('0, 255') -> number of masks.
        shares: share of vessel in each readable mask.
    """

    images: Path
    masks: Path
    matched: list[tuple[Path, Path, Path | None]] = field(default_factory=list)
    without_mask: list[Path] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    suspicious: set[Path] = field(default_factory=set)
    sizes: Counter = field(default_factory=Counter)
    levels: Counter = field(default_factory=Counter)
    shares: list[float] = field(default_factory=list)


def find_data_sets(root: Path) -> list[DataSet]:
    """Folders of images and the masks that fit most of them, for every folder of images below a folder.

    Raises:
        InputError: no such folder, or nothing in it fits.
    """
    if not root.is_dir():
        raise InputError(f'{printable(root)}: no such folder: give a folder of images and masks')
    folders = [folder for folder in _folders(root, _DEPTH) if _listed(folder)]
    places = [
        *folders,
        *(path for folder in _folders(root, _DEPTH) for path in sorted(folder.glob('*.json')) if _is_outlines(path)),
    ]
    kinds = {folder: _kind(folder) for folder in folders}
    found = []
    for folder in folders:
        best: tuple | None = None
        for place in places:
            # Masks are looked for in folders of masks, in JSON files, and among the images themselves.
            if place != folder and (kinds[folder] != 'images' or kinds.get(place, 'masks') != 'masks'):
                continue
            fits, seconds = _fits(folder, place)
            # A folder near the images is theirs: train/images belongs to train/masks.
            near = len([1 for a, b in zip(folder.parts, place.parts) if a == b])
            rank = (fits, -seconds, near)
            if fits and (best is None or rank > best[0]):
                best = rank, place
        if best is not None:
            found.append(DataSet(folder, best[1]))
    if not found:
        raise InputError(
            f'{printable(root)}: holds no image with a mask of a fitting name: name the folder of masks with --gt_dir; '
            'docs/pairs.md lists the names that are understood'
        )
    return found


def inspect(data: DataSet, progress: bool = False) -> DataSet:
    """Look at every file of a data set once and fill in what was found.

    Raises:
        InputError: a folder cannot be listed, or names do not tell what belongs together.
    """
    images, masks = list_images(data.images), MaskFolder(data.masks)
    matched, data.without_mask = match_ground_truth(images, data.masks)
    used = {mask for _, mask in matched}
    seconds: list[str] = []
    beside: set[Path] = set()
    for image, mask in matched:
        others = [(suffix, other) for suffix, other in masks.all(image.stem, image) if other != mask]
        beside.update(other for _, other in others)
        seconds += [f'{printable(mask.name)} is used, {printable(other.name)} is not' for suffix, other in others
                    if suffix in SECOND_SUFFIXES]
    if seconds:
        data.warnings.append(f'{len(seconds)} images have masks of several observers: {_some(seconds)}')
    images_too = {image for image, _ in matched} | set(data.without_mask)
    data.without_image = [mask for mask in masks.masks if mask not in used | beside | images_too]
    for image, mask in console.progress(matched, desc='looking', unit='image', disable=not progress):
        data.matched.append((image, mask, _look(data, image, mask)))
    _copies(data, [image for image, _ in matched], 'images', 'two patients of one picture would be split')
    _copies(data, [mask for _, mask in matched], 'masks', 'is one of them the mask of another image?')
    return data


def describe(data: DataSet, group_regex: str | None = None, most: int = 5) -> list[str]:
    """A data set's findings as lines of text; of each kind the first ``most``.

    Raises:
        InputError: ``group_regex`` does not match a stem.
    """
    def some(names: list[str]) -> str:
        return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')

    images = len(data.matched) + len(data.without_mask)
    patients = {patient_of(image.stem, group_regex) for image, _, _ in data.matched}
    fields = sum(field is not None for _, _, field in data.matched)
    lines = [
        f'{printable(data.images)}: {len(data.matched)} of {images} images have a mask in {printable(data.masks)}, '
        f'{len(patients)} patients, {fields} fields of view'
    ]
    lines += [
        f'  {printable(image.name)} -> {printable(mask.name)}'
        + (f', field of view {printable(field.name)}' if field else '')
        for image, mask, field in data.matched[:3]
    ]
    if len(data.matched) > 3:
        lines.append('  ...')
    for names, label in (([printable(path.name) for path in data.without_mask], 'images without a mask'),
                         ([printable(path.name) for path in data.without_image], 'masks without an image')):
        if names:
            lines.append(f'  {label} ({len(names)}): {some(names)}')
    lines.append(
        '  sizes: ' + some([f'{width} x {height} px ({count})' for (width, height), count in data.sizes.most_common()])
    )
    lines.append('  mask levels: ' + some([f'{levels} ({count})' for levels, count in data.levels.most_common()]))
    if data.shares:
        low, middle, high = np.quantile(data.shares, (0, 0.5, 1))
        lines.append(f'  vessel: {low:.1%} to {high:.1%} of the image, median {middle:.1%}')
    for findings, label in ((data.errors, 'error'), (data.warnings, 'look')):
        lines += [f'  {label}: {finding}' for finding in findings[:most]]
        if len(findings) > most:
            lines.append(f'  {label}: {len(findings) - most} more of these')
    if not data.errors and not data.warnings:
        lines.append('  nothing suspicious')
    return lines


def _look(data: DataSet, image: Path, mask: Path) -> Path | None:
    """Take in one image and its mask; returns the field of view."""
    try:
        size = image_size(image)
        read_image_rgb(image)
        data.sizes[size] += 1
        mask_size = image_size(mask)
        levels = mask_levels(mask)
        data.levels[_describe(levels)] += 1
        if mask_size != size:
            data.errors.append(
                f'{printable(mask.name)}: is {mask_size[0]} x {mask_size[1]}, its image {size[0]} x {size[1]}'
            )
            data.suspicious.add(image)
            return None
        share = float(read_mask(mask).mean())
        field_of_view = find_field_of_view(image, mask)
    except InputError as error:
        data.errors.append(str(error))
        data.suspicious.add(image)
        return None
    data.shares.append(share)
    problem = ('is empty' if share == 0 else f'is vessel on {share:.0%} of the image: inverted, or a field of view?'
               if share > NEARLY_ALL else None)
    if problem is None and not is_binary(read_probability(mask)) and len(levels) > 2:
        problem = f'has {len(levels)} grey levels, {_between(mask):.0%} of its pixels are neither dark nor bright'
    if problem is not None:
        data.warnings.append(f'{printable(mask.name)}: {problem}')
        data.suspicious.add(image)
    return field_of_view


def _between(mask: Path) -> float:
    grey = read_probability(mask)
    return float(((grey > 0.06) & (grey < 0.94)).mean())


def _describe(levels: dict[float, int]) -> str:
    return ', '.join(f'{level:g}' for level in levels) if len(levels) <= 4 else f'{len(levels)} levels'


def _copies(data: DataSet, paths: list[Path], what: str, why: str) -> None:
    first: dict[str, Path] = {}
    found = []
    for path in paths:
        try:
            other = first.setdefault(hash_file(path), path)
        except InputError:
            continue  # it is among the errors
        if other != path:
            found.append(f'{printable(other.name)} = {printable(path.name)}')
            data.suspicious.update(image for image, mask, _ in data.matched if {image, mask} & {path, other})
    if found:
        data.warnings.append(f'{len(found)} {what} are copies of another under another name ({why}): {_some(found)}')


def _some(names: list[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    if depth:
        for path in sorted(root.iterdir()):
            if path.is_dir() and not path.name.startswith('.'):
                yield from _folders(path, depth - 1)


def _listed(folder: Path) -> list[Path]:
    try:
        return list_images(folder)
    except InputError as error:
        if 'holds no image' in str(error):
            return []
        raise


def _kind(folder: Path) -> str:
    """``images``, ``masks`` or ``fields`` (of view): what a folder's files look like; both kinds in one are images."""
    shares = []
    for path in _listed(folder)[:_LOOKED_AT]:
        try:
            grey = read_probability(path)
        except InputError:
            continue
        if not is_binary(grey):
            return 'images'
        shares.append(float((grey > 0.5).mean()))
    return 'fields' if shares and min(shares) > NEARLY_ALL else 'masks'


def _is_outlines(path: Path) -> bool:
    try:
        return bool(outlines.read(path).stems)
    except InputError:
        return False


def _fits(images: Path, masks: Path) -> tuple[int, int]:
    """How many images of a folder find a mask, and how many of these a second observer's."""
    try:
        matched, _ = match_ground_truth(_listed(images), masks)
    except InputError:
        return 0, 0
    seconds = sum(
        mask.stem.lower().endswith(tuple(suffix.lower() for suffix in SECOND_SUFFIXES)) for _, mask in matched
    )
    return len(matched), seconds
