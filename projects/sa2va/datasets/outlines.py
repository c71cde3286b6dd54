"""JSON files of outlines as masks by image: COCO instances, and the ``annotations.json`` of upstream Sa2VA's
fine-tuning."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Mapping

import numpy as np
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.common.limits import check_pixels

from .rle import decode


class Outlines:
    """Masks by the stem of their image.

    Attributes:
        names: stem -> the image's file name, in the file's order.
    """

    names: dict[str, str]

    @property
    def stems(self) -> list[str]:
        return list(self.names)

    def size(self, stem: str) -> tuple[int, int]:
        """(width, height)."""
        raise NotImplementedError

    def mask(self, stem: str) -> np.ndarray:
        """bool [H, W], everything that is outlined in the image."""
        raise NotImplementedError


class Coco(Outlines):
    """COCO instance annotations.

    Args:
        path: JSON with ``images``, ``annotations`` and, for ``categories``, ``categories``.
        content: what it holds, where it is read already.
        categories: names to keep; ``None`` keeps all.

    Raises:
        InputError: not COCO JSON, or an entry is bad; names the file, the entry and the field.
    """

    def __init__(self, path: Path, content: Any = None, categories: tuple[str, ...] | None = None) -> None:
        self.path = path
        content = read_json(path, 'export it again') if content is None else content
        images, annotations = _list(path, content, 'images'), _list(path, content, 'annotations')
        keep = _category_ids(path, content, categories)
        self.names, self._sizes, self._annotations = {}, {}, {}
        stem_of: dict = {}
        for index, image in enumerate(images):
            where = f'{path}: images[{index}]'
            name, sides = image.get('file_name'), [_side(where, image, side) for side in ('width', 'height')]
            if not isinstance(name, str) or not name:
                raise InputError(f'{where}: file_name is {name!r}, must be text')
            check_pixels(f'{where} {name}', *sides)
            number, stem = _identity(where, image, 'id'), Path(name).stem
            if number in stem_of:
                raise InputError(f'{where}: id {number!r} stands twice')
            if stem in self.names:
                raise InputError(
                    f'{path}: {self.names[stem]} and {name} have the same stem, their masks cannot be told apart: '
                    'rename one of them'
                )
            stem_of[number] = stem
            self.names[stem], self._sizes[stem], self._annotations[stem] = name, tuple(sides), []
        for index, annotation in enumerate(annotations):
            number = _identity(f'{path}: annotations[{index}]', annotation, 'image_id')
            if number not in stem_of:
                raise InputError(f'{path}: annotations[{index}]: image_id {number!r} is no image of this file')
            if keep is None or _identity(f'{path}: annotations[{index}]', annotation, 'category_id') in keep:
                self._annotations[stem_of[number]].append((index, annotation))

    def size(self, stem: str) -> tuple[int, int]:
        return self._sizes[stem]

    def mask(self, stem: str) -> np.ndarray:
        width, height = self._sizes[stem]
        mask = np.zeros((height, width), bool)
        for index, annotation in self._annotations[stem]:
            mask |= decode(f'{self.path}: annotations[{index}]', annotation.get('segmentation'), mask.shape)
        return mask


class RefSeg(Outlines):
    """Upstream Sa2VA's fine-tuning format: a list of ``image``, ``mask`` (one entry a text: polygons, or run lengths)
    and ``text``. All masks of an image are joined; the images lie in ``images/`` beside the file, or beside it.

    Raises:
        InputError: an entry is bad; names the file, the entry and the field.
    """

    def __init__(self, path: Path, content: list) -> None:
        self.path, self.names, self._masks = path, {}, {}
        for index, entry in enumerate(content):
            where = f'{path}: record {index}'
            name, masks = entry.get('image'), entry.get('mask')
            if not isinstance(name, str) or not name or '..' in Path(name).parts or Path(name).is_absolute():
                raise InputError(f'{where}: image is {name!r}, must be the name of an image')
            if not isinstance(masks, list):
                raise InputError(f'{where}: mask is a {type(masks).__name__}, must be a list of masks, one a text')
            # One image may stand in several records, each with texts of its own.
            stem = Path(name).stem
            if self.names.setdefault(stem, name) != name:
                raise InputError(
                    f'{path}: {self.names[stem]} and {name} have the same stem, their masks cannot be told apart: '
                    'rename one of them'
                )
            self._masks.setdefault(stem, []).extend((f'{where}: mask {k}', mask) for k, mask in enumerate(masks))

    def size(self, stem: str) -> tuple[int, int]:
        for _, mask in self._masks[stem]:
            if isinstance(mask, dict) and isinstance(mask.get('size'), list) and len(mask['size']) == 2:
                return _side(f'{self.path}: {self.names[stem]}', dict(width=mask['size'][1]), 'width'), _side(
                    f'{self.path}: {self.names[stem]}', dict(height=mask['size'][0]), 'height')
        name = Path(self.names[stem])
        for folder in (self.path.parent / 'images', self.path.parent, self.path.parent.parent / 'images'):
            if (folder / name).is_file():
                try:
                    with Image.open(folder / name) as image:
                        size = image.size
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    raise InputError(
                        f'{folder / name}: cannot be read as an image ({error}): is the file complete?'
                    ) from None
                check_pixels(folder / name, *size)
                return size
        raise InputError(
            f'{self.path}: its polygons have the size of {name}, which is not in images/ beside it: put it there'
        )

    def mask(self, stem: str) -> np.ndarray:
        width, height = self.size(stem)
        mask = np.zeros((height, width), bool)
        for where, outline in self._masks[stem]:
            # A single polygon instead of a list of them is met as well.
            if isinstance(outline, list) and outline and not isinstance(outline[0], (list, dict)):
                outline = [outline]
            mask |= decode(where, outline, mask.shape)
        return mask


def read(path: Path) -> Outlines:
    """A JSON file of outlines; read again only when it changes.

    Raises:
        InputError: it is neither COCO nor upstream's format, or an entry is bad.
    """
    return _read(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: str, _changed: int) -> Outlines:
    content = read_json(path, 'export it again')
    if is_ref_seg(content):
        return RefSeg(Path(path), content)
    return Coco(Path(path), content)


def is_ref_seg(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(
        isinstance(entry, dict) and {'image', 'mask', 'text'} <= entry.keys() for entry in content)


def _list(path: Path, content: Any, name: str) -> list[dict]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f'{path}: {name} must be a list of objects: is this a COCO instance file?')
    return value


def _identity(where: str, entry: Mapping, name: str) -> int | str:
    """A number or text that tells entries apart."""
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InputError(f'{where}: {name} is {value!r}, must be a whole number or text')
    return value


def _category_ids(path: Path, content: Any, categories: tuple[str, ...] | None) -> set | None:
    if categories is None:
        return None
    ids = {}
    for index, entry in enumerate(_list(path, content, 'categories')):
        where = f'{path}: categories[{index}]'
        ids[str(_identity(where, entry, 'name'))] = _identity(where, entry, 'id')
    unknown = [name for name in categories if name not in ids]
    if unknown:
        raise InputError(f'{path}: no category {", ".join(unknown)}; it has {", ".join(ids)}')
    return {ids[name] for name in categories}


def _side(where: str, image: Mapping, name: str) -> int:
    value = image.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 16:
        raise InputError(f'{where}: {name} is {value!r}, must be a whole number of pixels')
    return value
