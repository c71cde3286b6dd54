"""Files: written whole or not at all, hashed, and JSON read within limits.

Everything is written beside its place under a short name of its own, flushed to the disk and renamed, so that a reader,
a kill or a power cut sees the old file or the new one and never a part. What goes wrong on the way (no room, no
permission, a name too long) is told in one line by :func:`writing`.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from .disk import behind, why
from .errors import InputError
from .json_text import named, parse_json
from .limits import limit, variable_of

_SUFFIX = '.part'
# A file younger than this may change again without its time changing: its hash is not remembered.
_SETTLED_NS = 2_000_000_000


# -- problems ---------------------------------------------------------------------------------------------------------

def write_problem(path: str | os.PathLike, error: OSError) -> InputError:
    """What to tell the user when ``path`` could not be written: one line with the remedy."""
    return InputError(why(path, error))


@contextmanager
def writing(path: str | os.PathLike, beside: Path | None = None) -> Iterator[None]:
    """Inside the block nothing but ``path`` is written: an ``OSError`` there, also one that a library only quotes,
    becomes an InputError that names it.

    Args:
        beside: what is really written; an error about any other file is one of reading that file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = behind(error)
        if cause is None:
            raise
        named = cause.filename
        if beside is not None and isinstance(named, (str, Path)) and not Path(named).is_relative_to(beside) and (
                Path(named) not in (Path(path), Path(path).parent)):
            raise read_problem(named, cause) from error
        raise write_problem(path, cause) from error


def make_directory(path: str | os.PathLike) -> Path:
    """The directory, made with its parents if need be; raises InputError where that is impossible."""
    path = Path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


# -- writing ----------------------------------------------------------------------------------------------------------

@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside ``path`` to be written in the block; at its end it is flushed and becomes ``path``.

    The folder is made if need be. On any exception ``path`` stays as it was and nothing is left beside it.

    Raises:
        InputError: the disk would not have it.
    """
    path = Path(path)
    make_directory(path.parent)
    # A short name of its own: with the target's name in it, a long target could exceed the limit of a file name.
    temporary = path.with_name(f'.{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}')
    try:
        with writing(path, temporary):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            flush_directory(path.parent)
    finally:
        # What went wrong before is what the user has to know; a leftover is removed by the next writer.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes | bytearray | memoryview) -> None:
    """Replace ``path`` by ``content`` in one step; raises InputError where the disk would not have it."""
    with replacing(path) as temporary, open(temporary, 'xb') as file:
        file.write(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, content.encode('utf-8'))


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 1) -> None:
    """As :func:`write_bytes`: UTF-8 JSON with a last newline. NaN and infinity raise ValueError."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + '\n')


@contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A sibling to be filled in the block; at its end it is flushed and becomes ``path``, which must be new or empty.

    Raises:
        InputError: ``path`` is in use, or the disk would not have it.
    """
    path = Path(path)
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise InputError(f'{path}: exists and is not empty; give a new directory')
    make_directory(path.parent)
    part = path.with_name(f'.{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}')
    try:
        with writing(path, part):
            part.mkdir()
            yield part
            _flush_tree(part)
            # rename(2) replaces an empty directory in one step.
            os.replace(part, path)
            flush_directory(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(written: str | os.PathLike, path: str | os.PathLike) -> None:
    """Flush what lies at ``written`` (a file or a folder beside ``path``) and let it become ``path``.

    A folder that is there already is moved out of the way first: between the two steps ``path`` does not exist.

    Raises:
        InputError: the disk would not have it.
    """
    written, path = Path(written), Path(path)
    with writing(path):
        if written.is_dir():
            _flush_tree(written)
        else:
            _flush(written)
        old = path.with_name(f'.{path.name}.old')
        if path.is_dir() and not path.is_symlink():
            remove(old)
            os.replace(path, old)
        os.replace(written, path)
        flush_directory(path.parent)
        remove(old)


def remove(path: str | os.PathLike) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing if there is none. Links are not followed."""
    path = Path(path)
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A copy that appears whole; raises InputError for either end."""
    with replacing(target) as temporary:
        try:
            reader = open(source, 'rb')
        except OSError as error:
            raise read_problem(source, error) from None
        with reader, open(temporary, 'xb') as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """A hard link in place of whatever ``target`` was, or a copy where the disk has none; raises InputError as
    :func:`copy_file`."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def remove_leftovers(directory: str | os.PathLike) -> None:
    """Remove what killed writers of this module left in a folder. Only its one writer may call this."""
    for left in Path(directory).glob(f'.*{_SUFFIX}'):
        if re.fullmatch(rf'\.\d+-[0-9a-f]{{12}}{re.escape(_SUFFIX)}', left.name):
            remove(left)


