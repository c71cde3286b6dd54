"""Fingerprints: a cache belongs to one set of weights, one preprocessing, one precision, one kind of machine."""
from __future__ import annotations

import hashlib
import json
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Iterable, Sequence

import torch
from torch import nn

from sa2va_dpo import __version__
from sa2va_dpo.models.quantised import statistics
from sa2va_dpo.models.trainable import adapters_add_nothing

# Bumped when what is computed, or how it is stored, changes.
_VERSION = 1
# OpenCV comes under either name.
_LIBRARIES = ('torch', 'torchvision', 'transformers', 'numpy', 'pillow', 'opencv-python', 'opencv-python-headless')


def weights_digest(policy: nn.Module, prefixes: Sequence[str]) -> str:
    """Of the values, shapes and dtypes of the parameters and buffers below ``prefixes``, LoRA adapters left out.

    Adapters are at zero before training and switched off in the reference, so that the digest is the start's.
    """
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers()), **statistics(policy)}
    named = ((name.replace('.base_layer.', '.'), tensors[name]) for name in sorted(tensors) if 'lora_' not in name)
    return tensors_digest((plain, tensor) for plain, tensor in named if plain.startswith(tuple(prefixes)))


def policy_state(policy: nn.Module, preprocessing: str) -> str | None:
    """Short hex digest of all that decides what a policy answers: equal digests give equal masks.

    Args:
        preprocessing: ``Sa2VAPreprocessor.fingerprint()``.

    Returns:
        None where a LoRA adapter is not at zero any more: the policy is then not its checkpoint's.
    """
    if not adapters_add_nothing(policy):
        return None
    device = next(policy.parameters()).device
    precision = (f'{device.type}, autocast {getattr(policy, "autocast_dtype", None)}, '
                 f'{torch.is_autocast_enabled(device.type)}, {torch.get_float32_matmul_precision()}')
    return fingerprint('policy', weights_digest(policy, ('',)), preprocessing, precision, machine_of(str(device)))


def tensors_digest(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256, hex, of names, dtypes, shapes and values, in the order given."""
    total = hashlib.sha256()
    for name, tensor in named:
        tensor = tensor.detach().cpu().contiguous()
        total.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        # bfloat16 has no numpy equivalent; its bytes do. reshape: views of a scalar cannot change the element size.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


@lru_cache(maxsize=None)
def machine_of(device: str) -> str:
    """What else decides the last bits of a value: the processor, and the versions of the libraries that read, resize
    and compute.

    Args:
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'`` ...
    """
    if torch.device(device).type == 'cuda':
        processor = f'{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}'
    else:
        processor = f'{platform.machine()} {torch.backends.cpu.get_cpu_capability()}'
    versions = {name: _version_of(name) for name in _LIBRARIES}
    return json.dumps(dict(processor=processor, versions=versions), sort_keys=True)


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fingerprint(kind: str, weights: str, preprocessing: str, precision: str, machine: str) -> str:
    """Short hex digest of everything but the image, the prompt and the flip.

    Args:
        weights: :func:`weights_digest`.
        preprocessing: ``Sa2VAPreprocessor.fingerprint()``.
        precision: how matrix products run.
        machine: :func:`machine_of`: a CPU and a GPU, or two versions of a library, do not give the same values either.
    """
    state = dict(version=_VERSION, code=__version__, kind=kind, weights=weights, preprocessing=preprocessing,
                 precision=precision, machine=machine)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]
