"""Several processes share the images under torchrun; without it there is one."""
from __future__ import annotations

import os
from datetime import timedelta


def rank() -> int:
    return int(os.environ.get('RANK', 0))


def local_rank() -> int:
    return int(os.environ.get('LOCAL_RANK', 0))


def world_size() -> int:
    return int(os.environ.get('WORLD_SIZE', 1))


def barrier() -> None:
    """Wait for all processes (gloo: nothing but waiting is asked of it, with or without GPUs)."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        # One process may be a long way behind: an image takes as long as it takes.
        dist.init_process_group('gloo', timeout=timedelta(days=7))
    dist.barrier()
