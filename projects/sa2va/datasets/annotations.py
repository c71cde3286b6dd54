"""The annotation files: one place that reads, checks and writes them."""
from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Sequence

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json, write_json

# What a data root's lists are called: pairs for training and validation; images with masks for validation and the test.
PAIRS_FILE, VAL_PAIRS_FILE = 'dpo_annotations.json', 'dpo_annotations_val.json'
VAL_FILE, TEST_FILE = 'val_annotations.json', 'test_annotations.json'
# Several masks an image, for people to pick from.
CANDIDATES_FILE = 'candidates.json'
_PATHS = ('image', 'chosen_mask', 'rejected_mask', 'gt_mask', 'mask', 'field_of_view')
_GAP_TOLERANCE = 1e-4  # the three numbers are rounded independently
# Differences of scores below this are noise of floating point: 0.85 - 0.80 is 0.04999999999999993.
SAME = 1e-9


def reaches_gap(gap: float, min_gap: float) -> bool:
    """Whether a difference of unrounded scores is large enough; the generator and the data set both ask here."""
    return gap >= min_gap - SAME


@dataclass(frozen=True)
class PairRecord:
    """One preference: of two masks of one image, ``chosen_mask`` is the better. Paths are relative to the data root.

    Attributes:
        chosen_iou, rejected_iou: in [0, 1]; ``iou_gap`` is their difference. Chosen is above rejected unless another
            judge than IoU decided (``extra['judge']``, ``'chosen_score'``, ``'rejected_score'``) and disagrees with
            IoU, or a reviewer exchanged the two masks (``extra['reviewed'] == 'swap'``).
        chosen_source, rejected_source: where the masks came from.
        gt_mask: ground truth, where it is known.
        extra: further fields, kept as they were read.
    """

    image: str
    chosen_mask: str
    rejected_mask: str
    chosen_iou: float
    rejected_iou: float
    iou_gap: float
    prompt: str
    chosen_source: str | None = None
    rejected_source: str | None = None
    gt_mask: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def preference_gap(self) -> float:
        """How much better the judge found the chosen mask: ``iou_gap``, or the other judge's difference of scores.

        Of a pair that a reviewer exchanged it is the size of that difference: how far apart the masks are is as
        measured, which of them is better is the reviewer's word.
        """
        gap = self.extra['chosen_score'] - self.extra['rejected_score'] if 'judge' in self.extra else self.iou_gap
        return abs(gap) if self.extra.get('reviewed') == 'swap' else gap


@dataclass(frozen=True)
class SegRecord:
    """One image with its ground truth and, where there is one, its field of view; paths are relative to the data
    root."""

    image: str
    mask: str
    prompt: str
    field_of_view: str | None = None


def has_records(path: str | os.PathLike) -> bool:
    """Whether an annotation file is there and lists something, without checking what; a damaged one counts as
    listing."""
    path = Path(path)
    return path.is_file() and path.read_text(encoding='utf-8').strip() != '[]'


def resolve(data_root: str | os.PathLike, relative: str) -> Path:
    """The file that a path of an annotation means.

    Raises:
        InputError: the path is absolute or leaves the data root, also through a symbolic link.
    """
    root = Path(data_root)
    pure = PurePosixPath(relative.replace('\\', '/'))
    if pure.is_absolute() or re.match('[A-Za-z]:', relative) or '..' in pure.parts:
        raise InputError(f'{relative!r}: leaves the data root {root}: paths must be relative to it')
    path = root.joinpath(*pure.parts)
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # null bytes, lone surrogates, loops of links
        raise InputError(f'{relative!r}: is no usable path ({error}): rename the file') from None
    if not inside:
        raise InputError(f'{relative!r}: is a link that leaves the data root {root}: copy the file into it')
    return path if path.exists() else _other_spelling(root, pure.parts) or path


def _other_spelling(root: Path, parts: Sequence[str]) -> Path | None:
    """The file whose name differs in Unicode's normal form alone: archives and macOS change it on the way."""
    path: Path | None = root
    for part in parts:
        assert path is not None  # the loop ends with the first part that is not there
        path = next(
            (
                path / spelling
                for spelling in (part, *(unicodedata.normalize(form, part) for form in ('NFC', 'NFD')))
                if (path / spelling).exists()
            ),
            None,
        )
        if path is None or not path.resolve().is_relative_to(root.resolve()):
            return None
    return path


