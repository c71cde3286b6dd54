"""What a directory in the released Hugging Face layout says about itself, before a weight is read."""
from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping

import torch
from accelerate import init_empty_weights

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json, write_json
from sa2va_dpo.models.grounding import complete_dims, is_sam3
from sa2va_dpo.models.mllm import check_config, family_of
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.view_geometry import ViewGeometry

from .keys import KeyGroup, rename
from .keys_mllm import mllm_groups, unread_mllm_shapes, vocabulary_head
from .keys_sam2 import PREFIX, sam2_groups, video_memory_shapes
from .keys_sam3 import sam3_carried_shapes, sam3_groups
from .store import stored_names

SAM2_DIMS = 'sam2_dims.json'
# What this package adds to a checkpoint; upstream's code reads nothing of it.
OWN_FILE = 'sa2va_dpo.json'
REFINEMENT_FILE = 'sa2va_dpo_refinement.safetensors'
# What an export says about itself.
CARD_FILE = 'MODEL_CARD.md'
# What makes a directory an adapter: the checkpoint that it belongs on is named in it.
ADAPTER_BASE = 'base_checkpoint.json'
# Weights larger than this, in bytes, are of released size: below, bfloat16 saves nothing worth its rounding.
RELEASED_BYTES = 10 ** 9


def json_object(path: Path) -> dict:
    """A JSON object of a checkpoint directory; raises InputError that says what to do about it."""
    return read_json(path, 'repair or download it again', 'give a directory in the released Sa2VA layout', kind=dict)


def is_adapter(directory: str | os.PathLike) -> bool:
    """Whether a directory holds an adapter (see ``adapter.py``) instead of a whole checkpoint."""
    return (Path(directory) / ADAPTER_BASE).is_file()


def recorded_base(directory: str | os.PathLike, base: str | os.PathLike | None = None) -> Path:
    """The checkpoint that an adapter belongs on: ``base`` where it is given, else the recorded path.

    Raises:
        InputError: there is no checkpoint.
    """
    path = Path(directory) / ADAPTER_BASE
    recorded = json_object(path).get('checkpoint')
    found = Path(base or recorded or '')
    if not (base or recorded) or not ((found / 'config.json').is_file() or is_adapter(found)):
        raise InputError(f'{directory}: this adapter belongs on {recorded}, and there is no checkpoint at {found}: put '
                         f'it back, give --base DIR to the export, or write where it is into the field checkpoint of '
                         f'{path}')
    return found


def base_directory(directory: str | os.PathLike, base: str | os.PathLike | None = None) -> Path:
    """The whole checkpoint behind a directory: itself, or what the adapter in it belongs on in the end.

    Raises:
        InputError: an adapter whose base is missing, or that leads back to itself.
    """
    found, seen = Path(directory), set()
    while is_adapter(found):
        if found.resolve() in seen:
            raise InputError(f'{directory}: this adapter leads back to itself; correct the field checkpoint of '
                             f'{found / ADAPTER_BASE}')
        seen.add(found.resolve())
        found, base = recorded_base(found, base), None
    return found


def read_config(directory: str | os.PathLike) -> dict:
    """``config.json`` of a checkpoint directory (of an adapter: of its base).

    Raises:
        InputError: missing, not JSON, or no Sa2VA configuration.
    """
    path = base_directory(directory) / 'config.json'
    config = json_object(path)
    check_config(config, str(path))
    return config


def read_sam2_dims(directory: str | os.PathLike) -> dict:
    """Sizes of SAM2 or SAM 3: ``sam2_dims.json`` where it is there, else the released ones (of an adapter: its base's).

    No released ``config.json`` says which of the two a checkpoint has; the names of its tensors do.
    """
    path = base_directory(directory) / SAM2_DIMS
    dims = json_object(path) if path.is_file() else {}
    if 'kind' not in dims and any(name.startswith(PREFIX + 'backbone.') for name in stored_names(path.parent)):
        dims = dict(dims, kind='sam3')
    return complete_dims(dims, str(path))


