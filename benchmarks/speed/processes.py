"""A command as a stage of a benchmark: how long it took and what it and its children needed."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]


def descendants(pid: int) -> list[int]:
    """A process and all its children; those that end meanwhile are left out."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in Path(f'/proc/{pid}/task').glob('*/children'):
            try:
                waiting += [int(word) for word in children.read_text().split()]
            except OSError:
                continue
    return found


def host_gib(pids: Sequence[int]) -> float:
    """Host memory of some processes together, shared pages counted once (GiB)."""
    total = 0
    for pid in pids:
        try:
            text = Path(f'/proc/{pid}/smaps_rollup').read_text()
        except OSError:
            continue
        # Pages of files that are mapped can be dropped at any time: what a process cannot do without is anonymous.
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(('Pss_Anon:', 'Pss_Shmem:')))
    return total / 2 ** 20


def gpu_gib() -> list[float]:
    """Memory in use on every visible GPU as nvidia-smi sees it: contexts and other processes included."""
    if shutil.which('nvidia-smi') is None:
        return []
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    done = subprocess.run(['nvidia-smi', '--query-gpu=memory.used', '--format=csv,noheader,nounits',
                           *([f'--id={visible}'] if visible else [])], capture_output=True, text=True)
    return [float(line) / 1024 for line in done.stdout.split()] if done.returncode == 0 else []


class Watch(threading.Thread):
    """Looks at a process and its children, and at the GPUs, until it is stopped; keeps the largest values."""

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.pid, self.interval = pid, interval
        self.host, self.gpus = 0.0, gpu_gib()
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(self.interval):
            self.host = max(self.host, host_gib(descendants(self.pid)))
            self.gpus = [max(pair) for pair in zip(self.gpus, gpu_gib())]

    def stop(self) -> dict:
        self._end.set()
        self.join()
        return dict(peak_host_gib=self.host, peak_gpu_gib=max(self.gpus, default=None))


def run(script: str | Path, arguments: Sequence[str], log: Path, gpus: int = 0, gib: float = 0.0,
        until: Callable[[], bool] | None = None, expect: Sequence[int] = (0,)) -> dict:
    """One stage.

    Args:
        script: path of a Python file, run through ``watched.py``.
        log: takes everything it prints.
        gpus: processes under torchrun; 0 runs one without.
        gib: cap of PyTorch's allocator on each GPU; 0 is none.
        until: once it says so, SIGTERM is sent to the processes of the script, as a scheduler would.
        expect: exit codes that are no failure.

    Returns:
        ``seconds``, ``exit``, and peaks in GiB: ``peak_host_gib`` (all processes, anonymous and shared memory),
        ``peak_gpu_gib`` (the fullest GPU by nvidia-smi), ``peak_allocated_gib`` and ``peak_reserved_gib`` (the
        allocator's, the largest process's; None on a CPU).

    Raises:
        RuntimeError: another exit code; the message has the end of the log.
    """
    launcher = [sys.executable] if not gpus else [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                                                  f'--nproc_per_node={gpus}']
    with tempfile.TemporaryDirectory() as reports, open(log, 'w') as out:
        began = time.perf_counter()
        process = subprocess.Popen([*launcher, str(ROOT / 'benchmarks/speed/watched.py'), reports, str(gib),
                                    str(script), *map(str, arguments)], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        watch = Watch(process.pid)
        watch.start()
        while process.poll() is None:
            time.sleep(0.1)
            if until is not None and until():
                process.send_signal(signal.SIGTERM)
                until = None
        seconds = time.perf_counter() - began
        result = dict(seconds=seconds, exit=process.returncode, **watch.stop())
        found = [json.loads(path.read_text()) for path in Path(reports).iterdir()]
    for name in ('peak_allocated_gib', 'peak_reserved_gib'):
        values = [report[name] for report in found if report[name] is not None]
        result[name] = max(values, default=None)
    if process.returncode not in expect:
        raise RuntimeError(f'{script}: exit code {process.returncode}: ' + log.read_text()[-3000:])
    return result
