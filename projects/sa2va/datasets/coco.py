"""COCO instance annotations -> one ground-truth mask per image."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from .mask_io import write_mask


def read_coco(path: str | os.PathLike, categories: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The vessel mask of every image.

    All annotations of an image are joined (a pixel is vessel or not, however many instances overlap there). Polygons
    follow pycocotools: several polygons of one annotation are joined, so a hole drawn as a polygon is filled. Run-length
    encodings, compressed or not, keep their holes.

    Args:
        path: COCO JSON with ``images``, ``annotations`` and, for ``categories``, ``categories``.
        categories: names to keep; ``None`` keeps all.

    Returns:
        file name -> bool [H, W], in the file's order; images without annotations are empty masks.

    Raises:
        InputError: not COCO JSON, or an annotation is bad; names the file, the annotation and the field.
    """
    path = Path(path)
    content = read_json(path, 'export it again')
    images, annotations = _list(path, content, 'images'), _list(path, content, 'annotations')
    keep = _category_ids(path, content, categories)
    found: dict = {}
    for index, image in enumerate(images):
        where = f'{path}: images[{index}]'
        name, (height, width) = image.get('file_name'), (_side(where, image, side) for side in ('height', 'width'))
        if not isinstance(name, str) or not name:
            raise InputError(f'{where}: file_name is {name!r}, must be text')
        if image.get('id') in found:
            raise InputError(f'{where}: id {image.get("id")!r} stands twice')
        found[image.get('id')] = name, np.zeros((height, width), bool)
    for index, annotation in enumerate(annotations):
        where = f'{path}: annotations[{index}]'
        if annotation.get('image_id') not in found:
            raise InputError(f'{where}: image_id {annotation.get("image_id")!r} is no image of this file')
        if keep is None or annotation.get('category_id') in keep:
            mask = found[annotation['image_id']][1]
            mask |= _decode(where, annotation.get('segmentation'), mask.shape)
    return dict(found.values())


def coco_to_masks(path: str | os.PathLike, out_dir: str | os.PathLike, categories: tuple[str, ...] | None = None) -> list[Path]:
    """Write ``<stem>.png`` (0 and 255) for every image of a COCO file; ``out_dir`` then serves as ``--gt_dir``.

    Raises:
        InputError: see :func:`read_coco`; or two images share a stem.
    """
    written: dict[str, str] = {}
    masks = read_coco(path, categories)
    for name in masks:
        stem = Path(name).stem
        if stem in written:
            raise InputError(f'{path}: {written[stem]} and {name} have the same stem, their masks cannot be told apart: '
                             'rename one of them')
        written[stem] = name
    for stem, name in written.items():
        write_mask(Path(out_dir) / f'{stem}.png', masks[name])
    return [Path(out_dir) / f'{stem}.png' for stem in written]


def _list(path: Path, content, name: str) -> list[dict]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f'{path}: {name} must be a list of objects: is this a COCO instance file?')
    return value


def _category_ids(path: Path, content: dict, categories: tuple[str, ...] | None) -> set | None:
    if categories is None:
        return None
    ids = {entry.get('name'): entry.get('id') for entry in _list(path, content, 'categories')}
    unknown = [name for name in categories if name not in ids]
    if unknown:
        raise InputError(f'{path}: no category {", ".join(unknown)}; it has {", ".join(map(str, ids))}')
    return {ids[name] for name in categories}


def _side(where: str, image: dict, name: str) -> int:
    value = image.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 16:
        raise InputError(f'{where}: {name} is {value!r}, must be a whole number of pixels')
    return value


def _decode(where: str, segmentation, shape: tuple[int, int]) -> np.ndarray:
    """A segmentation as bool [H, W]."""
    height, width = shape
    if isinstance(segmentation, list):
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in polygon)
            if not numbers or len(polygon) < 6 or len(polygon) % 2:
                raise InputError(f'{where}: segmentation must hold polygons [x1, y1, x2, y2, x3, y3, ...]')
        if not segmentation:
            return np.zeros(shape, bool)
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width))).astype(bool)
    if not isinstance(segmentation, dict) or 'counts' not in segmentation:
        raise InputError(f'{where}: segmentation must be a list of polygons or a run-length encoding')
    if list(segmentation.get('size', [])) != [height, width]:
        raise InputError(f'{where}: segmentation size is {segmentation.get("size")}, its image is {[height, width]}')
    counts = segmentation['counts']
    if isinstance(counts, list):
        # Checked here: pycocotools writes beyond its buffer when the runs do not fit the image.
        if not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts) or sum(counts) != height * width:
            raise InputError(f'{where}: segmentation counts must be whole numbers that add up to {height * width} pixels')
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return values.reshape(width, height).T
    if not isinstance(counts, str):
        raise InputError(f'{where}: segmentation counts must be text or a list')
    runs = _runs(where, counts)
    if sum(runs) != height * width or min(runs) < 0:
        raise InputError(f'{where}: segmentation counts add up to {sum(runs)}, its image has {height * width} pixels')
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(where: str, text: str) -> list[int]:
    """Run lengths of COCO's compressed text: 5-bit groups, sign in the last, differences from the run before last."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise InputError(f'{where}: segmentation counts are not a run-length encoding')
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or not runs:
        raise InputError(f'{where}: segmentation counts are cut short')
    return runs
