"""One reviewer's decisions on disk: a line each, there for good before the page goes on."""
from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Mapping

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import flush_directory

from .pairs import ReviewSet
from .reviewers import reviewer_name

DECISIONS = ('accept', 'swap', 'drop', 'skip')
LONGEST_NOTE = 4000


class LineFile:
    """A file of JSON lines that one process at a time may lengthen; a context manager.

    Its first line says whose it is and about what. A last line without an end is what a kill left: it is forgotten.

    Args:
        path: made if need be, with its folder.
        fingerprint: of what is decided on.
        reviewer: name.
        subject: the file that is decided on, for messages.

    Attributes:
        entries: (line number, content) of every line after the first when it was opened.

    Raises:
        InputError: cannot be written; open in another process; of something or somebody else; a line that is no object.
    """

    def __init__(self, path: Path, fingerprint: str, reviewer: str, subject: Path) -> None:
        self.path, self.reviewer = path, reviewer
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = open(path, 'ab', buffering=0)
        except OSError as error:
            raise InputError(f'{path}: cannot be written ({error.strerror}): make {path.parent} writable') from None
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f'{path}: is open in another review: close that one or choose another --reviewer'
                ) from None
            lines = _whole_lines(path)
            self.entries = _entries(path, lines, fingerprint, reviewer, subject)
            # What a kill cut short must not be glued to the next line.
            self._size = sum(len(line) + 1 for line in lines)
            self._file.truncate(self._size)
            if not lines:
                self.append(dict(fingerprint=fingerprint, reviewer=reviewer))
                flush_directory(path.parent)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Mapping) -> None:
        """Write a line; it is on disk on return.

        Raises:
            InputError: the disk would not take it; the file is as it was before.
        """
        content = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b'\n'
        try:
            written = 0
            while written < len(content):
                written += self._file.write(content[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._size)
            raise InputError(
                f'{self.path}: the decision could not be written ({error.strerror}): make room or the folder '
                'writable, then decide again'
            ) from None
        self._size += len(content)

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_lines(path: Path, fingerprint: str, reviewer: str | None, subject: Path) -> list[tuple[int, dict]]:
    """(line number, content) of every whole line after the first; ``reviewer`` None takes anybody's.

    Raises:
        InputError: cannot be read; of something or somebody else; a line that is no object.
    """
    return _entries(path, _whole_lines(path), fingerprint, reviewer, subject)


def owner(path: Path) -> str:
    """The reviewer whose file it is; the empty text where a kill left no first line.

    Raises:
        InputError: no such first line.
    """
    lines = _whole_lines(path)
    if not lines:
        return ''
    name = _object(path, 1, lines[0]).get('reviewer')
    if not isinstance(name, str):
        raise InputError(f'{path}: line 1 names no reviewer: move the file away')
    return name


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def read_decisions(review: ReviewSet, reviewer: str) -> dict[str, str]:
    """Decision by pair id, the last one of each pair.

    Raises:
        InputError: no journal of this reviewer, one of other pairs, or a line that is no decision on one of the pairs.
    """
    return _read(review, reviewer)[0]


def read_notes(review: ReviewSet, reviewer: str) -> dict[str, str]:
    """Note by pair id, the last one of each pair; raises InputError as :func:`read_decisions`."""
    return _read(review, reviewer)[1]


class Journal(LineFile):
    """The open journal of one reviewer of pairs.

    Args:
        review: pairs.
        reviewer: name in any script.

    Attributes:
        decisions, notes: by pair id, the last one of each pair.

    Raises:
        InputError: as :class:`LineFile`, or a line that is no decision or note on one of the pairs.
    """

    def __init__(self, review: ReviewSet, reviewer: str) -> None:
        name = reviewer_name(reviewer)
        super().__init__(review.journal(name), review.fingerprint, name, review.annotations)
        try:
            self.decisions, self.notes = _pairs(self.path, self.entries, review)
        except InputError:
            self.close()
            raise

    def decide(self, pair: str, decision: str, seconds: float | None = None) -> None:
        """Record a decision, and how long the pair was looked at; ``decision`` is one of ``DECISIONS``, else
        ValueError."""
        if decision not in DECISIONS:
            raise ValueError(f'decision must be one of {DECISIONS}, not {decision!r}')
        seen = {} if seconds is None else dict(seconds=round(seconds, 2))
        self.append(dict(pair=pair, decision=decision, **seen, time=now()))
        self.decisions[pair] = decision

    def note(self, pair: str, text: str) -> None:
        """Record a remark; an empty one takes the last one back. Longer than 4,000 characters: ValueError."""
        if len(text) > LONGEST_NOTE:
            raise ValueError(f'a note has at most {LONGEST_NOTE} characters, not {len(text)}')
        text = text.encode('utf-8', 'replace').decode()
        self.append(dict(pair=pair, note=text, time=now()))
        if text:
            self.notes[pair] = text
        else:
            self.notes.pop(pair, None)


def _read(review: ReviewSet, reviewer: str) -> tuple[dict[str, str], dict[str, str]]:
    name = reviewer_name(reviewer)
    path = review.journal(name)
    if not path.is_file():
        raise InputError(f'{path}: {name} has no journal here: review pairs with --reviewer {name} first')
    return _pairs(path, read_lines(path, review.fingerprint, name, review.annotations), review)


def _pairs(path: Path, entries: list[tuple[int, dict]], review: ReviewSet) -> tuple[dict[str, str], dict[str, str]]:
    decisions: dict[str, str] = {}
    notes: dict[str, str] = {}
    for number, entry in entries:
        pair = entry.get('pair')
        if not isinstance(pair, str) or pair not in review.records:
            raise InputError(f'{path}: line {number}: pair {pair!r} is not in {review.annotations}: remove that line')
        if 'note' in entry:
            if not isinstance(entry['note'], str):
                raise InputError(f'{path}: line {number}: note is {entry["note"]!r}, must be text')
            notes[pair] = entry['note']
        elif entry.get('decision') in DECISIONS:
            decisions[pair] = entry['decision']
        else:
            raise InputError(f'{path}: line {number}: decision is {entry.get("decision")!r}, must be one of '
                             f'{", ".join(DECISIONS)}')
    return decisions, {pair: note for pair, note in notes.items() if note}


def _whole_lines(path: Path) -> list[bytes]:
    """Lines with their end; a last one without is what a kill left of it."""
    try:
        return path.read_bytes().split(b'\n')[:-1]
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}): check its permissions') from None


def _entries(path: Path, lines: list[bytes], fingerprint: str, reviewer: str | None,
             subject: Path) -> list[tuple[int, dict]]:
    found = [(number, _object(path, number, line)) for number, line in enumerate(lines, 1)]
    if found:
        head = found[0][1]
        if head.get('fingerprint') != fingerprint:
            raise InputError(f'{path}: is the journal of another data set than {subject}: move it away to start anew')
        if reviewer is not None and head.get('reviewer') != reviewer:
            raise InputError(f'{path}: is the journal of {head.get("reviewer")!r}, not of {reviewer!r}: '
                             'choose another --reviewer')
    return found[1:]


def _object(path: Path, number: int, line: bytes) -> dict:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise InputError(f'{path}: line {number} is no JSON object: remove that line')
    return entry
