"""What people picked, and the preference pairs that follow from it."""
from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Mapping

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PairRecord, resolve
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.evaluation.counts import mask_iou

from .candidates import CandidateSet, distinct, read_candidates
from .journal import owner, read_lines
from .pairs import FOLDER
from .reviewers import reviewer_name

__all__ = [
    'Composite',
    'Pick',
    'Picks',
    'parse_pick',
    'pick_statistics',
    'picks_to_records',
    'read_candidates',
    'read_picks',
]

JUDGE = 'expert'
SOURCE = 'composite'  # of a mask that a reviewer put together
NO_PICK = ('none', 'equal')


@dataclass(frozen=True)
class Composite:
    """A mask that a reviewer put together from regions of the candidates ``sources`` (indices in candidates.json)."""

    mask: str
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Pick:
    """One decision: the index of a candidate, ``'none'`` is good, all about ``'equal'``, or a composite.

    Attributes:
        seconds: the image was on the screen; None where a journal does not say.
        clicks: gestures that the decision took: 1, or more for a composite.
    """

    image: str
    pick: int | str | Composite
    reviewer: str
    seconds: float | None = None
    clicks: int = 1


@dataclass(frozen=True)
class Picks:
    """The decisions of one or several reviewers.

    Attributes:
        fingerprint: of the candidates that were decided on.
        agreed: by image, of those on which all who decided say the same.
        conflicts: by image, of those on which they do not: one decision a reviewer. They give no pairs.
        by_reviewer: every reviewer's own decisions by image.
    """

    fingerprint: str
    agreed: dict[str, Pick]
    conflicts: dict[str, list[Pick]] = field(default_factory=dict)
    by_reviewer: dict[str, dict[str, Pick]] = field(default_factory=dict)


def read_picks(root: str | os.PathLike, reviewer: str | None = None, empty: bool = False) -> Picks:
    """Decisions on the candidates of a data root.

    Args:
        reviewer: one reviewer's name; None reads every journal there.
        empty: where nobody has picked, no decisions instead of an error.

    Raises:
        InputError: no journal, one of other candidates, or a line that is no decision on them.
    """
    candidates = read_candidates(root)
    if reviewer is not None:
        paths = [candidates.journal(reviewer)]
        if not paths[0].is_file():
            raise InputError(f'{paths[0]}: {reviewer_name(reviewer)} has picked nothing here: start the page with '
                             f'--pick --reviewer first')
    else:
        paths = sorted((candidates.root / FOLDER).glob('picks.*.jsonl'))
        if not paths and not empty:
            raise InputError(
                f'{candidates.root / FOLDER}: nobody has picked anything: start the page with --pick first'
            )
    found = {}
    for path in paths:
        name = owner(path)
        if name and path != candidates.journal(name):
            raise InputError(
                f'{path}: is the journal of {name!r}, which is called {candidates.journal(name).name}: rename it'
            )
        picks = read_journal(candidates, path, name or None)
        if picks or reviewer is not None:
            found[name] = picks
    return join(candidates, found)


def read_journal(candidates: CandidateSet, path: Path, reviewer: str | None) -> dict[str, Pick]:
    """One reviewer's decisions by image, the last one of each; raises InputError as :func:`read_picks`."""
    entries = read_lines(path, candidates.fingerprint, reviewer, candidates.file)
    return {pick.image: pick for pick in (parse_pick(candidates, f'{path}: line {number}', entry, reviewer or '')
                                          for number, entry in entries)}


def parse_pick(candidates: CandidateSet, where: str, entry: Mapping[str, Any], reviewer: str) -> Pick:
    """A line of a journal.

    Raises:
        InputError: it is no decision on one of the images; ``where`` stands first in the message.
    """
    image, pick = entry.get('image'), entry.get('pick')
    if not isinstance(image, str) or image not in candidates.images:
        raise InputError(f'{where}: image {image!r} is not in {candidates.file}: remove that line')
    count = len(candidates.images[image].candidates)

    def is_index(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count

    if isinstance(pick, Mapping):
        mask, sources = pick.get('mask'), pick.get('from', [])
        if not isinstance(mask, str) or not isinstance(sources, list) or not all(map(is_index, sources)):
            raise InputError(f'{where}: pick is {dict(pick)!r}, must name a mask and the candidates it is from')
        if not resolve(candidates.root, mask).is_file():
            raise InputError(
                f'{where}: pick {mask!r}: no such file under {candidates.root}: put it back or decide again'
            )
        pick = Composite(mask, tuple(sources))
    elif not is_index(pick) and pick not in NO_PICK:
        raise InputError(
            f'{where}: pick is {pick!r}, must be 0 to {count - 1}, "none", "equal" or an object with a mask'
        )
    seconds, clicks = entry.get('seconds'), entry.get('clicks', 1)
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float))
                                or not math.isfinite(seconds) or seconds < 0):
        raise InputError(f'{where}: seconds is {seconds!r}, must be a number from 0 on')
    if isinstance(clicks, bool) or not isinstance(clicks, int) or clicks < 1:
        raise InputError(f'{where}: clicks is {clicks!r}, must be a whole number from 1 on')
    return Pick(image, pick, reviewer, None if seconds is None else float(seconds), clicks)


