"""What a page may ask and do, whatever carries it: one session on pairs, one on candidates."""
from __future__ import annotations

import hashlib
import math
import random
import threading
from collections import OrderedDict
from typing import Any, Callable, Mapping

import numpy as np

from sa2va_dpo.datasets.annotations import resolve
from sa2va_dpo.datasets.mask_io import read_image_rgb

from . import picture
from .candidates import CandidateSet, compose, distinct, regions
from .journal import DECISIONS, LONGEST_NOTE, Journal
from .pairs import ReviewSet
from .pick_journal import PickJournal
from .picks import NO_PICK, Composite

PNG, JPEG, BITS = 'image/png', 'image/jpeg', 'application/octet-stream'
_KEPT = 3          # full-resolution images in memory: this one, the one before and the one ahead
_LONGEST_S = 86400.0
_MOST_CLICKS = 100_000


class BadRequest(ValueError):
    """What the page sent makes no sense; the page as it is would not send it."""


class Budget(Exception):
    """The number of decisions that were asked for has been made."""


class _Kept:
    """The last few results of a slow function of a key; thread-safe."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make, self._lock, self._found = make, threading.Lock(), OrderedDict()

    def __call__(self, key: str) -> Any:
        with self._lock:
            if key not in self._found:
                self._found[key] = self._make(key)
            self._found.move_to_end(key)
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
            return self._found[key]


class PairSession:
    """Pairs of one reviewer. Items are called by pair id."""

    mode = 'pairs'
    closes = False

    def __init__(self, review: ReviewSet, journal: Journal) -> None:
        self.review, self.journal = review, journal
        self._lock = threading.Lock()
        self._parts = _Kept(lambda pair: picture.load(review.root, review.records[pair]))

    @property
    def done(self) -> bool:
        return all(pair in self.journal.decisions for pair in self.review.records)

    def overview(self) -> dict[str, Any]:
        decisions, notes = self.journal.decisions, self.journal.notes
        return dict(mode=self.mode, reviewer=self.journal.reviewer, closes=self.closes, clicks=None, items=[
            dict(key=pair, image=record.image, decision=decisions.get(pair), note=notes.get(pair, ''))
            for pair, record in self.review.records.items()])

    def item(self, key: str) -> dict[str, Any]:
        """Raises KeyError for an unknown pair, InputError where a file is bad."""
        record, parts = self.review.records[key], self._parts(key)
        chosen, rejected = parts['chosen'], parts['rejected']
        sides = {side: dict(iou=getattr(record, f'{side}_iou'), source=getattr(record, f'{side}_source'),
                            score=record.extra.get(f'{side}_score')) for side in ('chosen', 'rejected')}
        return dict(key=key, image=record.image, width=chosen.shape[1], height=chosen.shape[0], gt='gt' in parts,
                    judge=record.extra.get('judge'), **sides, shares=[
                        float(region.mean()) for region in (chosen & ~rejected, rejected & ~chosen, chosen & rejected)])

    def picture(self, key: str, part: str) -> tuple[bytes, str]:
        """(content, type); masks are gzip. Raises KeyError for what there is not, InputError where a file is bad."""
        if key not in self.review.records or part not in ('image', 'chosen', 'rejected', 'gt', 'thumbnail'):
            raise KeyError(part)
        if part == 'thumbnail':
            # Not kept: the overview asks for hundreds.
            parts = picture.load(self.review.root, self.review.records[key])
            return picture.thumbnail(picture.difference(parts['image'], parts['chosen'], parts['rejected'])), JPEG
        content = self._parts(key)[part]
        return (picture.encode_image(content), PNG) if part == 'image' else (picture.encode_mask(content), BITS)

    def decide(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises BadRequest, or InputError where the disk would not take it."""
        key, decision = body.get('key'), body.get('decision')
        if not isinstance(key, str) or key not in self.review.records or decision not in DECISIONS:
            raise BadRequest(f'no such pair or decision: {key!r}, {decision!r}')
        with self._lock:
            self.journal.decide(key, decision, _seconds(body))
        return dict(decision=decision, done=self.done)

    def note(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises as :meth:`decide`."""
        key, text = body.get('key'), body.get('note')
        if not isinstance(key, str) or key not in self.review.records or not isinstance(text, str) \
                or len(text) > LONGEST_NOTE:
            raise BadRequest(f'a note needs a pair and at most {LONGEST_NOTE} characters')
        with self._lock:
            self.journal.note(key, text.strip())
        return dict(note=self.journal.notes.get(key, ''))


class PickSession:
    """Candidates, for one reviewer. Items are called by a hash of the image's name, candidates by their place on the
    screen: neither says which model or setting made them.

    Args:
        clicks: number of images to be decided, those decided before included; None: all.
        closes: the page is to say that the server ends once everything is decided.

    Attributes:
        order: see ``CandidateSet.pickable``.
    """

    mode = 'picks'

    def __init__(
        self, candidates: CandidateSet, journal: PickJournal, clicks: int | None = None, closes: bool = False
    ) -> None:
        self.candidates, self.journal, self.clicks, self.closes = candidates, journal, clicks, closes
        self._lock = threading.Lock()
        self.order = candidates.pickable
        self.keys = {_hash(candidates.fingerprint, image): image for image in self.order}
        self._parts = _Kept(self._load)

    @property
    def decided(self) -> int:
        return sum(image in self.journal.picks for image in self.order)

    @property
    def done(self) -> bool:
        return self.decided >= self.candidates.wanted(self.clicks)

    def places(self, image: str, masks: np.ndarray) -> list[int]:
        """Candidate (index in candidates.json) at every place of the screen: repetitions left out, shuffled for this
        image and reviewer, always in the same way."""
        found = distinct(masks)
        random.Random(_hash(self.candidates.fingerprint, self.journal.reviewer, image)).shuffle(found)
        return found

    def overview(self) -> dict[str, Any]:
        return dict(mode=self.mode, reviewer=self.journal.reviewer, closes=self.closes, clicks=self.clicks, items=[
            dict(key=key, image=image, decision=self._said(image), note='') for key, image in self.keys.items()])

    def item(self, key: str) -> dict[str, Any]:
        """Raises KeyError for an unknown image, InputError where a file is bad."""
        image = self.keys[key]
        parts = self._parts(image)
        found = dict(key=key, image=image, width=parts['image'].shape[1], height=parts['image'].shape[0],
                     candidates=len(parts['places']), codes=parts['codes'], place=None, composite=False)
        pick = self.journal.picks.get(image)
        if pick is not None and isinstance(pick.pick, int):
            found['place'] = self._place(parts, pick.pick)
        found['composite'] = pick is not None and isinstance(pick.pick, Composite)
        return found

    def picture(self, key: str, part: str) -> tuple[bytes, str]:
        """``image``, ``thumbnail``, ``regions``, or the place of a candidate; as ``PairSession.picture``."""
        image = self.keys[key]
        if part == 'thumbnail':
            return picture.thumbnail(read_image_rgb(resolve(self.candidates.root, image))), JPEG
        parts = self._parts(image)
        if part == 'image':
            return picture.encode_image(parts['image']), PNG
        if part == 'regions':
            return picture.encode_labels(parts['labels']), BITS
        if part not in map(str, range(len(parts['places']))):
            raise KeyError(part)
        return picture.encode_mask(parts['masks'][parts['places'][int(part)]]), BITS

    def decide(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Record ``pick``: a place, 'none', 'equal', or ``{"regions": [...], "base": place or null}``.

        Raises:
            BadRequest, Budget: as their names say.
            InputError: the disk would not take it.
        """
        key, pick, clicks = body.get('key'), body.get('pick'), body.get('clicks', 1)
        if not isinstance(key, str) or key not in self.keys:
            raise BadRequest(f'no such image: {key!r}')
        if not _is_whole(clicks, 1, _MOST_CLICKS + 1):
            raise BadRequest(f'clicks is {clicks!r}')
        image, seconds = self.keys[key], _seconds(body)
        parts = self._parts(image)
        with self._lock:
            if self.done and image not in self.journal.picks:
                raise Budget()
            if pick in NO_PICK:
                self.journal.pick(image, pick, seconds, clicks)
            elif _is_whole(pick, 0, len(parts['places'])):
                self.journal.pick(image, parts['places'][pick], seconds, clicks)
            elif isinstance(pick, Mapping):
                self._compose(image, parts, pick, seconds, clicks)
            else:
                raise BadRequest(f'pick is {pick!r}')
        return dict(decision=self._said(image), done=self.done)

    def _compose(self, image: str, parts: dict, pick: Mapping[str, Any], seconds: float, clicks: int) -> None:
        chosen, base = pick.get('regions'), pick.get('base')
        count = len(parts['codes'])
        if not isinstance(chosen, list) or not all(_is_whole(region, 1, count + 1) for region in chosen) or not (
                base is None or _is_whole(base, 0, len(parts['places']))):
            raise BadRequest('regions and base make no sense')
        masks, right = parts['masks'], set(chosen)
        start = None if base is None else parts['places'][base]
        mask = compose(masks, parts['labels'], right, start)
        same = next((index for index in parts['places'] if np.array_equal(masks[index], mask)), None)
        if same is not None:
            self.journal.pick(image, same, seconds, clicks)
        else:
            self.journal.compose(image, mask, self._sources(parts, right, base), seconds, clicks)

    @staticmethod
    def _sources(parts: dict, right: set[int], base: int | None) -> list[int]:
        """Candidates that the regions come from: where the reviewer began, then whichever holds most of the others."""
        codes, found = parts['codes'], [] if base is None else [base]
        left = {region for region in right if base is None or not codes[region - 1] >> base & 1}
        while left:
            best = max(range(len(parts['places'])), key=lambda place: sum(codes[r - 1] >> place & 1 for r in left))
            found.append(best)
            left = {region for region in left if not codes[region - 1] >> best & 1}
        return [parts['places'][place] for place in found]

    def _load(self, image: str) -> dict[str, Any]:
        entry = self.candidates.images[image]
        masks = self.candidates.masks(image)
        pixels = read_image_rgb(resolve(self.candidates.root, image))
        picture.check_size(entry.candidates[0].mask, masks[0], image, pixels)
        places = self.places(image, masks)
        labels, count = regions(masks[places])
        # The place that every region's first pixel is at tells who holds the region.
        first = np.zeros(count + 1, np.int64)
        numbers, where = np.unique(labels, return_index=True)
        first[numbers] = where
        holders = masks[places].reshape(len(places), -1)[:, first[1:]]
        codes = [int(sum(1 << place for place in np.flatnonzero(column))) for column in holders.T]
        return dict(image=pixels, masks=masks, places=places, labels=labels, codes=codes)

    def _place(self, parts: dict, index: int) -> int:
        """Where a candidate is shown; a repetition where the one it repeats is."""
        masks = parts['masks']
        return next(place for place, shown in enumerate(parts['places']) if np.array_equal(masks[shown], masks[index]))

    def _said(self, image: str) -> str | None:
        pick = self.journal.picks.get(image)
        if pick is None:
            return None
        return pick.pick if pick.pick in NO_PICK else 'composite' if isinstance(pick.pick, Composite) else 'picked'


def _hash(*parts: str) -> str:
    return hashlib.blake2b('\0'.join(parts).encode(), digest_size=8).hexdigest()


def _is_whole(value: Any, low: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end


def _seconds(body: Mapping[str, Any]) -> float:
    value = body.get('seconds', 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise BadRequest(f'seconds is {value!r}')
    return min(float(value), _LONGEST_S)
