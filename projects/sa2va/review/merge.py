"""Decisions of one or several reviewers into the annotations that training reads."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Mapping, Sequence

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import copy_file, read_json, remove_leftovers, write_json
from sa2va_dpo.common.ownership import lock
from sa2va_dpo.datasets.annotations import read_pairs, write_pairs

from .agreement import CATEGORIES, compare
from .journal import read_decisions, read_notes
from .pairs import ReviewSet, exchange
from .reviewers import reviewer_name


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        reviewers: everybody whose decisions are in it.
        counts: number of pairs by decision, with ``conflict`` and ``undecided``.
        conflicts: decisions by reviewer, by pair id; these pairs stand as mined.
        agreement: what ``agreement.compare`` says of every two reviewers.
    """

    reviewers: list[str]
    counts: dict[str, int]
    conflicts: dict[str, dict[str, str]]
    agreement: dict[tuple[str, str], dict]


def joined(by_reviewer: Mapping[str, Mapping[str, str]], pair: str) -> str:
    """What reviewers say together: 'accept', 'swap' or 'drop' where all who decided say it, 'conflict' where they do
    not, 'skip' or 'undecided' where nobody decided."""
    said = [decisions[pair] for decisions in by_reviewer.values() if pair in decisions]
    decided = {decision for decision in said if decision in CATEGORIES}
    if len(decided) > 1:
        return 'conflict'
    return decided.pop() if decided else 'skip' if said else 'undecided'


def merge(review: ReviewSet, reviewers: Sequence[str]) -> Merged:
    """Write the annotations anew: accepted pairs as they are, swapped ones exchanged, dropped ones left out.

    Whoever was merged before stays in: a merge joins. Pairs on which reviewers differ stay as mined, as do skipped and
    undecided ones. Decided pairs get ``reviewed`` ('accept' or 'swap') and ``reviewers``, pairs with remarks
    ``review_notes``. The file as mined is kept at ``review.original``, what was joined and the conflicts at
    :func:`record_path`; the annotations appear whole or not at all. Every merge starts from what was mined and from the
    journals, so repeating it changes nothing.

    Raises:
        InputError: nothing is decided, nothing would be left, a journal is missing or bad, another merge is going on,
            or the folder cannot be written.
    """
    with lock(review.root, 'merge of reviews', '--data_root'):
        remove_leftovers(review.original.parent)
        names = list(dict.fromkeys([*map(reviewer_name, reviewers), *_merged_before(review)]))
        by_reviewer = {name: _journal_of(review, name, new=index < len(reviewers)) for index, name in enumerate(names)}
        notes = {name: read_notes(review, name) for name in names}
        result = {pair: joined(by_reviewer, pair) for pair in review.records}
        counts = Counter(result.values())
        if not set(counts) & {*CATEGORIES, 'conflict'}:
            raise InputError(
                f'{review.journal(names[0])}: {names[0]} has decided on no pair yet: there is nothing to merge'
            )
        merged = []
        for pair, record in review.records.items():
            decision = result[pair]
            if decision == 'drop':
                continue
            if decision == 'swap':
                record = exchange(record)
            extra = dict(record.extra)
            if decision in ('accept', 'swap'):
                extra.update(
                    reviewed=decision, reviewers=[name for name in names if by_reviewer[name].get(pair) == decision]
                )
            remarks = {name: own[pair] for name, own in notes.items() if pair in own}
            if remarks:
                extra['review_notes'] = remarks
            merged.append(replace(record, extra=extra))
        if not merged:
            raise InputError(
                f'{review.journal(names[0])}: {" and ".join(names)} dropped every pair: nothing would be left'
            )
        conflicts = {pair: {name: own[pair] for name, own in by_reviewer.items() if own.get(pair) in CATEGORIES}
                     for pair, decision in result.items() if decision == 'conflict'}
        agreement = {two: compare(by_reviewer[two[0]], by_reviewer[two[1]]) for two in combinations(names, 2)}
        _write(review, merged, names, conflicts)
    return Merged(names, dict(counts), conflicts, agreement)


def record_path(review: ReviewSet) -> Path:
    """Who has been merged, and the conflicts: JSON with ``reviewers`` and ``conflicts``."""
    return review.original.with_name(f'{review.annotations.stem}.merge.json')


def _merged_before(review: ReviewSet) -> list[str]:
    path = record_path(review)
    if path.is_file():
        remedy = 'name every reviewer with --merge after removing it'
        names = read_json(path, remedy, kind=dict).get('reviewers')
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f'{path}: reviewers is {names!r}, must be a list of names: {remedy}')
        return [reviewer_name(name) for name in names]
    if not review.original.is_file():
        return []
    # Merged by an earlier version, which wrote one name into every record.
    found = (record.extra.get('reviewer') for record in read_pairs(review.annotations, review.root))
    return list(dict.fromkeys(name for name in found if isinstance(name, str)))


def _journal_of(review: ReviewSet, name: str, new: bool) -> dict[str, str]:
    if not new and not review.journal(name).is_file():
        raise InputError(
            f'{review.journal(name)}: {name} was merged before and the journal is gone: put it back, or remove '
            f'{record_path(review)} to merge without {name}'
        )
    return read_decisions(review, name)


def _write(review: ReviewSet, merged: list, names: list[str], conflicts: dict[str, dict[str, str]]) -> None:
    if not review.original.exists():
        copy_file(review.annotations, review.original)
    # First: a kill in between leaves a name too many for the next merge, never one too few.
    write_json(record_path(review), dict(reviewers=names, conflicts=[
        dict(pair=pair, image=review.records[pair].image, decisions=said) for pair, said in conflicts.items()]))
    write_pairs(review.annotations, merged)