def _flush(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            _flush(Path(folder) / name)
        flush_directory(Path(folder))


def flush_directory(path: Path) -> None:
    """The renaming itself. Some network file systems cannot flush a folder: there it is durable a little later."""
    try:
        _flush(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES):
            raise


# -- reading ----------------------------------------------------------------------------------------------------------

def read_problem(path: str | os.PathLike, error: OSError) -> InputError:
    """What to tell the user when ``path`` could not be read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f'{path}: no such file: check the path')
    if isinstance(error, IsADirectoryError):
        return InputError(f'{path}: is a folder, not a file: check the path')
    return InputError(f'{path}: cannot be read ({error.strerror or error}): check the path and its permissions')


def read_json(path: str | os.PathLike, remedy: str = 'correct the file or make it again', missing: str | None = None,
              kind: type | None = None) -> Any:
    """A JSON file, strictly: no name twice in an object, no NaN or infinity, no lone surrogate, sizes within
    ``common/limits.py``.

    Args:
        remedy: what the user may do about a bad file.
        missing: likewise about a missing one.
        kind: dict or list, where the file must hold one.

    Raises:
        InputError: missing, unreadable, or not such a file; names the file and the remedy.
    """
    path = Path(path)
    try:
        size, most = path.stat().st_size, limit('json_bytes')
        if size > most:
            raise InputError(f'{path}: {size} bytes are more than the limit of {most} for JSON: {remedy}, or raise '
                             f'{variable_of("json_bytes")}')
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f'{path}: no such file: {missing or "check the path"}') from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise read_problem(path, error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))) from None
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputError(f'{path}: {error}: {remedy}') from None
    if kind is not None and not isinstance(value, kind):
        wanted = dict(dict='an object with named fields', list='a list').get(kind.__name__, kind.__name__)
        raise InputError(f'{path}: holds {named(value)}, must be {wanted}: {remedy}')
    return value


# -- hashes -----------------------------------------------------------------------------------------------------------

_hashes: dict[str, tuple[tuple, str]] = {}


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a whole file, hex; read again only when its size, times or inode change.

    A path inside a file (a frame of a sequence, see ``datasets/containers.py``) stands for the file and the name in it.

    Raises:
        InputError: it cannot be read.
    """
    name = os.path.realpath(path)
    try:
        with open(path, 'rb', buffering=0) as file:
            status = os.fstat(file.fileno())
            mark = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
            known = _hashes.get(name)
            if known is not None and known[0] == mark:
                return known[1]
            total, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
            while count := file.readinto(buffer):
                total.update(buffer[:count])
    except NotADirectoryError:
        return hash_text(f'{hash_file(os.path.dirname(path))} {os.path.basename(path)}')
    except (OSError, ValueError) as error:
        raise read_problem(path, error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))) from None
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
        _hashes[name] = mark, total.hexdigest()
    return total.hexdigest()


def hash_files(paths: Iterable[str | os.PathLike | None]) -> str:
    """Of the contents of files in this order; ``None`` stands for a file that there is not.

    Raises:
        InputError: one cannot be read.
    """
    return hash_text('|'.join('-' if path is None else hash_file(path) for path in paths))


def hash_directory(path: str | os.PathLike, keep: Callable[[Path], bool] = lambda path: True) -> str:
    """Of the names and contents of a folder's files, those of its sub-folders too.

    Args:
        keep: given the path relative to the folder, whether the file counts.

    Raises:
        InputError: no such folder, or a file that cannot be read.
    """
    return hash_json(directory_hashes(path, keep))


def directory_hashes(path: str | os.PathLike, keep: Callable[[Path], bool] = lambda path: True) -> dict[str, str]:
    """Relative path -> hash of each file of a folder; hidden files and folders are left out. See
    :func:`hash_directory`."""
    root = Path(path)
    if not root.is_dir():
        raise InputError(f'{root}: no such folder: check the path')
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(names):
            relative = (Path(folder) / name).relative_to(root)
            if not name.startswith('.') and keep(relative):
                found.append(relative)
    # Hashing lets other threads run: the shards of a released checkpoint are hashed beside each other.
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        hashes = pool.map(lambda relative: hash_file(root / relative), found)
        return {relative.as_posix(): value for relative, value in zip(found, hashes)}


def hash_text(text: str) -> str:
    """SHA-256 of a text, hex; file names that are not UTF-8 included."""
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its names."""
    return hash_text(json.dumps(value, sort_keys=True, default=str))
