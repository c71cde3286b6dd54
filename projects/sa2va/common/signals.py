"""SIGINT and SIGTERM: the command and what it started end at a consistent point, and say how to go on.

Both raise in the main thread (``KeyboardInterrupt``, :class:`Terminated`), so that ``finally`` blocks run; files are
only ever renamed into place, so every point is a consistent one for a single file. Where several files belong together
(:func:`deferred`) the signal waits for the end of the block. A second signal after a while, or a minute without an end,
ends the process at once.
"""
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Iterator, Mapping, Sequence

_GRACE_S = 60.0
_IMPATIENCE_S = 2.0  # a signal this long after the first one is meant as another
_how = ''  # how to go on
_owner = 0  # process id that the handlers are for: forked workers inherit them
_received = 0
_since = 0.0
_depth = 0
_waiting = 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that nothing but the entry point catches."""


def install() -> None:
    """Handle SIGINT and SIGTERM in this process, also where a script that started it in the background had SIGINT
    ignored. Only the main thread can; elsewhere this does nothing."""
    global _owner, _received, _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        return
    _owner, _received, _depth, _waiting = os.getpid(), 0, 0, 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(number: int, frame) -> None:
    global _received, _since, _waiting
    if os.getpid() != _owner:
        # A forked worker: it does what a process without these handlers does.
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _received:
        # A terminal signals the whole group and a launcher its children, so that one Ctrl-C may come twice.
        if time.monotonic() - _since > _IMPATIENCE_S:
            os._exit(128 + number)
        return
    _received, _since = number, time.monotonic()
    timer = threading.Timer(_GRACE_S, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
    if _depth:
        _waiting = number
        return
    _raise(number)


def _raise(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """A signal that comes inside the block takes effect at its end: files that belong together are written together."""
    global _depth, _waiting
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if not _depth and _waiting:
        number, _waiting = _waiting, 0
        _raise(number)


def received() -> int:
    """The signal that this process is ending for, or 0."""
    return _received


def go_on(how: str) -> None:
    """What to tell the user after an interruption: how the command is continued."""
    global _how
    _how = how


def farewell() -> str:
    """The line for an interrupted command."""
    return 'interrupted' + (f': {_how}' if _how else '')


def exit_code(stop: BaseException) -> int:
    """130 or 143, as shells count signals."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def run_child(command: Sequence[str], env: Mapping[str, str] | None = None, **streams) -> int:
    """Run a process of ours to its end and return its exit code, that of a shell (128 + number) if a signal ended it.

    A signal to this process is passed on; the child is then waited for, so that both end. If this process is killed
    outright, the system sends the child a SIGTERM. ``streams`` (``stdout``, ``stderr``) are the child's, if not this
    process's.
    """
    with subprocess.Popen(
        list(command), env=None if env is None else dict(env), preexec_fn=_die_with_parent(), **streams
    ) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt as stop:
            # On a terminal the whole group has the SIGINT already, and two would mean "at once".
            if isinstance(stop, Terminated) or not _in_foreground():
                child.terminate()
            _wait_long(child)
            raise
        except BaseException:
            child.kill()
            raise
    return code if code >= 0 else 128 - code


def _wait_long(child: subprocess.Popen) -> None:
    try:
        child.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def _die_with_parent():
    if not sys.platform.startswith('linux'):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def arrange() -> None:
        prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before
            os._exit(143)

    return arrange
