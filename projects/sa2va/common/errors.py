"""The one boundary between a user's mistake and a defect of ours.

The rule, in full:

* An :class:`InputError` is a user's mistake, found by us: one line that names the setting or file and the remedy, exit
  code 2.
* Where a user's value enters another library (a config section that is built, a file that is parsed), that place says
  so with :func:`setting`. What the library raises there about the value (``ValueError``, ``TypeError``, ``KeyError``
  ... out of *its* code, or a ``ValueError`` that our own code raised on purpose) becomes an InputError. An
  ``AttributeError`` or ``TypeError`` out of our own code stays what it is: a defect.
* What the disk refuses (no room, no permission, read-only, broken) is never a defect, wherever it is met: one line,
  exit code 2.
* Everything else is a defect: traceback, a request for a report, exit code 1.

The traceback of a user's mistake goes to ``error.log`` of the folder that the command owns (:func:`log_tracebacks_to`);
``--debug`` or ``SA2VA_DPO_DEBUG=1`` shows it.
"""
from __future__ import annotations

import functools
import logging
import os
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Sequence

from . import console, signals
from .disk import of_the_disk

# Exit codes. 130 and 143 are signals, as shells count them.
DEFECT, INPUT, NOT_BETTER, WAITING = 1, 2, 3, 4
ERROR_LOG = 'error.log'
_NAMED, _LISTED = 3, 20  # of several problems: in one line, and in lines
_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
# What libraries raise about a value that they were given.
_ABOUT_VALUES = (ValueError, TypeError, LookupError, AssertionError, ArithmeticError, ImportError, AttributeError,
                 NotImplementedError, RuntimeError, OSError)
_log_folder: Path | None = None


class InputError(Exception):
    """Bad input from the user.

    The message is one line that names the file or setting, the field and the remedy. Entry points print it and exit
    with code 2; library code never catches it to go on. What no encoding can write (a lone surrogate out of a user's
    value) stands in it as an escape.
    """

    def __init__(self, message: object = '') -> None:
        super().__init__(str(message).encode('utf-8', 'backslashreplace').decode('utf-8'))


class InputProblems(InputError):
    """Several mistakes found in one look; entry points print a line for each of the first twenty.

    Args:
        problems: lines as of an InputError, at least one.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        more = len(self.problems) - _NAMED
        super().__init__('; '.join(self.problems[:_NAMED]) + (f' (and {more} more)' if more > 0 else ''))


def _lines(error: InputError) -> list[str]:
    found = error.problems if isinstance(error, InputProblems) else [str(error)]
    if len(found) > _LISTED:
        found = [*found[:_LISTED - 1], f'and {len(found) - _LISTED + 1} more problems of this kind']
    return ['error: ' + ' '.join(line.split()) for line in found]


@contextmanager
def setting(name: str, remedy: str = 'correct it, or leave it out for its default') -> Iterator[None]:
    """Inside the block a user's value is handed to code that judges it: what that raises about it becomes an
    InputError.

    Args:
        name: of the setting, file or section, as the user knows it (``'optim_wrapper'``, ``'--device'``).
        remedy: what the user may do.

    Raises:
        InputError: see the rule at the top of this module.
    """
    try:
        yield
    except InputError:
        raise
    except _ABOUT_VALUES as error:
        if not about_the_value(error):
            raise
        raise InputError(f'{name}: {one_line(error)}: {remedy}') from error


def about_the_value(error: BaseException) -> bool:
    """Whether an exception judges a value rather than showing a defect of ours: raised by another library, or a
    ``ValueError`` (which our code raises on purpose) anywhere."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and os.path.realpath(frames[-1].filename).startswith(_PACKAGE)
    if not ours:
        return isinstance(error, _ABOUT_VALUES)
    # UnicodeError and JSONDecodeError are ValueErrors too.
    return isinstance(error, ValueError)


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an exception says, on one line; a name alone (``KeyError: 'x'``) with the kind of exception before it."""
    text = ' '.join(str(error).split())
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError) and text.startswith(("'", '"')) and ' ' not in text:
        text = f'unknown name {text}'
    return text if len(text) <= longest else text[:longest - 3] + '...'


def log_tracebacks_to(folder: str | os.PathLike | None) -> None:
    """Where the traceback of a user's mistake goes from now on: ``error.log`` of a folder that this command owns."""
    global _log_folder
    _log_folder = None if folder is None else Path(folder)


def debugging() -> bool:
    """Whether tracebacks of users' mistakes are to be shown."""
    return os.environ.get('SA2VA_DPO_DEBUG', '') not in ('', '0')


def cli_main(main: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command-line ``main``: the rule above, and exit codes 130 and 143 for SIGINT and SIGTERM.

    ``main`` returns its exit code (``None`` means 0). ``--debug`` anywhere on the command line sets
    ``SA2VA_DPO_DEBUG``, so that child processes show their tracebacks as well.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs) -> None:
        # A full disk fails the next checkpoint, in one line; the line that a log lost is no reason for a traceback.
        logging.raiseExceptions = debugging()
        with console.entry():
            code = _run(main, _take_debug(args), kwargs)
        sys.exit(code or 0)

    return wrapper


def _say_farewell() -> None:
    if console.speaks():  # of the processes of a launcher, the first
        print(signals.farewell(), file=console.err())


def _run(main: Callable[..., int | None], args: tuple, kwargs: dict) -> int | None:
    """Run a command, and say what went wrong on the user's own terminal; its exit code."""
    signals.install()
    try:
        try:
            return main(*args, **kwargs)
        finally:
            console.end_bars()
    except InputError as error:
        _keep_traceback(error)
        if debugging():
            traceback.print_exc(file=console.err())
        print('\n'.join(console.fitted(line, console.err()) for line in _lines(error)), file=console.err())
        return INPUT
    except KeyboardInterrupt as stop:  # signals.Terminated is one
        if debugging():
            traceback.print_exc(file=console.err())
        _say_farewell()
        return signals.exit_code(stop)
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), console.out().fileno())
        return 141
    except Exception as error:
        if signals.received():
            # The first process to end takes the others' collectives and workers with it: their errors are its echo.
            _say_farewell()
            return 128 + signals.received()
        _keep_traceback(error)
        refused = of_the_disk(error, _log_folder)
        if refused is not None:
            if debugging():
                traceback.print_exc(file=console.err())
            print('error: ' + ' '.join(refused.split()), file=console.err())
            return INPUT
        console.show_kept()
        traceback.print_exc(file=console.err())
        print(
            'this is a defect of sa2va_dpo, not of your input: please report it with the lines above and the '
            'command',
            file=console.err(),
        )
        return DEFECT


def _take_debug(args: tuple) -> tuple:
    given = args[0] if args and isinstance(args[0], list) else sys.argv
    if '--debug' in given[given is sys.argv:]:
        os.environ['SA2VA_DPO_DEBUG'] = '1'
        rest = [part for part in given if part != '--debug']
        if given is sys.argv:
            sys.argv = rest
        else:
            args = (rest, *args[1:])
    return args


def _keep_traceback(error: BaseException) -> None:
    if _log_folder is None or not _log_folder.is_dir():
        return
    try:
        with open(_log_folder / ERROR_LOG, 'a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(time.strftime('%Y-%m-%d %H:%M:%S ') + ' '.join(sys.argv) + '\n'
                       + ''.join(traceback.format_exception(type(error), error, error.__traceback__)) + '\n')
    except OSError:
        pass  # the disk may be what is wrong; the line that names it is printed all the same
