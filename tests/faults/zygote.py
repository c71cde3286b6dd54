"""A process that has imported everything and forks one child a run: importing takes longer than the runs.

Reads a JSON list of runs a line, answers with a line ``@@ [{code, count, hit}, ...]``. See ``harness.py``.
"""
import ctypes
import importlib
import json
import os
import signal
import sys
import time

import cv2
import torch

import sa2va_dpo.commands.job.main
import sa2va_dpo.commands.job.mine
import sa2va_dpo.commands.job.report
import sa2va_dpo.commands.job.select
import sa2va_dpo.commands.job.train
import sa2va_dpo.commands.pairs
import sa2va_dpo.commands.review
import sa2va_dpo.commands.train
import sa2va_dpo.engine.runner
import sa2va_dpo.preferences.generate
import sa2va_dpo.review.merge
import sa2va_dpo.review.pick_merge
from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common.errors import cli_main
from sa2va_dpo.common.signals import Terminated

COMMANDS = {name: getattr(sa2va_dpo.commands, name) for name in ('train', 'pairs', 'review')}
COMMANDS['job'] = sa2va_dpo.commands.job.main
LIMIT_S = 120.0
MODULES = os.environ['FAULT_SHIM'] + '.modules'
IMPORTED = set(sys.modules)
shim = ctypes.CDLL(os.environ['FAULT_SHIM'])


def finish(command, argv):
    """Run a command to its end and end this process with its exit code."""
    code = 1
    try:
        cli_main(COMMANDS[command].main)(argv)
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush(), sys.stderr.flush()
    with open(MODULES, 'a') as file:
        file.write(''.join(f'{name}\n' for name in list(sys.modules) if name not in IMPORTED))
    os._exit(code)


def import_what_children_did():
    """So that the next ones need not."""
    if os.path.exists(MODULES):
        with open(MODULES) as file:
            names = sorted(set(file.read().split()))
        os.unlink(MODULES)
        for name in names:
            try:
                importlib.import_module(name)
            except Exception:  # some make themselves up as they go
                pass
        IMPORTED.update(sys.modules)


def fork_training(command, env=None, **streams):
    """In place of ``run_child``: the training of a job, without another interpreter."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        finish('train', list(command[command.index('sa2va_dpo.commands.train') + 1:]))
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    return code if code >= 0 else 128 - code


def child(report, command, argv, out, cwd, folder=None, mode=0, at=0, value=0, log=None, env=None):
    os.setpgid(0, 0)
    for stream in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(cwd)
    os.environ.update(env or {})
    sa2va_dpo.commands.job.train.run_child = fork_training
    sys.argv = [command, *argv]
    if folder is not None:
        shim.fault_share(report)
        lines = -1 if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if shim.fault_arm(os.fsencode(folder), mode, at, value, lines):
            os._exit(99)
    finish(command, argv)


def ended(pid, until):
    """What a child came to: its exit code (-9: killed), 'stopped', or 'hung' after ``LIMIT_S``."""
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found:
            return 'stopped' if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 'hung'


def serve(runs):
    reports = [shim.fault_report() for _ in runs]
    pids, codes = [], []
    for report, run in zip(reports, runs):
        pid = os.fork()
        if pid == 0:
            child(report, **run)
        pids.append(pid)
        if run.get('mode') == 5:  # the first one is stopped in the middle while the others run
            codes.append(ended(pid, time.monotonic() + LIMIT_S))
    for pid in pids[len(codes):]:
        codes.append(ended(pid, time.monotonic() + LIMIT_S))
    for place, pid in enumerate(pids):
        if codes[place] == 'stopped':
            os.killpg(pid, signal.SIGCONT)
            codes[place] = ended(pid, time.monotonic() + LIMIT_S)
    return [dict(code=code, count=shim.fault_count(report), hit=bool(shim.fault_hit(report)))
            for code, report in zip(codes, reports)]


if __name__ == '__main__':
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for function in (shim.fault_report, shim.fault_count, shim.fault_hit, shim.fault_share):
        function.argtypes = [] if function is shim.fault_report else [ctypes.c_void_p]
    shim.fault_report.restype = ctypes.c_void_p
    print('@@ ready', flush=True)
    for line in sys.stdin:
        import_what_children_did()
        print('@@ ' + json.dumps(serve(json.loads(line))), flush=True)
