"""Several processes share the work under torchrun; without it there is one. And which device each of them takes."""
from __future__ import annotations

import os
import re
import socket
from datetime import timedelta

from .errors import InputError


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, '')
    if not text:
        return default
    if not text.isdecimal():
        raise InputError(f'{name}={text}: must be a number, as torchrun sets it: unset it to run without a launcher')
    return int(text)


def rank() -> int:
    """Of this process among all."""
    return _number('RANK', 0)


def local_rank() -> int:
    """Of this process among those of its machine."""
    return _number('LOCAL_RANK', 0)


def world_size() -> int:
    """Number of processes."""
    return _number('WORLD_SIZE', 1)


def local_world_size() -> int:
    """Number of processes of this machine."""
    return _number('LOCAL_WORLD_SIZE', 1)


def barrier() -> None:
    """Wait for all processes (gloo: nothing but waiting is asked of it, with or without GPUs)."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        # One process may be a long way behind: an image takes as long as it takes.
        dist.init_process_group('gloo', timeout=timedelta(days=7))
    dist.barrier()


def pick_device(name: str | None = None, flag: str = '--device') -> str:
    """The device to compute on: ``cpu``, ``cuda:N`` or ``mps``.

    Args:
        name: what the user asked for; ``cuda`` is this process's own GPU, ``None`` that where there is one, else the
            CPU.
        flag: where the user said it, for messages.

    Raises:
        InputError: no such device, or it is not here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return f'cuda:{_own_gpu(gpus)}' if gpus else 'cpu'
    if name == 'cpu' or (name == 'mps' and torch.backends.mps.is_available()):
        return name
    match = re.fullmatch(r'cuda(?::([0-9]{1,4}))?', name) if isinstance(name, str) else None
    if match is None:
        raise InputError(f'{flag} {name}: no such device here: give cpu, cuda or cuda:N')
    if not gpus:
        raise InputError(f'{flag} {name}: no GPU is visible here: use {flag} cpu')
    index = _own_gpu(gpus) if match.group(1) is None else int(match.group(1))
    if index >= gpus:
        raise InputError(f'{flag} {name}: this machine has {gpus} GPU{"s" * (gpus > 1)}, numbered from 0: '
                         f'give cuda:0{f" to cuda:{gpus - 1}" if gpus > 1 else ""}')
    return f'cuda:{index}'


def device_name(device: str) -> str:
    """A device as people call it: ``CPU``, the GPU's name."""
    import torch

    if not device.startswith('cuda'):
        return device.upper()
    return f'{torch.cuda.get_device_name(device)} ({device})'


def _own_gpu(gpus: int) -> int:
    index = local_rank()
    if index >= gpus:
        raise InputError(f'--nproc_per_node: local rank {index} has no GPU, this machine has {gpus}: start at most '
                         f'{gpus} processes')
    return index


def prepare_process_group_env() -> None:
    """Set the variables that a launcher would set, for a run of one process without one.

    DeepSpeed looks for them and, where they are missing, wants MPI.
    """
    if 'RANK' in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
