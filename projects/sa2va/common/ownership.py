"""One writer a folder, and a folder that knows whose it is.

*Lock*: ``.owner.lock``, an flock of the writing process that the system drops when that process ends, however it ends.
*Record*: ``owner.json``, what the folder holds: the kind of run, its identity (settings and content hashes) and the
patterns of the files that this kind writes. Whatever does not match is refused with the first differences named;
``overwrite`` removes exactly the files of those patterns.

A process that was started by the folder's owner (the main job starts the training) is its guest: it finds the owner's
token in its environment (:meth:`Claim.lend`) and keeps a record of its own inside the owner's.
"""
from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import secrets
import shlex
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterable, Mapping, Sequence

from .differences import differences
from .errors import InputError
from .files import make_directory, read_json, remove, remove_leftovers, write_json, writing
from .processes import rank, world_size

RECORD, LOCK = 'owner.json', '.owner.lock'
_TOKEN = 'SA2VA_DPO_OWNER'  # the tokens of lent folders, separated by commas
_NAMED = 3  # differences named in a message
_PATIENCE_S = 600.0  # how long the other processes of a launch wait for the first one's record

# Locks of this process by real path of the folder. A forked child closes its copies: they would keep a lock alive.
_held: dict[str, 'Claim'] = {}


def _forget_locks() -> None:
    for claim in _held.values():
        if claim._file is not None:
            claim._file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


@dataclass
class Claim:
    """A folder that is this process's to write until :meth:`release`, the end of the ``with`` block or of the process.

    Attributes:
        folder: exists.
        kind: of run.
        found: the record of the same run was there: this is a repetition, to be resumed or shown as finished.
        cleared: what ``overwrite`` removed, one line for the log; empty where nothing was.
    """

    folder: Path
    kind: str
    found: bool = False
    cleared: str = ''
    token: str = ''
    _file: Any = field(default=None, repr=False)

    def lend(self) -> dict[str, str]:
        """The environment of a child process that may write in this folder while this claim is held."""
        tokens = [*_tokens(), self.token]
        return {**os.environ, _TOKEN: ','.join(dict.fromkeys(filter(None, tokens)))}

    def release(self) -> None:
        """Let others write here. The record stays."""
        if self._file is not None:
            # Whoever waits with this file open finds another one, or none, at its place and begins anew.
            if not self._file.closed:
                path = self.folder / LOCK
                with suppress(OSError):  # a lock file that stays is taken over; what matters is the flock
                    if os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                        path.unlink()
                fcntl.flock(self._file, fcntl.LOCK_UN)  # also for copies in a child that was just forked
            self._file.close()
            self._file = None
            _held.pop(os.path.realpath(self.folder), None)

    def __enter__(self) -> 'Claim':
        return self

    def __exit__(self, *_) -> None:
        self.release()