def read_pairs(path: str | os.PathLike, data_root: str | os.PathLike) -> list[PairRecord]:
    """Read and check preference pairs.

    Raises:
        InputError: the file or one of its records is bad; names the file, the record and the field.
    """
    records = []
    for where, entry in _entries(path):
        texts = {name: _text(where, entry, name) for name in ('image', 'chosen_mask', 'rejected_mask', 'prompt')}
        numbers = {name: _number(where, entry, name) for name in ('chosen_iou', 'rejected_iou', 'iou_gap')}
        for name in ('chosen_iou', 'rejected_iou'):
            if not 0 <= numbers[name] <= 1:
                raise InputError(f'{where}: {name} is {numbers[name]}, must be in [0, 1]')
        swapped = _reviewed(where, entry) == 'swap'
        if 'judge' in entry:
            _check_judge(where, entry, swapped)
        elif not swapped and numbers['chosen_iou'] <= numbers['rejected_iou']:
            raise InputError(f'{where}: chosen_iou {numbers["chosen_iou"]} must be above rejected_iou '
                             f'{numbers["rejected_iou"]}: swap the two masks')
        gap = numbers['chosen_iou'] - numbers['rejected_iou']
        if abs(gap - numbers['iou_gap']) > _GAP_TOLERANCE:
            raise InputError(f'{where}: iou_gap is {numbers["iou_gap"]}, chosen_iou - rejected_iou is {gap:.6f}: '
                             'correct one of them')
        optional = {name: _text(where, entry, name) for name in ('chosen_source', 'rejected_source', 'gt_mask')
                    if entry.get(name) is not None}
        extra = {name: value for name, value in entry.items() if name not in PairRecord.__dataclass_fields__}
        records.append(PairRecord(**texts, **numbers, **optional, extra=extra))  # type: ignore[arg-type]
        _check_files(where, data_root, entry)
    return records


def read_segs(path: str | os.PathLike, data_root: str | os.PathLike) -> list[SegRecord]:
    """Read and check a list of images with ground truth.

    Raises:
        InputError: the file or one of its records is bad; names the file, the record and the field.
    """
    records = []
    for where, entry in _entries(path):
        names = ('image', 'mask', 'prompt', *(['field_of_view'] if entry.get('field_of_view') is not None else []))
        records.append(SegRecord(**{name: _text(where, entry, name) for name in names}))
        _check_files(where, data_root, entry)
    return records


def write_pairs(path: str | os.PathLike, records: Sequence[PairRecord]) -> None:
    """Write pairs in the guide's format; the file appears whole or not at all."""
    entries = []
    for record in records:
        entry = {name: getattr(record, name) for name in PairRecord.__dataclass_fields__ if name != 'extra'}
        entries.append({**{k: v for k, v in entry.items() if v is not None}, **record.extra})
    write_json(path, entries)


def write_segs(path: str | os.PathLike, records: Sequence[SegRecord]) -> None:
    """Write images with ground truth; the file appears whole or not at all."""
    write_json(path, [{name: value for name, value in vars(record).items() if value is not None} for record in records])


def _entries(path: str | os.PathLike):
    """(place for messages, record) of every element of the list in the file."""
    path = Path(path)
    content = read_json(
        path, 'correct the file or generate it again', 'make it with scripts/generate_dpo_dataset.py', kind=list
    )
    if not content:
        raise InputError(f'{path}: is an empty list: there is nothing to read')
    for index, entry in enumerate(content):
        where = f'{path}: record {index}'
        if not isinstance(entry, dict):
            raise InputError(f'{where}: is a {type(entry).__name__}, must be an object with named fields')
        yield where, entry


def _text(where: str, entry: dict, name: str) -> str:
    value = entry.get(name)
    if value is None:
        raise InputError(f'{where}: {name} is missing')
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: {name} is {value!r}, must be non-empty text')
    return value


def _number(where: str, entry: dict, name: str) -> float:
    value = entry.get(name)
    if value is None:
        raise InputError(f'{where}: {name} is missing')
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f'{where}: {name} is {value!r}, must be a finite number')
    return float(value)


def _reviewed(where: str, entry: dict) -> str | None:
    value = entry.get('reviewed')
    if value not in (None, 'accept', 'swap'):
        raise InputError(f"{where}: reviewed is {value!r}, must be 'accept' or 'swap', or be left out")
    return value


def _check_judge(where: str, entry: dict, swapped: bool) -> None:
    """A judge other than IoU must have preferred the chosen mask, unless a reviewer overruled it."""
    judge = _text(where, entry, 'judge')
    chosen, rejected = _number(where, entry, 'chosen_score'), _number(where, entry, 'rejected_score')
    if chosen <= rejected and not swapped:
        raise InputError(f'{where}: chosen_score {chosen} of judge {judge!r} must be above rejected_score {rejected}: '
                         'swap the two masks')


def _check_files(where: str, data_root: str | os.PathLike, entry: dict) -> None:
    for name in _PATHS:
        if entry.get(name) is None:
            continue
        try:
            found = resolve(data_root, entry[name]).is_file()
        except InputError as error:
            raise InputError(f'{where}: {name} {error}') from None
        except OSError:  # a name longer than the file system takes
            found = False
        if not found:
            raise InputError(f'{where}: {name} {entry[name]!r}: no such file under {data_root}')
