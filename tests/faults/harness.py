"""Commands that are disturbed at their n-th file operation, and what they leave.

A shim (``shim.c``, preloaded, compiled here) counts every file operation of a command and its children below one
folder, native libraries' included, and kills, fails, signals or stops at one of them.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import pytest

HERE = Path(__file__).resolve().parent
LONG = os.environ.get('SA2VA_DPO_LONG_TESTS', '') not in ('', '0')
COUNT, KILL, FAIL, FAIL_ONCE, SIGNAL, STOP = range(6)
FULL, READ_ONLY, FORBIDDEN, BROKEN = errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO


@dataclass
class Tally:
    """What was done and what it did, for the last lines of the test run."""

    done: Counter = field(default_factory=Counter)
    bad: Counter = field(default_factory=Counter)


TALLY = Tally()


@dataclass(frozen=True)
class Ended:
    """How a run came out: exit code (negative: ended by that signal), its output, file operations, whether it was
    disturbed."""

    code: Any
    text: str
    count: int
    hit: bool


@dataclass(frozen=True)
class Scenario:
    """A command in a folder.

    Attributes:
        command: name of a command module.
        argv: given the folder, its arguments.
        outcome: given the folder, everything that matters of what is in it.
        again: arguments that go on after an interruption; None: the same.
        prepare: fills the folder before.
        watched: given the folder, where file operations count.
        code: of an undisturbed run.
    """

    command: str
    argv: Callable[[Path], Sequence[Any]]
    outcome: Callable[[Path], Any]
    again: Callable[[Path], Sequence[Any]] | None = None
    prepare: Callable[[Path], None] = lambda folder: None
    watched: Callable[[Path], Path] = lambda folder: folder
    code: int = 0


class Zygote:
    """The process that forks runs."""

    def __init__(self, repo_root: Path, scratch: Path) -> None:
        compiler = next(filter(None, map(shutil.which, ('cc', 'gcc', 'clang'))), None)
        if compiler is None or not sys.platform.startswith('linux'):
            pytest.skip('the fault injection is a preloaded library of Linux: there is no C compiler here')
        shim = scratch / 'shim.so'
        subprocess.run([compiler, '-shared', '-fPIC', '-O1', '-D_LARGEFILE64_SOURCE', '-o', shim, HERE / 'shim.c',
                        '-ldl'], check=True)
        self.scratch, self._number, self.cwd = scratch, 0, repo_root
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / 'zygote.py')], cwd=repo_root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, 'LD_PRELOAD': str(shim), 'FAULT_SHIM': str(shim), 'OMP_NUM_THREADS': '1',
                            'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(repo_root / 'projects/checkout')})
        self._answer()

    def _answer(self) -> str:
        return next(line for line in self._process.stdout if line.startswith('@@ '))[3:]

    def run(self, *runs: dict) -> list[Ended]:
        """Each of ``dict(command=, argv=, folder=, mode=, at=, value=, log=)``, all at once; with mode STOP the first
        one is stopped at its n-th operation until the others have ended."""
        for run in runs:
            self._number += 1
            run.update(out=str(self.scratch / f'{self._number}.txt'), argv=list(map(str, run['argv'])))
            run.setdefault('cwd', str(self.cwd))
            run['folder'] = str(run['folder']) if run.get('folder') else None
        print(json.dumps(runs), file=self._process.stdin, flush=True)
        answers = json.loads(self._answer())
        found = []
        for run, answer in zip(runs, answers):
            path = Path(run['out'])
            found.append(Ended(answer['code'], path.read_text(errors='replace'), answer['count'], answer['hit']))
            path.unlink()
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Bench:
    """A scenario, what it comes to undisturbed, and disturbances of it in one and the same folder (paths are part of
    what some commands write)."""

    def __init__(self, zygote: Zygote, scenario: Scenario, folder: Path) -> None:
        self.zygote, self.scenario, self.folder = zygote, scenario, folder
        self.log = folder.with_name('operations')
        self.fresh()
        ended = self._run(mode=COUNT, log=str(self.log))
        assert ended.code == scenario.code, ended.text[-4000:]
        self.whole, self.count = scenario.outcome(folder), ended.count
        self.operations = self.log.read_text().splitlines()

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.scenario.prepare(self.folder)

    def spec(self, again: bool = False, **fault) -> dict:
        argv = self.scenario.again if again and self.scenario.again else self.scenario.argv
        return dict(command=self.scenario.command, argv=argv(self.folder), folder=self.scenario.watched(self.folder),
                    **fault)

    def _run(self, again: bool = False, **fault) -> Ended:
        return self.zygote.run(self.spec(again, **fault))[0]

    def points(self, short: int, stride: int = 1) -> list[int]:
        """Every ``stride``-th operation in the long form; ``short`` of them, evenly, in the short one."""
        if LONG or short >= self.count:
            return list(range(1, self.count + 1, stride))
        return sorted({1 + round(k * (self.count - 1) / (short - 1)) for k in range(short)})

    def disturb(self, kind: str, points: Iterable[int], codes: Sequence[int], mode: int, value: int = 0,
                one_line: bool = False) -> None:
        """Disturb at each point, then go on undisturbed: the outcome must be that of the undisturbed run.

        Args:
            kind: for the tally.
            codes: exit codes that the disturbed run may end with.
            one_line: it must say what is wrong in one line.
        """
        problems = []
        for at in points:
            self.fresh()
            first = self._run(mode=mode, at=at, value=value)
            TALLY.done[kind] += 1
            where = f'{kind} at {at} of {self.count} ({self._operation(at)})'
            if first.hit and first.code == self.scenario.code and self.scenario.outcome(self.folder) == self.whole:
                pass  # nothing was left to disturb, or somebody found another way
            elif first.hit and first.code not in codes or not first.hit and first.code != self.scenario.code:
                problems.append(f'{where}: exit code {first.code}: {first.text[-1500:]}')
                TALLY.bad['wrong exit codes'] += 1
            for found in self._complaints(first.text, one_line and first.hit and first.code == 2):
                problems.append(f'{where}: {found}: {first.text[-1500:]}')
            second = self._run(again=True)
            for found in self._complaints(second.text, False):
                problems.append(f'{where}, then again: {found}: {second.text[-1500:]}')
            if second.code != self.scenario.code:
                problems.append(f'{where}, then again: exit code {second.code}: {second.text[-1500:]}')
                TALLY.bad['lost'] += 1
            elif (outcome := self.scenario.outcome(self.folder)) != self.whole:
                problems.append(f'{where}: {difference(self.whole, outcome)}')
                TALLY.bad['lost'] += 1
        assert not problems, f'{len(problems)} problems:\n' + '\n'.join(problems[:8])

    def race(self, points: Iterable[int]) -> None:
        """Stop at each point until the same command, started meanwhile, has ended; 0: start both at once. One of them
        may be refused; what is there afterwards is what one alone makes."""
        problems = []
        for at in points:
            self.fresh()
            first, second = self.zygote.run(self.spec(mode=STOP if at else COUNT, at=at), self.spec(mode=COUNT))
            TALLY.done['races'] += 1
            where = f'race at {at} of {self.count} ({self._operation(at) if at else "both at once"})'
            said = f'{first.code} {first.text[-800:]} / {second.code} {second.text[-800:]}'
            if self.scenario.code not in (first.code, second.code) or any(
                    ended.code not in (self.scenario.code, 2) for ended in (first, second)):
                problems.append(f'{where}: {said}')
                TALLY.bad['wrong exit codes'] += 1
            for ended in (first, second):
                # Stopped between the lock and what it writes about itself, it cannot say more.
                early = at and self._operation(at).endswith('.owner.lock') and 'by another process' in ended.text
                if ended.code == 2 and not early and not (
                        'is being written by process' in ended.text and ' since ' in ended.text):
                    problems.append(f'{where}: does not say who holds it: {ended.text[-800:]}')
                    TALLY.bad['wrong messages'] += 1
                problems += [f'{where}: {found}: {said}' for found in self._complaints(ended.text, ended.code == 2)]
            if (outcome := self.scenario.outcome(self.folder)) != self.whole:
                problems.append(f'{where}: {difference(self.whole, outcome)}')
                TALLY.bad['mixed'] += 1
        assert not problems, f'{len(problems)} problems:\n' + '\n'.join(problems[:8])

    def _complaints(self, text: str, one_line: bool) -> list[str]:
        found = []
        if 'Traceback' in text or 'Logging error' in text:
            found.append('traceback')
            TALLY.bad['tracebacks'] += 1
        # A job adds a line to that of its training.
        most = 2 if self.scenario.command == 'job' else 1
        if one_line and not 1 <= sum(line.startswith('error: ') for line in text.splitlines()) <= most:
            found.append('not one line of error')
            TALLY.bad['wrong messages'] += 1
        return found

    def _operation(self, at: int) -> str:
        return self.operations[at - 1].split(' ', 1)[1] if at <= len(self.operations) else '?'


def difference(was: Any, now: Any, name: str = '') -> str:
    """Where two outcomes differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        return '; '.join(difference(was.get(key), now.get(key), f'{name}/{key}') for key in keys[:4])
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return difference(dict(enumerate(was)), dict(enumerate(now)), name)
    return f'{name}: {str(was)[:300]} became {str(now)[:300]}'


def content(folder: Path, skip: Callable[[Path], bool] = lambda path: False) -> dict[str, str]:
    """Relative path -> hash of every file of a folder, hidden ones included."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*'))
            if path.is_file() and not path.is_symlink() and not skip(path.relative_to(folder))}
