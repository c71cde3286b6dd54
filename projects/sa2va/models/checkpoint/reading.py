"""A directory in the released layout, or an adapter on one, as a model."""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping

import torch

from sa2va_dpo.common.errors import InputError, one_line
from sa2va_dpo.models.grounding import require
from sa2va_dpo.models.mllm import family_of
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.trainable import lora_layers, merge_adapters

from .adapter import check_base, load_adapter
from .keys_mllm import vocabulary_head
from .layout import (
    REFINEMENT_FILE,
    SAM2_DIMS,
    assign,
    base_directory,
    empty_weights,
    is_adapter,
    key_groups,
    read_config,
    read_sam2_dims,
    recorded_base,
    shapes_of,
)
from .refinement import put_refinement
from .store import CheckpointStore, read_safetensors


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        directory: the whole checkpoint; carried-through tensors are read from it when they are needed.
        config: its ``config.json``.
        given: the directory that was asked for: ``directory``, or the adapter that was put on it.
    """

    directory: Path
    config: dict
    given: Path

    def vocabulary_head(self) -> torch.Tensor:
        """The vocabulary head ``[vocabulary, D]`` as stored (the embedding when the two are tied and it is absent)."""
        store = CheckpointStore(self.directory)
        key, _, embedding, tied = vocabulary_head(self.config, family_of(self.config))
        return store.read(embedding if tied and key not in store.tensors else key)


def _build(directory: Path, config: Mapping, dims: Mapping, store: CheckpointStore) -> Sa2VAModel:
    """The model of a configuration on the meta device, once the weights on disk say that it can be as deep as that.

    Raises:
        InputError: more layers than tensors, or sizes that no model can have.
    """
    layers = sum(part[name] for part in (config, *(p for p in config.values() if isinstance(p, Mapping)))
                 for name in ('num_hidden_layers', 'depth') if isinstance(part.get(name), int))
    if layers > len(store.tensors):
        raise InputError(f'{directory / "config.json"}: states {layers} layers, the weights have {len(store.tensors)} '
                         f'tensors; the weights do not belong to this config.json, or the download is incomplete')
    try:
        with empty_weights():
            return Sa2VAModel(config, dims)
    except InputError:
        raise
    except Exception as error:  # built of nothing but these sizes: whatever is wrong is about them
        raise InputError(f'{directory / "config.json"}: no model can be built with these settings '
                         f'({one_line(error)}): repair or download it again') from error


def _check_keys(store: CheckpointStore, shapes: Mapping[str, tuple[int, ...]], optional: set[str]) -> None:
    def some(keys: list[str]) -> str:
        return ', '.join(keys[:5]) + (f' and {len(keys) - 5} more' if len(keys) > 5 else '')

    missing = sorted(set(shapes) - set(store.tensors) - optional)
    if missing:
        raise InputError(f'{store.directory}: missing tensor {some(missing)}; the weights do not belong to this '
                         f'config.json, or the download is incomplete')
    unexpected = sorted(set(store.tensors) - set(shapes))
    if unexpected:
        raise InputError(f'{store.directory}: unexpected tensor {some(unexpected)}; the weights do not belong to this '
                         f'config.json')
    for key, info in store.tensors.items():
        if info.shape != tuple(shapes[key]):
            hint = f' (SAM2 sizes other than Hiera-Large at 1024 px are stated in {SAM2_DIMS})' \
                if key.startswith('grounding_encoder.') else ''
            raise InputError(f'{store.directory / info.file}: {key} has shape {list(info.shape)}, config.json implies '
                             f'{list(shapes[key])}; the weights do not belong to this configuration{hint}')


def load_checkpoint(directory: str | os.PathLike, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = 'cpu', *, requires_grad: bool = False, with_mllm: bool = True,
                    merge: bool = False, base: str | os.PathLike | None = None,
                    place: Callable[[torch.nn.Module, str, torch.Tensor], None] = assign) -> Sa2VAModel:
    """The model of a released directory, or of an adapter on one, in eval mode.

    Tensors are read one at a time, in file order, and go straight to ``device`` in ``dtype``, piece by piece, so that
    host memory peaks a little above what stays on the host. Frequency buffers stay float32.

    Args:
        directory: released Hugging Face layout (``sam2_dims.json`` overrides the SAM2 sizes), or an adapter, whose base
            is loaded and which is put on it.
        dtype: of all parameters.
        device: where they go; ``'meta'`` reads no parameter (names and shapes are checked all the same): for a model
            that says what was trained, and whose other tensors an export copies from file to file.
        requires_grad: True opens every parameter; the default freezes all (see ``models/trainable.py``).
        with_mllm: False leaves the language model and its vision tower on the disk (the model then takes only batches
            that bring their [SEG] states); the names and shapes of their tensors are checked all the same. With an
            adapter they are read first, for it may change them.
        merge: fold an adapter's LoRA factors into the weights, so that the tensors have the names of an untouched model
            and can be trained.
        base: the checkpoint of an adapter, where it is not at the recorded path.
        place: puts a tensor (on ``device``, in ``dtype``) into the model under its name, as it is read
            (``models/quantised.py`` puts something else there).

    Raises:
        InputError: a missing, unexpected or mis-shaped tensor (named), a damaged file, a foreign configuration, an
            adapter of another checkpoint, a checkpoint on SAM 3 where the installed transformers has none.
    """
    directory = Path(directory)
    if is_adapter(directory):
        base_directory(directory, base)  # one that leads back to itself would be followed for ever
        found = recorded_base(directory, base)
        check_base(directory, found)
        model = load_checkpoint(found, dtype, device, merge=True)
        load_adapter(model, directory)
        if merge:
            _merge(model)
        if not with_mllm:
            model.mllm = None
        model.source = replace(model.source, given=directory.resolve())
        return model.eval().requires_grad_(requires_grad)
    if base is not None:
        raise InputError(f'{directory}: is a whole checkpoint and needs no base; leave --base out')
    config, dims = read_config(directory), read_sam2_dims(directory)
    require(dims, str(directory))
    store = CheckpointStore(directory)
    model = _build(directory, config, dims, store)
    head, _, _, tied = vocabulary_head(config, family_of(config))
    _check_keys(store, shapes_of(model, config, dims), optional={head} if tied else set())
    if not with_mllm:
        model.mllm = None

    nowhere = torch.device(device).type == 'meta'
    buffers = {name for name, _ in model.named_buffers()}
    for group in sorted(key_groups(config, model.state_dict()), key=lambda g: store.order(g.released[0])):
        is_buffer = group.ours[0] in buffers
        if nowhere and not is_buffer:
            continue
        kind, target = (torch.float32 if is_buffer else dtype), ('cpu' if nowhere else device)
        for name, tensor in zip(group.ours, group.load([store.read(k, kind, target) for k in group.released])):
            place(model, name, tensor)
    store.close()
    put_refinement(model, directory, dtype, device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not nowhere:
                module._buffers[name] = buffer.to(device)
    model.source = Source(directory.resolve(), config, directory.resolve())
    return model.eval().requires_grad_(requires_grad)


def read_again(model: Sa2VAModel, names: set[str], dtype: torch.dtype) -> None:
    """Put parameters of a model that came from a whole checkpoint back to their stored values, in ``dtype``.

    Args:
        model: on any device; those of its parameters that are on the meta device are put on the CPU.
        names: of an untouched model (without ``base_layer``).
    """
    live = {name.replace('.base_layer.', '.'): (name, tensor) for name, tensor in model.state_dict().items()
            if '.lora_' not in name}
    store = CheckpointStore(model.source.directory)
    for group in key_groups(model.source.config, live):
        if names.intersection(group.ours):
            for name, tensor in zip(group.ours, group.load([store.read(key, dtype) for key in group.released])):
                if name in names:
                    path, old = live[name]
                    assign(model, path, tensor if old.is_meta else tensor.to(old.device))
    store.close()
    if any(name.startswith('refinement.') for name in names):
        path = model.source.directory / REFINEMENT_FILE
        for name, tensor in (read_safetensors(path) if path.is_file() else {}).items():
            old = live[f'refinement.{name}'][1]
            assign(model, f'refinement.{name}', tensor.to('cpu' if old.is_meta else old.device, dtype))


def _merge(model: Sa2VAModel) -> None:
    """Merge adapters; weights that were not read so far (``device='meta'``) are read first, in float32."""
    absent = {f'{name}.weight' for name, layer in lora_layers(model) if layer.get_base_layer().weight.is_meta}
    if absent:
        read_again(model, absent, torch.float32)
    merge_adapters(model)
