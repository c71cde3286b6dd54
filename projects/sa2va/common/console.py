"""What a command says: little on the terminal, everything in its log file.

A quiet command (:func:`begin`) speaks through :func:`say` and :func:`progress`. Whatever else it and the libraries
below it print, in Python or below that, goes to the command's log (:func:`log_to`). Where the command is the process
itself (:func:`entry`), the process's own streams are turned there, and what came before the log has a place is kept for
it. In a pipe there are plain lines: no carriage return, no colour, no bar. Of several processes the first one speaks.
"""
from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import textwrap
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Iterable, Iterator, TextIO

from tqdm import tqdm

VERBOSE = 'SA2VA_DPO_VERBOSE'  # for child processes, which print as their parent does
PART = 'SA2VA_DPO_PART'  # set for a process that is a stage of a job: the job says what comes next
_WIDTH = 80  # columns of a terminal that does not tell
_EVERY_S = 30.0  # between two lines of progress in a pipe
_own = False
_quiet = False
_terminal: tuple[TextIO, TextIO] | None = None  # where stdout and stderr went before they were turned to the log
_spool: IO[bytes] | None = None


# ---- who speaks, and where ----------------------------------------------------------------------------------------
@contextmanager
def entry() -> Iterator[None]:
    """Around the ``main`` of a process of ours: a quiet command may turn the process's streams to its log inside."""
    global _own
    _own, before = True, _own
    try:
        yield
    finally:
        _own = before


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """The flag of a quiet command."""
    parser.add_argument('-v', '--verbose', action='store_true',
                        help='print all that otherwise goes to the log file only')


def begin(verbose: bool = False) -> None:
    """From here on this command is quiet, unless it, or the command that started it, is told to print everything."""
    global _quiet
    if verbose:
        os.environ[VERBOSE] = '1'
    _quiet = os.environ.get(VERBOSE, '') in ('', '0')
    # Where somebody reads the streams of this very process (a test, a notebook) they are left alone.
    if _quiet and _own and _terminal is None and sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
        _turn()


def is_quiet() -> bool:
    """Whether libraries' messages are kept from the terminal."""
    return _quiet


def speaks() -> bool:
    """Whether this is the process that talks: the first of those that a launcher started."""
    return os.environ.get('RANK', '0') in ('', '0')


def out() -> TextIO:
    """The user's standard output."""
    return sys.stdout if _terminal is None else _terminal[0]


def err() -> TextIO:
    """The user's standard error."""
    return sys.stderr if _terminal is None else _terminal[1]


def streams() -> dict[str, TextIO]:
    """``stdout`` and ``stderr`` for a child process that talks to the user itself."""
    return {} if _terminal is None else dict(stdout=_terminal[0], stderr=_terminal[1])


def _turn() -> None:
    global _terminal, _spool
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _terminal = tuple(  # type: ignore[assignment]
        open(os.dup(number), 'w', buffering=1, encoding=stream.encoding, errors='backslashreplace')
        for number, stream in ((1, sys.stdout), (2, sys.stderr)))
    # Appended to, as the log will be: children write into it as well.
    _spool = tempfile.TemporaryFile('a+b')
    _point_to(_spool.fileno())


