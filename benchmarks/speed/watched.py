"""Run a script as it is, with the GPU's allocator capped, and write down what it took:

    python benchmarks/speed/watched.py REPORTS GIB SCRIPT [ARGUMENTS]

Every process writes ``REPORTS/rank_N.json`` when it ends. GIB bounds what PyTorch's allocator may take on this
process's GPU (0: no bound); a script that wants more fails as it would on a smaller card.
"""
from __future__ import annotations

import atexit
import json
import os
import runpy
import sys
from pathlib import Path


def peaks(device: int) -> dict:
    """Peaks of this process: GPU memory in tensors and in what the allocator held for them, host memory (GiB)."""
    status = Path('/proc/self/status').read_text()
    host = int(status.split('VmHWM:')[1].split()[0]) / 2 ** 20
    # Not imported for this: a process that ends is no place for it.
    torch = sys.modules.get('torch')
    if torch is None or not torch.cuda.is_initialized():
        return dict(peak_allocated_gib=None, peak_reserved_gib=None, peak_host_gib=host)
    return dict(peak_allocated_gib=torch.cuda.max_memory_allocated(device) / 2 ** 30,
                peak_reserved_gib=torch.cuda.max_memory_reserved(device) / 2 ** 30, peak_host_gib=host)


def main() -> None:
    reports, gib, script = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    rank, device = os.environ.get('RANK', '0'), int(os.environ.get('LOCAL_RANK', '0'))
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / 'projects/checkout')]
    if gib:
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2 ** 30 / total), device)
    atexit.register(lambda: (reports / f'rank_{rank}.json').write_text(json.dumps(peaks(device))))
    sys.argv = sys.argv[3:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
