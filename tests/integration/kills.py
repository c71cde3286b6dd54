"""A command that kills itself at a chosen point of its work.

A process that has imported everything forks one child a run: importing takes longer than the runs. The child counts the
points that are watched, each a place where a kill could leave something that is not whole, and kills itself at one:

* ``files``: right before and right after every renaming;
* ``journal``: halfway through every line of a journal;
* ``validation``: before every batch that a validation scores.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Iterable


class Killable:
    """Runs of a command; to be closed.

    Args:
        command: module of ``sa2va_dpo.commands``.
        outputs: an empty folder for what the runs print.
        imports: what the command imports late, and every child needs.
    """

    def __init__(self, command: str, repo_root: Path, outputs: Path, imports: Iterable[str] = ()) -> None:
        self.outputs = outputs
        self.server = subprocess.Popen(
            [sys.executable, '-m', 'tests.integration.kills', command, *imports], cwd=repo_root, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'})

    def run(self, *argv: object, watch: Iterable[str] = ('files',), at: int = 0, code: int = 0,
            log: str | os.PathLike = os.devnull) -> str:
        """One run, which must end with ``code``; returns what it printed.

        Args:
            watch: kinds of points.
            at: the point at which it kills itself, from 1; 0 is none.
            log: gets a line a point, its number and what it was.
        """
        out = self.outputs / str(len(list(self.outputs.iterdir())))
        print(json.dumps([at, list(watch), str(log), str(out), list(map(str, argv))]), file=self.server.stdin,
              flush=True)
        # Libraries print to the server's output, too.
        ended = next(line for line in self.server.stdout if line.startswith('ended '))
        assert int(ended.split()[1]) == code, out.read_text()[-3000:]
        return out.read_text()

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        self.server.stdin.close()
        self.server.stdout.close()


class _Points:
    """Counts points, in the child."""

    def __init__(self, at: int, log: str) -> None:
        self.at, self.log, self.count = at, open(log, 'a'), 0

    def step(self, what: str) -> None:
        self.count += 1
        print(self.count, what, file=self.log, flush=True)
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def files(self) -> None:
        replace = os.replace

        def replacing(source, target, **more):
            self.step(f'before {os.path.basename(target)}')
            replace(source, target, **more)
            self.step(f'after {os.path.basename(target)}')

        os.replace = replacing

    def journal(self) -> None:
        from sa2va_dpo.common.journal import Journal

        append = Journal.append

        def appending(journal, entry):
            if self.count + 1 == self.at:
                journal._file.write(json.dumps(entry)[:20])
                journal._file.flush()
            self.step('line')
            append(journal, entry)

        Journal.append = appending

    def validation(self) -> None:
        from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric

        process = VesselSegMetric.process

        def processing(metric, *args, **more):
            self.step('validation')
            return process(metric, *args, **more)

        VesselSegMetric.process = processing


def _child(main, at: int, watch: list[str], log: str, out: str, argv: list[str]) -> None:
    for stream in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    points = _Points(at, log)
    for kind in watch:
        getattr(points, kind)()
    try:
        main(argv)
    except SystemExit as end:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(end.code or 0)


def _serve(command: str, imports: Iterable[str]) -> None:
    from sa2va_dpo.common.errors import cli_main

    main = cli_main(import_module(f'sa2va_dpo.commands.{command}').main)
    for name in imports:
        import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(main, *json.loads(line))
        print('ended', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__':
    _serve(sys.argv[1], sys.argv[2:])
