"""Picks into the annotations that training reads."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.ownership import lock
from sa2va_dpo.datasets.annotations import read_pairs, write_pairs

from .picks import JUDGE, picks_to_records, read_candidates, read_picks
from .reviewers import reviewer_name


def merge_picks(root: str | os.PathLike, ann_file: str, reviewers: Sequence[str]) -> tuple[Path, dict[str, int]]:
    """Write the pairs that follow from everybody's picks; the file appears whole or not at all.

    Args:
        reviewers: names; each must have picked. Whoever else has a journal here is joined too, so that nobody's
            decisions are dropped.

    Returns:
        The file, and ``pairs``, ``agreed`` and ``conflicts`` (images).

    Raises:
        InputError: pairs that were not picked are in the file, a journal is missing or bad, or no pair follows.
    """
    root = Path(root)
    if Path(ann_file).name != ann_file or ann_file in ('', '.', '..') or '\\' in ann_file:
        raise InputError(f'--ann_file {ann_file!r}: must be a file name in {root}, without a folder')
    path = root / ann_file
    if ann_file == read_candidates(root).file.name:
        raise InputError(f'--ann_file {ann_file}: holds the candidates: choose another name')
    with lock(root, 'merge of picks', '--data_root'):
        if path.exists() and any(record.extra.get('judge') != JUDGE for record in read_pairs(path, root)):
            raise InputError(f'{path}: holds pairs that were mined: give --ann_file another name')
        picks = read_picks(root)
        for name in map(reviewer_name, reviewers):
            if name not in picks.by_reviewer:
                read_picks(root, name)  # says that there is no journal
                raise InputError(f'--reviewer {name}: has decided on no image yet: there is nothing to merge')
        records = picks_to_records(root, picks)
        if not records:
            raise InputError(
                f'{root}: no pair follows from the {len(picks.agreed)} decided and {len(picks.conflicts)} disputed '
                'images: pick more'
            )
        write_pairs(path, records)
    return path, dict(pairs=len(records), agreed=len(picks.agreed), conflicts=len(picks.conflicts))