def claim(
    folder: str | os.PathLike,
    kind: str,
    identity: Mapping[str, Any],
    ours: Sequence[str],
    overwrite: bool = False,
    free: Iterable[str] = (),
    flag: str = '',
) -> Claim:
    """Make a folder this process's own, for one kind of run with one identity.

    Under torchrun the process of rank 0 claims, the others wait for its record and compare theirs with it.

    Args:
        folder: made if need be.
        kind: a word, such as ``'training'``; it stands in messages.
        identity: JSON values, nested mappings welcome: every setting that decides what is written, and content hashes
            of what is read. It need not hold what may differ when a run goes on.
        ours: patterns (``Path.glob``, relative) of what this kind writes. Only these are ever removed.
        overwrite: where another run's files are here, or this one's: remove them first.
        free: dotted names of ``identity`` that are recorded but not compared.
        flag: the option that names the folder, for messages (``'--work-dir'``).

    Returns:
        The claim, a context manager.

    Raises:
        InputError: another process is writing here; another run's files are here and ``overwrite`` is off; files are
            here that no record explains; the folder cannot be made or locked.
    """
    folder, identity = Path(folder), json.loads(json.dumps(identity, default=str))
    name = f'{flag} {folder}'.strip()
    _check_patterns(ours)
    if rank() > 0:
        return _follow(folder, kind, identity, set(free), name)
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f'{name}: is a file: choose another folder')
    guest = _is_guest(folder)
    held = Claim(folder, kind) if guest else lock(folder, kind, flag)
    try:
        record = _read(folder)
        mine = (record or {}).get('guests', {}).get(kind) if guest else record
        problem = _problem(folder, kind, identity, set(free), mine, () if guest else ours)
        if overwrite and not guest and (problem is None or mine is not None):
            held.cleared = clear(folder)
            mine = None
        elif problem is not None:
            remedy = 'choose another folder' + (
                '' if mine is None or guest else ', or add --overwrite to remove what is there'
            )
            raise InputError(f'{name}: {problem}: {remedy}')
        held.found = mine is not None
        if mine is None or _launch() != mine.get('launch'):
            entry = dict(kind=kind, since=mine['since'] if mine else _now(), launch=_launch(),
                         identity=mine['identity'] if mine else identity, ours=list(ours))
            if guest:
                record = dict(record or {})
                record['guests'] = {**record.get('guests', {}), kind: entry}
                write_json(folder / RECORD, record)
            else:
                write_json(folder / RECORD, {**entry, 'guests': (mine or {}).get('guests', {})})
        return held
    except BaseException:
        held.release()
        raise


def lock(folder: str | os.PathLike, what: str, flag: str = '') -> Claim:
    """Only the lock, for a short work on a folder whose record is another's (a merge into a data root).

    Args:
        what: a word for what is being done; a second writer reads it.

    Raises:
        InputError: another process is writing here, or the folder cannot be made or locked.
    """
    folder = Path(folder)
    name = f'{flag} {folder}'.strip()
    make_directory(folder)
    place = os.path.realpath(folder)
    if place in _held:
        raise InputError(f'{name}: this process is writing there already ({_held[place].kind}): one at a time')
    if _is_guest(folder):
        return Claim(folder, what)
    path = folder / LOCK
    while True:
        with writing(path):
            file = open(path, 'a+', encoding='utf-8')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = _said(file)
                file.close()
                raise InputError(f'{name}: {_holder(holder)}: wait for it, or choose another folder') from None
            file.close()
            raise InputError(f'{name}: cannot be locked ({error.strerror}): choose a folder on another disk') from None
        # Somebody may have removed the folder between opening and locking: then this lock guards nothing.
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except FileNotFoundError:
            make_directory(folder)
        file.close()
    claimed = Claim(folder, what, token=secrets.token_hex(8), _file=file)
    with writing(path):
        file.truncate(0)
        file.write(json.dumps(dict(kind=what, pid=os.getpid(), host=socket.gethostname(), command=_command(),
                                   since=_now(), token=claimed.token)))
        file.flush()
    remove_leftovers(folder)
    _held[place] = claimed
    return claimed


def releases(function: Callable) -> Callable:
    """Decorates an entry point: what it claims is released when it returns or raises."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        before = set(_held)
        try:
            return function(*args, **kwargs)
        finally:
            for place in set(_held) - before:
                _held[place].release()

    return wrapper


def read_record(folder: str | os.PathLike) -> dict | None:
    """The record of a folder (``kind``, ``identity``, ``since``, ``guests``), or None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    return _read(Path(folder))


def clear(folder: str | os.PathLike) -> str:
    """Remove what the folder's record says that its owner and guests wrote, and the record; says in one line what went.

    Links are removed, never followed; nothing outside the folder and no other file in it is touched.
    """
    folder = Path(folder)
    record = _read(folder)
    if record is None:
        return ''
    patterns = [
        *record.get('ours', ()),
        *(p for guest in record.get('guests', {}).values() for p in guest.get('ours', ())),
    ]
    _check_patterns(patterns)
    found = _matches(folder, patterns)
    # The record last: a kill on the way leaves files that are still known as ours.
    for path in (*found, folder / RECORD):
        remove(path)
    names = [path.name + '/' * (not path.suffix) for path in found]
    return (f'{folder}: removed what a run of kind {record.get("kind")}, begun {record.get("since")}, left there: '
            + (', '.join(names[:8]) or 'nothing') + (f' and {len(names) - 8} more' if len(names) > 8 else ''))


