"""The open journal of one reviewer who picks."""
from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Sequence

import cv2
import numpy as np

from sa2va_dpo.common.files import write_bytes

from .candidates import CandidateSet
from .journal import LineFile, now
from .picks import Pick, parse_pick
from .reviewers import reviewer_key, reviewer_name

FOLDER = 'picks'
_LONGEST_STEM = 80


class PickJournal(LineFile):
    """A context manager.

    Args:
        candidates: what is picked from.
        reviewer: name in any script.

    Attributes:
        picks: by image, the last one of each.

    Raises:
        InputError: as :class:`LineFile`, or a line that is no decision on one of the images.
    """

    def __init__(self, candidates: CandidateSet, reviewer: str) -> None:
        name = reviewer_name(reviewer)
        super().__init__(candidates.journal(name), candidates.fingerprint, name, candidates.file)
        self._candidates = candidates
        try:
            self.picks: dict[str, Pick] = {}
            for number, entry in self.entries:
                pick = parse_pick(candidates, f'{self.path}: line {number}', entry, name)
                self.picks[pick.image] = pick
        except BaseException:
            self.close()
            raise

    def pick(self, image: str, pick: int | str, seconds: float, clicks: int = 1) -> None:
        """Record the index of a candidate, ``'none'`` or ``'equal'``; it is on disk on return.

        Raises:
            InputError: no such image or candidate, or the disk would not take it.
        """
        self._record(image, pick, seconds, clicks)

    def compose(self, image: str, mask: np.ndarray, sources: Sequence[int], seconds: float, clicks: int) -> None:
        """Write a mask (bool [H, W]) that the reviewer put together, then record it; both are on disk on return.

        The file's name holds a hash of its pixels: a later decision never changes what an earlier line means.

        Raises:
            InputError: as :meth:`pick`.
        """
        relative = f'{FOLDER}/{self._stem(image)}.{reviewer_key(self.reviewer)}.{_hash(mask)}.png'
        write_bytes(self._candidates.root / relative, cv2.imencode('.png', mask.astype(np.uint8) * 255)[1].tobytes())
        self._record(image, dict([('mask', relative), ('from', list(sources))]), seconds, clicks)

    def _record(self, image: str, pick: int | str | dict, seconds: float, clicks: int) -> None:
        entry = dict(image=image, pick=pick, seconds=round(seconds, 2), clicks=clicks, time=now())
        checked = parse_pick(self._candidates, str(self.path), entry, self.reviewer)
        self.append(entry)
        self.picks[image] = checked

    def _stem(self, image: str) -> str:
        """Of the file name; with a hash where two images share it or it is long."""
        stem = PurePosixPath(image).stem
        shared = sum(PurePosixPath(other).stem == stem for other in self._candidates.images) > 1
        if not shared and len(stem.encode()) <= _LONGEST_STEM:
            return stem
        short = stem.encode()[:_LONGEST_STEM].decode(errors='ignore')
        return f'{short}-{hashlib.blake2b(image.encode(), digest_size=4).hexdigest()}'


def _hash(mask: np.ndarray) -> str:
    return hashlib.blake2b(np.packbits(mask), digest_size=4).hexdigest()
