"""Decisions into the annotations that training reads."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Mapping

from sa2va_dpo.datasets.annotations import write_pairs
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import copy_file
from .pairs import ReviewSet, exchange


def merge(review: ReviewSet, decisions: Mapping[str, str], reviewer: str) -> dict[str, int]:
    """Write the annotations anew: accepted pairs as they are, swapped ones exchanged, dropped ones left out.

    Decided pairs get ``reviewed`` ('accept' or 'swap') and ``reviewer``; skipped and undecided ones stay as mined.
    The file as mined is kept at ``review.original``; the new one appears whole or not at all. Every merge starts from
    what was mined, so repeating it changes nothing.

    Returns:
        Number of pairs by decision, with ``undecided``.

    Raises:
        InputError: nothing is decided, nothing would be left, or the folder cannot be written.
    """
    counts = Counter(decisions.get(pair, 'undecided') for pair in review.records)
    if not set(counts) - {'undecided', 'skip'}:
        raise InputError(f'{review.journal(reviewer)}: {reviewer} has decided on no pair yet: there is nothing to merge')
    merged = []
    for pair, record in review.records.items():
        decision = decisions.get(pair)
        if decision == 'drop':
            continue
        if decision == 'swap':
            record = exchange(record)
        if decision in ('accept', 'swap'):
            record = replace(record, extra=dict(record.extra, reviewed=decision, reviewer=reviewer))
        merged.append(record)
    if not merged:
        raise InputError(f'{review.journal(reviewer)}: {reviewer} has dropped every pair: nothing would be left')
    if not review.original.exists():
        copy_file(review.annotations, review.original)
    write_pairs(review.annotations, merged)
    return dict(counts)
