"""Reading what a run saved: ``iter_N.pth`` as a file or as a DeepSpeed directory, never executing pickled code."""
from __future__ import annotations

import contextlib
import enum
import functools
import pickle
import re
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.optional import extra

from .layout import assign


def allow_run_state() -> None:
    """Let ``torch.load(weights_only=True)`` read the few plain classes that mmengine and DeepSpeed put in a checkpoint.

    Since torch 2.6 the safe loader is the default and refuses them; switching it off would execute any pickle.
    """
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer

    classes = [
        HistoryBuffer,
        ConfigDict,
        np.ndarray,
        np.dtype,
        np._core.multiarray._reconstruct,
        np._core.multiarray.scalar,
        *{type(np.dtype(t)) for t in ('f4', 'f8', 'i4', 'i8', 'u1', 'u4', 'u8', 'bool')},
    ]
    with contextlib.suppress(ImportError):
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        classes += [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    torch.serialization.add_safe_globals([
        *classes, (_attribute_of, 'builtins.getattr'), (_attribute_of, '__builtin__.getattr')])


def _attribute_of(owner: object, name: str):
    """Stands for ``getattr`` while reading: mmengine pickles HistoryBuffer's own statistics by name, early releases of
    Python 3.11 the members of an enumeration, nothing else may.

    Raises:
        pickle.UnpicklingError: any other attribute of any other object.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    # Only classes that are allowed by name reach this place.
    if isinstance(owner, type) and issubclass(owner, enum.Enum) and name in owner.__members__:
        return owner[name]
    raise pickle.UnpicklingError(f'the attribute {name} of {owner!r} is not plain data')


@contextlib.contextmanager
def weights_only_loads() -> Iterator[None]:
    """Inside the block every ``torch.load`` is weights_only, also DeepSpeed's own, which asks for the opposite."""
    original = torch.load

    @functools.wraps(original)
    def load(*args, **kwargs):
        kwargs['weights_only'] = True
        return original(*args, **kwargs)

    allow_run_state()
    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def read_trained_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Trained tensors of a checkpoint, by parameter name, on the CPU in the precision in which they were trained.

    Args:
        path: a ``.pth`` file, or the directory that DeepSpeed writes in its place (fp32 master weights are put
            together from the ZeRO shards).

    Raises:
        InputError: missing, unreadable, holding code, or not one of the two formats.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f'{path}: no such checkpoint: give the iter_N.pth file or directory of a training run')
    try:
        with weights_only_loads():
            if path.is_dir():
                with extra('train', f'{path}: a DeepSpeed checkpoint'):
                    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

                return dict(get_fp32_state_dict_from_zero_checkpoint(
                    str(path.parent), tag=path.name, exclude_frozen_parameters=True))
            content = torch.load(path, map_location='cpu')
    except pickle.UnpicklingError as error:
        # torch's own text is several lines of advice to switch the check off; the name of the culprit is in it.
        culprit = re.search(r'GLOBAL (\S+)|the attribute .* is not plain data', str(error))
        what = culprit.group(1) or culprit.group(0) if culprit else 'content that is not plain data'
        raise InputError(f'{path}: refused, it holds code or objects ({what}): '
                         'use a checkpoint written by tools/train.py') from None
    except (RuntimeError, ValueError, OSError, KeyError, EOFError, AssertionError) as error:
        raise InputError(f'{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}): '
                         'is the file or directory complete?') from None
    if not isinstance(content, dict) or 'state_dict' not in content:
        raise InputError(f'{path}: has no field state_dict: use a checkpoint written by tools/train.py')
    return content['state_dict']


@torch.no_grad()
def load_trained_tensors(model: nn.Module, path: str | Path) -> int:
    """Copy a checkpoint's tensors into ``model``; every trainable tensor must be there and nothing else.

    Args:
        model: a run model built from the run's own config, or with its ``trainable`` (on the meta device as well).

    Returns:
        The number of tensors copied.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape; names the first and says what to do.
    """
    tensors = {name.removeprefix('module.'): tensor for name, tensor in read_trained_tensors(path).items()}
    check_names(model, tensors, path)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if parameters[name].is_meta:
            assign(model, name, tensor.float())
        else:
            parameters[name].copy_(tensor)
    return len(tensors)


def check_names(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Raise InputError unless ``tensors`` are exactly the trainable tensors of ``model``, name and shape."""
    wanted = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    remedy = 'use the config.py that was saved beside it'
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing:
        raise InputError(
            f'{path}: {len(missing)} trained tensors of this config are missing, first {missing[0]}: {remedy}'
        )
    if unexpected:
        raise InputError(
            f'{path}: {len(unexpected)} tensors have no place in this config, first {unexpected[0]}: {remedy}'
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name]:
            raise InputError(f'{path}: {name} has shape {tuple(tensor.shape)}, the config wants '
                             f'{tuple(wanted[name])}: {remedy}')
