"""The refinement of a checkpoint: one file beside the released weights, which stay as they are."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_bytes
from sa2va_dpo.models.refinement import Refinement, shapes_wanted
from sa2va_dpo.models.sa2va import Sa2VAModel

from .layout import REFINEMENT_FILE
from .store import read_safetensors


def read_refinement(directory: Path, channels: int) -> Refinement | None:
    """The refinement beside a checkpoint's weights, float32 on the CPU; None where there is none.

    Args:
        channels: of the model's stride-4 features.

    Raises:
        InputError: a damaged file, or tensors that do not fit the model.
    """
    path = directory / REFINEMENT_FILE
    if not path.is_file():
        return None
    tensors, wanted = read_safetensors(path), shapes_wanted(channels)
    odd = sorted(name for name in {*tensors, *wanted}
                 if name not in tensors or tuple(tensors[name].shape) != wanted.get(name))
    if odd:
        raise InputError(f'{path}: {odd[0]} does not fit this checkpoint ({len(odd)} in all): put back the file that '
                         f'was exported with it, or remove it to predict without a refinement')
    with torch.device('meta'):  # reading a checkpoint draws no random number
        refinement = Refinement(channels)
    refinement.load_state_dict(tensors, assign=True)
    return refinement


def write_refinement(directory: Path, model: Sa2VAModel, source: Path) -> None:
    """Write a model's refinement beside its weights, as float32.

    As of all weights: a number that is the stored one, rounded to the model's dtype, is written as it is stored; what
    was not read (``device='meta'``) is copied.

    Args:
        source: the checkpoint that the model came from.
    """
    path, state = source / REFINEMENT_FILE, model.refinement.state_dict()
    stored = read_safetensors(path) if path.is_file() else {}
    values = {}
    for name, tensor in state.items():
        old = stored.get(name)
        mine = old if tensor.is_meta else tensor.detach().cpu()
        values[name] = (mine.float() if old is None else torch.where(old.to(mine.dtype) == mine, old, mine.float())
                        ).contiguous()
    write_bytes(directory / REFINEMENT_FILE, save(values, metadata={'format': 'pt'}))


def put_refinement(model: Sa2VAModel, directory: Path, dtype: torch.dtype, device: torch.device | str) -> None:
    """Give a model the refinement of its checkpoint, if there is one; on the meta device its names and shapes."""
    found = read_refinement(directory, model.sam2.mask_decoder.conv_s0.out_channels)
    model.refinement = None if found is None else found.to(device, dtype)
