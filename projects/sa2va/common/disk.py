"""What the system says when it will not write, and what a user may do about it."""
from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

# Errors of the disk rather than of a path that a program made up.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_OS_ERROR = re.compile(r'\(os error (\d+)\)')  # how Rust libraries (safetensors, tokenizers) report one


def why(path: str | os.PathLike, error: OSError) -> str:
    """One line: ``path`` could not be written, why, and the remedy."""
    code, reason = error.errno, error.strerror or str(error) or type(error).__name__
    if code in (errno.ENOSPC, errno.EDQUOT):
        remedy = f'make room{_free(path)}, then repeat the command: it goes on where it stopped'
    elif code == errno.EFBIG:
        remedy = 'raise the limit on file sizes (ulimit -f) or choose a file system that takes larger files'
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = 'make the folder writable or choose another'
    elif code in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        remedy = 'a file is where a folder should be or the other way round: choose another path'
    elif code in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
        remedy = 'choose a name that this file system takes'
    else:
        remedy = 'check the disk, then repeat the command'
    return f'{path}: cannot be written ({reason}): {remedy}'


def behind(error: BaseException) -> OSError | None:
    """The system's error that a library wrapped (torch chains it) or quoted (safetensors names its number)."""
    if (code := _OS_ERROR.search(str(error))) is not None:
        return OSError(int(code.group(1)), os.strerror(int(code.group(1))))
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


def of_the_disk(error: BaseException, folder: str | os.PathLike | None) -> str | None:
    """The line for an error that nobody expected where it came from and that is the disk's; None for any other one.

    Args:
        folder: what the command writes, for errors that name no file.
    """
    cause = behind(error)
    if cause is None or cause.errno not in _OF_THE_DISK:
        return None
    named = cause.filename if isinstance(cause.filename, (str, bytes)) else None
    return why(os.fsdecode(named) if named is not None else folder or os.getcwd(), cause)


def _free(path: str | os.PathLike) -> str:
    folder = Path(path)
    for place in (folder, *folder.parents):
        try:
            return f' ({shutil.disk_usage(place).free / 2 ** 20:.0f} MiB are free there)'
        except OSError:
            continue
    return ''
