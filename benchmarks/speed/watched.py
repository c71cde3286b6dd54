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


class Peaks:
    """Largest GPU memory of this process in tensors, and in what the allocator held for them, and its host memory.

    mmengine starts the allocator's own count anew with every line of its log; what it had counted is kept here.
    """

    def __init__(self, device: int) -> None:
        self.device, self.allocated, self.reserved = device, 0, 0

    def follow(self) -> None:
        """Look before every new start of the count, from now on."""
        import torch

        original = torch.cuda.reset_peak_memory_stats

        def reset(*args, **kwargs) -> None:
            self.look(torch)
            original(*args, **kwargs)

        torch.cuda.reset_peak_memory_stats = reset

    def look(self, torch) -> None:
        if torch.cuda.is_initialized():
            self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self.device))
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self.device))

    def found(self) -> dict:
        """In GiB; None on a CPU."""
        # Not imported for this: a process that ends is no place for it.
        if 'torch' in sys.modules:
            self.look(sys.modules['torch'])
        status = Path('/proc/self/status').read_text()
        return dict(peak_allocated_gib=self.allocated / 2 ** 30 or None,
                    peak_reserved_gib=self.reserved / 2 ** 30 or None,
                    peak_host_gib=int(status.split('VmHWM:')[1].split()[0]) / 2 ** 20)


def main() -> None:
    reports, gib, script = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    rank, device = os.environ.get('RANK', '0'), int(os.environ.get('LOCAL_RANK', '0'))
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / 'projects/checkout')]
    watched = Peaks(device)
    watched.follow()
    if gib:
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2 ** 30 / total), device)
    atexit.register(lambda: (reports / f'rank_{rank}.json').write_text(json.dumps(watched.found())))
    sys.argv = sys.argv[3:]
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
