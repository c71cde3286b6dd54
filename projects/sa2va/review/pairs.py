"""The pairs under review: always those that were mined, whatever has been merged since."""
from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PairRecord, read_pairs

from .reviewers import reviewer_key

FOLDER = 'review'


@dataclass(frozen=True)
class ReviewSet:
    """Pairs as they were mined.

    Attributes:
        root: data root.
        annotations: the file that training reads and ``--merge`` replaces.
        original: backup of that file before the first merge; exists only after one.
        records: pairs by id, in the order of the file.
        fingerprint: of all pairs; a journal belongs to one fingerprint.
    """

    root: Path
    annotations: Path
    original: Path
    records: dict[str, PairRecord]
    fingerprint: str

    def journal(self, reviewer: str) -> Path:
        """Of a reviewer by name."""
        return self.original.parent / f'{self.annotations.stem}.{reviewer_key(reviewer)}.jsonl'


def open_set(data_root: str | os.PathLike, ann_file: str) -> ReviewSet:
    """Read and check the pairs.

    After a merge they come from the backup, so that every merge starts from what was mined: a decision that is changed
    later, or a dropped pair that is taken back, needs no undoing.

    Raises:
        InputError: a bad file (see ``read_pairs``), or a backup that is not of these annotations.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise InputError(
            f'--data_root {root}: no such folder: give the --output_dir of scripts/generate_dpo_dataset.py'
        )
    if Path(ann_file).name != ann_file or ann_file in ('', '.', '..') or '\\' in ann_file:
        raise InputError(f'--ann_file {ann_file!r}: must be a file name in {root}, without a folder')
    annotations = root / ann_file
    original = root / FOLDER / f'{annotations.stem}.original.json'
    current = _by_id(annotations, read_pairs(annotations, root))
    records = current
    if original.is_file():
        records = _by_id(original, read_pairs(original, root))
        if not set(current) <= set(records):
            raise InputError(f'{original}: is the backup of other pairs than {annotations} holds: '
                             f'move the folder {original.parent} away to review the new ones')
    digest = hashlib.blake2b('\n'.join(records).encode(), digest_size=16).hexdigest()
    return ReviewSet(root, annotations, original, records, digest)


def exchange(record: PairRecord) -> PairRecord:
    """The same two masks with their parts exchanged. Every number stays with the mask that it was measured on.

    ``iou_gap`` is still chosen minus rejected and changes its sign: an expert's word does not change what was measured.
    ``chosen_agreement`` is about the pixels on which exactly one of the two is right, so its complement holds.
    ``rejected_over_segments`` was measured on one side only and is left out.
    """
    extra = dict(record.extra)
    for name in record.extra:
        kind, _, rest = name.partition('_')
        if kind == 'chosen' and f'rejected_{rest}' in extra:
            extra[name], extra[f'rejected_{rest}'] = extra[f'rejected_{rest}'], extra[name]
    if isinstance(extra.get('chosen_agreement'), (int, float)):
        extra['chosen_agreement'] = round(1 - extra['chosen_agreement'], 6)
    # It is a measurement of the mask that was rejected: unknown for the other one.
    extra.pop('rejected_over_segments', None)
    return replace(
        record, chosen_mask=record.rejected_mask, rejected_mask=record.chosen_mask,
        chosen_iou=record.rejected_iou, rejected_iou=record.chosen_iou, iou_gap=-record.iou_gap,
        chosen_source=record.rejected_source, rejected_source=record.chosen_source, extra=extra)


def _by_id(path: Path, records: list[PairRecord]) -> dict[str, PairRecord]:
    found = {}
    for index, record in enumerate(records):
        key = _identity(record)
        if key in found:
            raise InputError(f'{path}: record {index}: the same pair stands in the file before: remove one of them')
        found[key] = record
    return found


def _identity(record: PairRecord) -> str:
    """Of a pair as mined. The numbers are part of it: names repeat when pairs are mined anew, numbers hardly do."""
    if record.extra.get('reviewed') == 'swap':
        record = exchange(record)
    parts = [
        record.image,
        record.prompt,
        record.chosen_mask,
        record.rejected_mask,
        record.chosen_iou,
        record.rejected_iou,
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()