def _problem(
    folder: Path, kind: str, identity: Mapping, free: set[str], record: dict | None, ours: Sequence[str]
) -> str | None:
    """Why the folder is not this run's, or None."""
    if record is None:
        found = _matches(folder, ours)
        if found:
            some = ', '.join(path.name for path in found[:3]) + ' ...' * (len(found) > 3)
            return f'holds {some}, which no record ({RECORD}) explains'
        return None
    if record.get('kind') != kind:
        return f'belongs to a run of kind {record.get("kind")}, begun {record.get("since")}'
    changed = differences(record.get('identity', {}), identity, free)
    if not changed:
        return None
    more = f' and {len(changed) - _NAMED} more' if len(changed) > _NAMED else ''
    return 'holds another run: ' + '; '.join(changed[:_NAMED]) + more


def _follow(folder: Path, kind: str, identity: Mapping, free: set[str], name: str) -> Claim:
    """What the other processes of a launch do. When the first one refuses, the launcher ends them."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        record = _read(folder) if folder.is_dir() else None
        for entry in (record or {}, *(record or {}).get('guests', {}).values()):
            if entry.get('kind') == kind and entry.get('launch') == _launch():
                changed = differences(entry['identity'], identity, free)
                if changed:
                    raise InputError(
                        f'{name}: rank {rank()} sees something else than the first process: {changed[0]}: give '
                        'all machines the same files'
                    )
                return Claim(folder, kind, found=True)
        if time.monotonic() > end:
            raise InputError(
                f'{name}: the first process has not claimed it after {_PATIENCE_S:.0f} s: is the folder on a disk '
                'that all machines share?'
            )
        time.sleep(0.1)


def _read(folder: Path) -> dict | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    return read_json(path, 'remove the folder, or choose another', kind=dict)


def _launch() -> str | None:
    """What the processes of one torchrun have in common; None for a process of its own."""
    if world_size() == 1:
        return None
    return '/'.join(os.environ.get(name, '') for name in ('TORCHELASTIC_RUN_ID', 'MASTER_ADDR', 'MASTER_PORT'))


def _tokens() -> list[str]:
    return [token for token in os.environ.get(_TOKEN, '').split(',') if token]


def _is_guest(folder: Path) -> bool:
    tokens = _tokens()
    if not tokens or not (folder / LOCK).is_file():
        return False
    try:
        holder = json.loads((folder / LOCK).read_text(encoding='utf-8'))
    except ValueError:
        return False
    return isinstance(holder, dict) and holder.get('token') in tokens


def _said(file: Any) -> str:
    """What the holder of a lock wrote about itself; it has the lock a moment before it has written that."""
    for _ in range(20):
        file.seek(0)
        text = file.read()
        if text.endswith('}'):
            break
        time.sleep(0.05)
    return text


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return (
            f'is being written by process {holder["pid"]} on {holder["host"]} ({holder["kind"]}: {holder["command"]}) '
            f'since {holder["since"]}'
        )
    except (ValueError, KeyError, TypeError):
        return 'is being written by another process'


def _command() -> str:
    text = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return text if len(text) <= 160 else text[:157] + '...'


def _now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec='seconds')


def _check_patterns(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        pure = PurePosixPath(pattern)
        if (
            not isinstance(pattern, str)
            or pure.is_absolute()
            or '..' in pure.parts
            or not pure.parts
            or pattern in ('*', '**')
        ):
            raise ValueError(f'{pattern!r} is no pattern of files inside a folder')


def _matches(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    root = folder.resolve()
    # A link in the middle of a pattern could lead elsewhere; one at its end is removed as a link.
    inside = {path for path in found if path.parent.resolve().is_relative_to(root) and path.name not in (RECORD, LOCK)}
    return sorted(path for path in inside if not any(parent in inside for parent in path.parents))