def join(candidates: CandidateSet, by_reviewer: Mapping[str, Mapping[str, Pick]]) -> Picks:
    """Several reviewers' decisions: agreed where all who decided mean the same mask, in conflict elsewhere."""
    agreed, conflicts = {}, {}
    for image in candidates.images:
        found = [picks[image] for picks in by_reviewer.values() if image in picks]
        if not found:
            continue
        if len(found) == 1 or len({_meaning(candidates, pick) for pick in found}) == 1:
            agreed[image] = found[0]
        else:
            conflicts[image] = found
    return Picks(candidates.fingerprint, agreed, conflicts, {name: dict(picks) for name, picks in by_reviewer.items()})


def _meaning(candidates: CandidateSet, pick: Pick) -> str:
    """Equal for decisions that come to the same: candidates may repeat each other, a composite may be one of them."""
    if pick.pick in NO_PICK:
        return pick.pick
    return hashlib.blake2b(np.packbits(_chosen(candidates, pick)[0])).hexdigest()


def _chosen(candidates: CandidateSet, pick: Pick) -> tuple[np.ndarray, str, str | None]:
    """The mask (bool [H, W]), its path and its source."""
    if isinstance(pick.pick, Composite):
        return read_mask(resolve(candidates.root, pick.pick.mask)), pick.pick.mask, SOURCE
    candidate = candidates.images[pick.image].candidates[pick.pick]
    return read_mask(resolve(candidates.root, candidate.mask)), candidate.mask, candidate.source


def picks_to_records(root: str | os.PathLike, picks: Picks) -> list[PairRecord]:
    """The preference pairs: what was picked against every other candidate; a composite against all of them.

    ``chosen_iou`` is 1 and ``rejected_iou`` the IoU with the chosen mask: true if the pick is taken for the truth
    (``iou_estimated``). The judge is ``'expert'`` with the scores 1 and 0. Masks identical to the chosen one or to one
    that is rejected already give no pair; ``'none'``, ``'equal'`` and conflicts give none either.

    Raises:
        InputError: the picks are of other candidates, or a mask cannot be read or has another size.
    """
    candidates = read_candidates(root)
    if picks.fingerprint != candidates.fingerprint:
        raise InputError(f'{candidates.file}: has changed since it was picked from: pick again')
    records = []
    for image, pick in picks.agreed.items():
        if pick.pick in NO_PICK:
            continue
        entry = candidates.images[image]
        masks = candidates.masks(image)
        chosen, path, source = _chosen(candidates, pick)
        if chosen.shape != masks.shape[1:]:
            raise InputError(f'{path}: is {chosen.shape[1]} x {chosen.shape[0]} pixels, the candidates of {image} are '
                             f'{masks.shape[2]} x {masks.shape[1]}: decide again')
        for index in distinct(masks):
            overlap = mask_iou(chosen, masks[index])
            if overlap == 1:
                continue
            overlap = round(overlap, 6)
            rejected = entry.candidates[index]
            extra = dict(judge=JUDGE, chosen_score=1.0, rejected_score=0.0, iou_estimated=True,
                         reviewers=sorted(name for name, own in picks.by_reviewer.items() if image in own))
            records.append(PairRecord(image, path, rejected.mask, 1.0, overlap, round(1 - overlap, 6), entry.prompt,
                                      source, rejected.source, entry.gt_mask, extra))
    return records


def pick_statistics(picks: Picks) -> dict[str, Any]:
    """Counts and time.

    Returns:
        ``decided`` (images), ``agreed``, ``conflicts``; of all decisions ``decisions``, ``candidate``, ``composite``,
        ``none``, ``equal``, ``clicks``; ``seconds`` (all together), ``seconds_median`` (of a decision; None without any
        that was timed); ``reviewers``: the same of each.
    """
    def counts(found: list[Pick]) -> dict[str, Any]:
        kinds = Counter('composite' if isinstance(p.pick, Composite) else p.pick if p.pick in NO_PICK else 'candidate'
                        for p in found)
        times = [pick.seconds for pick in found if pick.seconds is not None]
        return dict(decisions=len(found), **{kind: kinds[kind] for kind in ('candidate', 'composite', *NO_PICK)},
                    clicks=sum(pick.clicks for pick in found), seconds=round(sum(times), 1),
                    seconds_median=round(median(times), 1) if times else None)

    everything = [pick for own in picks.by_reviewer.values() for pick in own.values()]
    return dict(
        decided=len(picks.agreed) + len(picks.conflicts),
        agreed=len(picks.agreed),
        conflicts=len(picks.conflicts),
        **counts(everything),
        reviewers={name: counts(list(own.values())) for name, own in picks.by_reviewer.items()},
    )