def read_view(directory: str | os.PathLike, base: str | os.PathLike | None = None) -> ViewGeometry:
    """How closely a checkpoint's policy looks: the field ``view`` of ``sa2va_dpo.json``, of an adapter its own or else
    its base's; where there is none, at whole images.

    Raises:
        InputError: the file is broken; names it.
    """
    base_directory(directory, base)  # an adapter without a base, or on itself, is said there
    found = Path(directory)
    while not (found / OWN_FILE).is_file() and is_adapter(found):
        found, base = recorded_base(found, base), None
    path = found / OWN_FILE
    if not path.is_file():
        return ViewGeometry()
    content = json_object(path)
    unknown = sorted(set(content) - {'view'})
    if unknown or not isinstance(content.get('view', {}), dict):
        raise InputError(f'{path}: {unknown[0] if unknown else "view"}: must be one object called view: correct it, or '
                         f'remove the file to look at whole images')
    return ViewGeometry.of(content.get('view'), f'{path}: view')


def write_view(directory: Path, view: ViewGeometry | Mapping | int | str) -> None:
    """Let a checkpoint directory state its view; nothing is written that says what no file says as well.

    Args:
        view: see ``ViewGeometry.of``.

    Raises:
        InputError: an impossible view.
    """
    found = ViewGeometry.of(view)
    if not found.plain or (directory / OWN_FILE).is_file():
        write_json(directory / OWN_FILE, dict(view=found.to_dict()))


def is_released_size(directory: str | os.PathLike) -> bool:
    """Whether the weights of a checkpoint are larger than ``RELEASED_BYTES`` (the smallest released one has 2 GB).

    False where there is no directory: that is for the reading to say.
    """
    found = base_directory(directory)
    files = found.iterdir() if found.is_dir() else ()
    return sum(path.stat().st_size for path in files if path.suffix in ('.safetensors', '.bin')) > RELEASED_BYTES


def default_dtype(directory: str | os.PathLike, device: str | torch.device) -> torch.dtype:
    """The dtype in which a checkpoint is loaded when nobody says: bfloat16 for released sizes on a GPU, else float32.

    Small models gain nothing from bfloat16, large ones may not fit otherwise; CPUs compute it slowly.
    """
    return torch.bfloat16 if torch.device(device).type == 'cuda' and is_released_size(directory) else torch.float32


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules built inside have parameters on the meta device; buffers (frequencies) are real."""
    with init_empty_weights(include_buffers=False):
        yield


def key_groups(config: Mapping, names) -> list[KeyGroup]:
    """Every mapping between released tensors and the tensors of ``Sa2VAModel``.

    Args:
        names: keys of ``Sa2VAModel.state_dict()``.
    """
    names = list(names)
    groups = mllm_groups(config, family_of(config), names)
    groups += [rename(n, n) for n in names if n.startswith('text_hidden_fcs.')]
    grounding = [n[len('sam2.'):] for n in names if n.startswith('sam2.')]
    third = any(n.startswith('vision_encoder.neck.fpn_layers.') for n in grounding)
    return groups + (sam3_groups(grounding) if third else sam2_groups(grounding))


def carried_shapes(config: Mapping, sam2_dims: Mapping) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of tensors that no mask depends on: video memory, the vocabulary head, layers of a vision
    tower behind the one that is read.

    They live in no module; an export copies them from the source.
    """
    key, shape, *_ = vocabulary_head(config, family_of(config))
    return {**(sam3_carried_shapes if is_sam3(sam2_dims) else video_memory_shapes)(sam2_dims),
            **unread_mllm_shapes(config, family_of(config)), key: shape}


def released_shapes(config: Mapping, sam2_dims: Mapping | None = None) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of a complete checkpoint of this configuration (no memory is allocated)."""
    dims = complete_dims(sam2_dims)
    with empty_weights():
        model = Sa2VAModel(config, dims)
    return shapes_of(model, config, dims)


def shapes_of(model: Sa2VAModel, config: Mapping, dims: Mapping) -> dict[str, tuple[int, ...]]:
    """As :func:`released_shapes`, of a model that exists already (on any device)."""
    state = model.state_dict()
    shapes = dict(carried_shapes(config, dims))
    for group in key_groups(config, state):
        tensors = group.dump([torch.empty_like(state[name], device='meta') for name in group.ours])
        shapes.update({key: tuple(t.shape) for key, t in zip(group.released, tensors)})
    return shapes


def assign(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter (whose ``requires_grad`` stays) or of a buffer, without a copy."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if leaf in module._parameters:
        trained = module._parameters[leaf].requires_grad
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=trained)
    else:
        module._buffers[leaf] = tensor
