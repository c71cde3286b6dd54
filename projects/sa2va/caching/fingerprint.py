"""Fingerprints: a cache belongs to exactly one set of weights, one preprocessing and one precision."""
from __future__ import annotations

import hashlib
import json
from typing import Iterable, Sequence

import torch
from torch import nn

from sa2va_dpo.models.quantised import statistics

# Bumped when what is computed, or how it is stored, changes.
_VERSION = 1


def weights_digest(policy: nn.Module, prefixes: Sequence[str]) -> str:
    """Of the values, shapes and dtypes of the parameters and buffers below ``prefixes``, LoRA adapters left out.

    Adapters are at zero before training and switched off in the reference, so that the digest is the start's.
    """
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers()), **statistics(policy)}
    named = ((name.replace('.base_layer.', '.'), tensors[name]) for name in sorted(tensors) if 'lora_' not in name)
    return tensors_digest((plain, tensor) for plain, tensor in named if plain.startswith(tuple(prefixes)))


def tensors_digest(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256, hex, of names, dtypes, shapes and values, in the order given."""
    total = hashlib.sha256()
    for name, tensor in named:
        tensor = tensor.detach().cpu().contiguous()
        total.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        # bfloat16 has no numpy equivalent; its bytes do. reshape: views of a scalar cannot change the element size.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def fingerprint(kind: str, weights: str, preprocessing: str, precision: str) -> str:
    """Short hex digest of everything but the image, the prompt and the flip.

    Args:
        weights: :func:`weights_digest`.
        preprocessing: ``Sa2VAPreprocessor.fingerprint()``.
        precision: how matrix products run; values of a CPU and a GPU are not the same either.
    """
    state = dict(version=_VERSION, kind=kind, weights=weights, preprocessing=preprocessing, precision=precision)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:24]
