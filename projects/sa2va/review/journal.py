"""One reviewer's decisions on disk: a line each, there for good before the page goes on."""
from __future__ import annotations

import fcntl
import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Mapping

from sa2va_dpo.common.errors import InputError
from .pairs import ReviewSet

DECISIONS = ('accept', 'swap', 'drop', 'skip')


def check_reviewer(name: str) -> str:
    """The name, if it can be part of a file name.

    Raises:
        InputError: anything but letters, digits, ``-`` and ``_``.
    """
    if not re.fullmatch(r'[A-Za-z0-9_-]{1,64}', name):
        raise InputError(f'--reviewer {name!r}: must be 1 to 64 letters, digits, - or _: it becomes part of a file name')
    return name


def read_decisions(review: ReviewSet, reviewer: str) -> dict[str, str]:
    """Decision by pair id, the last one of each pair.

    Raises:
        InputError: no journal of this reviewer, one of other pairs, or a line that is no decision on one of the pairs.
    """
    path = review.journal(check_reviewer(reviewer))
    if not path.is_file():
        raise InputError(f'{path}: {reviewer} has no journal here: review pairs with --reviewer {reviewer} first')
    return _decisions(path, _whole_lines(path), review)


class Journal:
    """The open journal of one reviewer; a context manager.

    Args:
        review: pairs.
        reviewer: see ``check_reviewer``.

    Attributes:
        decisions: by pair id, the last one of each pair.

    Raises:
        InputError: as ``read_decisions``; or the journal is open in another process.
    """

    def __init__(self, review: ReviewSet, reviewer: str) -> None:
        self.path, self.reviewer = review.journal(check_reviewer(reviewer)), reviewer
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._file = open(self.path, 'ab')
        except OSError as error:
            raise InputError(f'{self.path}: cannot be written ({error.strerror}): make {review.root} writable') from None
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f'{self.path}: is open in another review: close that one or choose another --reviewer') from None
            lines = _whole_lines(self.path)
            self.decisions = _decisions(self.path, lines, review)
        except InputError:
            self._file.close()
            raise
        # What a kill cut short must not be glued to the next line.
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._append(dict(fingerprint=review.fingerprint, reviewer=reviewer))

    def decide(self, pair: str, decision: str) -> None:
        """Record a decision; it is on disk on return. ``decision`` is one of ``DECISIONS``, else ValueError."""
        if decision not in DECISIONS:
            raise ValueError(f'decision must be one of {DECISIONS}, not {decision!r}')
        self._append(dict(pair=pair, decision=decision, time=datetime.now(timezone.utc).isoformat(timespec='seconds')))
        self.decisions[pair] = decision

    def _append(self, entry: dict) -> None:
        self._file.write(json.dumps(entry).encode() + b'\n')
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _whole_lines(path: Path) -> list[bytes]:
    """Lines with their end; a last one without is what a kill left of it."""
    return path.read_bytes().split(b'\n')[:-1]


def _decisions(path: Path, lines: list[bytes], review: ReviewSet) -> dict[str, str]:
    decisions: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, Mapping):
            raise InputError(f'{path}: line {number} is no JSON object: remove that line')
        if number == 1:
            if entry.get('fingerprint') != review.fingerprint:
                raise InputError(f'{path}: is the journal of another data set than {review.annotations}: '
                                 'move it away to start anew')
            continue
        pair, decision = entry.get('pair'), entry.get('decision')
        if not isinstance(pair, str) or pair not in review.records:
            raise InputError(f'{path}: line {number}: pair {pair!r} is not in {review.annotations}: remove that line')
        if decision not in DECISIONS:
            raise InputError(f'{path}: line {number}: decision is {decision!r}, must be one of {", ".join(DECISIONS)}')
        decisions[pair] = decision
    return decisions