def _point_to(number: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(number, 1)
    os.dup2(number, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def log_to(path: str | os.PathLike) -> None:
    """The command's log is ``path`` from here on, appended to; its folder is the command's own."""
    global _spool
    if _terminal is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError), open(path, 'ab') as log:  # as in _log
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if _spool is not None:
            _spool.seek(0)
            shutil.copyfileobj(_spool, log)
            log.flush()
            _spool.close()
            _spool = None
        _point_to(log.fileno())


def show_kept() -> None:
    """Show what was kept for a log that never got a place: a defect needs it."""
    if _spool is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        _spool.seek(0)
        err().write(_spool.read().decode(errors='backslashreplace'))
        err().flush()


# ---- speaking -----------------------------------------------------------------------------------------------------
def say(text: str = '', *, logged: bool = False) -> None:
    """Tell the user, on standard output; lines are broken at the width of a terminal, never in a pipe.

    Args:
        logged: the log has it already.
    """
    if not speaks():
        return
    stream = out()
    with tqdm.external_write_mode(file=err()):
        print('\n'.join(fitted(line, stream) for line in text.split('\n')), file=stream, flush=True)
    if _terminal is not None and not logged:
        _log(text)


def aside(text: str) -> None:
    """Tell the user while the work goes on, on standard error, above the bars."""
    if not speaks():
        return
    with tqdm.external_write_mode(file=err()):
        print('\n'.join(fitted(line, err()) for line in text.split('\n')), file=err(), flush=True)


def _log(text: str) -> None:
    """A line of the log, to which the process's own standard output goes."""
    try:
        print(text, flush=True)
    except OSError:
        # A full disk fails the next file that matters, in one line; a lost line of a log is no reason to stop.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)


def warn(text: str) -> None:
    """Something that the user should act on."""
    say(f'warning: {text}')


def detail(text: str) -> None:
    """For the log; on the terminal where everything is."""
    if not speaks():
        return
    if _terminal is not None:
        _log(text)
    elif not _quiet:
        print(text, flush=True)


def next_step(*commands: str) -> None:
    """The last lines of a command: what may be run next, one command a line, ready to be copied."""
    if PART in os.environ or not speaks():
        return
    stream, label = out(), 'next: '
    for command in commands:
        if _terminal is not None:
            _log(label + command)
        with tqdm.external_write_mode(file=err()):
            print(label + continued(command, stream, len(label)), file=stream, flush=True)
        label = '  or: '


def columns(stream: TextIO) -> int | None:
    """Width of the terminal that ``stream`` is, or None."""
    try:
        return (os.get_terminal_size(stream.fileno()).columns or _WIDTH) if stream.isatty() else None
    except (OSError, ValueError, AttributeError):
        return None


def fitted(line: str, stream: TextIO) -> str:
    """A line broken between its words at the width of a terminal, the rest indented; a path stays whole."""
    width = columns(stream)
    if width is None or len(line) <= width:
        return line
    indent = line[:len(line) - len(line.lstrip())]
    return '\n'.join(textwrap.wrap(line, width, subsequent_indent=indent + '  ', break_long_words=False,
                                   break_on_hyphens=False))


def continued(command: str, stream: TextIO, used: int = 0) -> str:
    """A command line broken with backslashes at the width of a terminal, as a shell takes it."""
    width = columns(stream)
    if width is None or used + len(command) <= width:
        return command
    lines, words = [''], command.split(' ')
    for word in words:
        room = width - 2 - (used if len(lines) == 1 else 4)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] += (' ' if lines[-1] else '') + word
    return ' \\\n    '.join(lines)


# ---- progress -----------------------------------------------------------------------------------------------------
def progress(iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0,
             disable: bool = False) -> tqdm:
    """A bar on a terminal, a plain line every half minute and at the end in a pipe, both on standard error.

    Args:
        iterable, desc, unit, total, initial: as tqdm's.
        disable: show nothing; other processes than the first never do.

    Returns:
        What tqdm returns: an iterable with ``update``, ``set_postfix_str`` and ``close``.
    """
    common: dict[str, Any] = dict(desc=desc, unit=unit, total=total, initial=initial, file=err(),
                                  disable=disable or not speaks())
    if columns(err()) is None:
        return _Lines(iterable, **common)
    # A bar inside another one goes when it is done.
    return tqdm(iterable, dynamic_ncols=True, leave=None, **common,
                bar_format='{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}')


def end_bars() -> None:
    """Close what is on the terminal still: the command ends here."""
    for bar in list(getattr(tqdm, '_instances', [])):
        bar.close()


class _Lines(tqdm):
    """tqdm's count and clock, shown as lines of their own."""

    def __init__(self, iterable=None, **settings) -> None:
        self._shown = settings['initial']
        self.disable = settings['disable']
        super().__init__(iterable, mininterval=_EVERY_S, maxinterval=_EVERY_S, miniters=1, **settings)

    def display(self, msg=None, pos=None) -> bool:
        if self.n != self._shown:
            self._shown = self.n
            print(self._line(), file=self.fp, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """There is nothing to wipe."""

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            self.display()

    def _line(self) -> str:
        state = self.format_dict
        seconds, done = state['elapsed'], self.n - self.initial
        rate = done / seconds if seconds and done else None
        of = '' if self.total is None else f' of {self.total}'
        parts = [f'{self.desc.rstrip(": ")}: {self.n}{of} {self.unit}s']
        if rate:
            parts.append(f'{rate:.3g} {self.unit}/s' if rate >= 1 else f'{1 / rate:.3g} s/{self.unit}')
            if self.total is not None and self.n < self.total:
                parts.append(f'{self.format_interval((self.total - self.n) / rate)} left')
            else:
                parts.append(f'took {self.format_interval(seconds)}')
        return ', '.join(parts + [self.postfix] * bool(self.postfix))
