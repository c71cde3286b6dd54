"""A model as a directory in the released layout, exact to the byte where nothing was trained."""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, Mapping

import torch

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory, write_json, write_text
from sa2va_dpo.models.grounding import is_sam3
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.trainable import lora_layers
from sa2va_dpo.models.view_geometry import ViewGeometry

from .keys import KeyGroup
from .layout import (
    CARD_FILE,
    REFINEMENT_FILE,
    SAM2_DIMS,
    base_directory,
    empty_weights,
    is_adapter,
    json_object,
    key_groups,
    read_config,
    read_sam2_dims,
    write_view,
)
from .refinement import write_refinement
from .store import CheckpointStore, other_weight_files, weight_files, write_like

# What a checkpoint says about itself is not true of what is made from it, and has to be kept: its licence is there.
OF_THE_BASE = {'README.md': 'BASE_README.md', CARD_FILE: f'BASE_{CARD_FILE}'}

# A copy that looks in another way is not what the card's figures were measured on.
_CARD = {CARD_FILE: OF_THE_BASE[CARD_FILE]}


def _copy_others(source: Path, target: Path, skip: set[str], rename: Mapping[str, str] | None = None) -> None:
    """Copy what is not in ``skip``, under another name where ``rename`` has one."""
    rename = {name: new for name, new in (rename or {}).items() if (source / name).is_file()}
    skip = skip | set(rename.values())  # of an earlier generation
    for path in sorted(source.iterdir()):
        if path.name in skip or (path.name.startswith('.') and path.is_dir()):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy2(path, target / rename.get(path.name, path.name))


def export_checkpoint(model: Sa2VAModel, source_dir: str | os.PathLike, out_dir: str | os.PathLike,
                      view: ViewGeometry | Mapping | int | str | None = None, card: str | None = None) -> Path:
    """Write a model in the released layout of the directory it came from.

    Weight files keep the names, shards, key order, key names and dtypes of the source, index and all other files
    (``config.json`` with its ``auto_map``, tokenizer, ``.py`` files) are copied untouched, and the carried-through
    tensors (video memory, vocabulary head) are copied bit for bit. ``export(load(x))`` equals ``x`` byte for byte.

    Only what the model changed is taken from it: a number that is the stored one, rounded to the model's dtype, is
    written as it is stored, so a bfloat16 model of a float32 checkpoint exports every frozen tensor exactly. LoRA is
    merged on the way, in float32, onto the stored weights; what the model never read (``device='meta'``) is copied.
    A refinement is a file of its own beside them (``sa2va_dpo_refinement.safetensors``).

    Args:
        model: a ``Sa2VAModel``, with or without its LoRA layers, on any device; left as it is.
        source_dir: the released directory that fixes the layout (of an adapter: its base).
        out_dir: new or empty; it appears only when complete.
        view: how closely the policy looks, stated beside the weights; None: as the source states it.
        card: text of ``MODEL_CARD.md``; the source's own card and ``README.md`` then go on as ``BASE_...``. None writes
            none and copies those as they are.

    Raises:
        InputError: the output directory is in use, or the source holds weights in two formats.
        ValueError: the model's tensors are not those of the source's configuration, or a merged one is not finite.
    """
    source_dir, out_dir = base_directory(source_dir), Path(out_dir)
    config, store = read_config(source_dir), CheckpointStore(source_dir)
    with empty_weights():
        expected = set(Sa2VAModel(config, read_sam2_dims(source_dir)).state_dict())
    state = {name.replace('.base_layer.', '.'): tensor for name, tensor in model.state_dict().items()
             if '.lora_' not in name and not name.startswith('refinement.')}
    unread = {name for name in expected if name.startswith('mllm.')} if model.mllm is None else set()
    if set(state) != expected - unread:
        odd = sorted(set(state) ^ (expected - unread))
        raise ValueError(f'the model does not have the tensors of {source_dir} ({odd[0]}, {len(odd)} in all)')
    unread |= {name for name, tensor in state.items() if tensor.is_meta}
    adapters = {f'{name}.weight': layer for name, layer in lora_layers(model)}
    producer = {key: (group, i) for group in key_groups(config, expected) for i, key in enumerate(group.released)}
    last: list = [None, None]  # keys of one group follow each other: it is put together once

    def tensor_of(key: str) -> torch.Tensor:
        group, i = producer.get(key, (None, 0))
        if group is None or (unread.issuperset(group.ours) and not adapters.keys() & set(group.ours)):
            return store.read(key)
        if last[0] is not group:
            last[:] = group, _released_tensors(group, store, state, unread, adapters)
        return last[1][i]

    write_directory_like(store, out_dir, tensor_of, view, card, refined=model)
    return out_dir


@torch.no_grad()
def _released_tensors(group: KeyGroup, store: CheckpointStore, state: dict[str, torch.Tensor], unread: set[str],
                      adapters: dict) -> list[torch.Tensor]:
    """The tensors of a group as they are to be stored, on the CPU."""
    stored = [store.read(key) for key in group.released]
    wide = torch.float64 if stored[0].dtype == torch.float64 else torch.float32
    values = []
    for name, value in zip(group.ours, group.load([tensor.to(wide) for tensor in stored])):
        if name not in unread:
            mine = state[name].detach().cpu()
            value = torch.where(mine == value.to(mine.dtype), value, mine.to(wide))
        if name in adapters:
            layer = adapters[name]
            for adapter in layer.active_adapters:
                value = value + layer.get_delta_weight(adapter).to('cpu', wide)
            if not torch.isfinite(value).all():
                raise ValueError(f'{name}: not finite once its adapter is merged; the training has diverged')
        values.append(value)
    return [torch.where(new == old.to(wide), old, new.to(old.dtype)) for new, old in zip(group.dump(values), stored)]


def write_directory_like(store: CheckpointStore, out_dir: Path, tensor_of: Callable[[str], torch.Tensor],
                         view: ViewGeometry | Mapping | int | str | None = None, card: str | None = None,
                         refined: Sa2VAModel | None = None) -> None:
    """A directory like the store's: same weight files with other numbers, all other files copied untouched.

    Args:
        tensor_of: released key -> CPU tensor of the stored shape and dtype; called once per key.
        out_dir: new or empty; it appears only when complete.
        view, card: as in :func:`export_checkpoint`.
        refined: the model whose refinement, or lack of one, takes the place of the store's; None: the store's goes on.

    Raises:
        InputError: the output directory is in use, or the store's directory holds weights in two formats.
    """
    double = other_weight_files(store)
    if double:
        raise InputError(f'{store.directory}: holds {double[0]} beside {store.files[0]}; remove the one that is not to '
                         f'be exported, it would be stale')
    with new_directory(out_dir) as part:
        write_like(store, part, tensor_of)
        skip = weight_files(store) | ({REFINEMENT_FILE} if refined is not None else set())
        _copy_others(store.directory, part, skip=skip, rename=None if card is None else OF_THE_BASE)
        if refined is not None and refined.refinement is not None:
            write_refinement(part, refined, store.directory)
        if view is not None:
            write_view(part, view)
        if card is not None:
            write_text(part / CARD_FILE, card)


def copy_with_view(directory: str | os.PathLike, out_dir: str | os.PathLike, view: ViewGeometry) -> Path:
    """The same checkpoint, or adapter, that looks at images in another way; weight files are linked where they can be.

    Args:
        out_dir: new or empty; it appears only when complete.

    Raises:
        InputError: the output directory is in use.
    """
    directory = Path(directory)
    with new_directory(Path(out_dir)) as part:
        weights = {path.name for path in directory.iterdir() if path.suffix in ('.safetensors', '.bin')}
        _copy_others(directory, part, skip=weights, rename=_CARD)
        for name in weights:
            try:
                # The real file: a link to a link would end where the first is removed.
                os.link((directory / name).resolve(), part / name)
            except OSError:  # another file system
                shutil.copy2(directory / name, part / name)
        write_view(part, view)
    return Path(out_dir)


def copy_with_sam_size(directory: str | os.PathLike, out_dir: str | os.PathLike, sam_size: int) -> Path:
    """The same weights with SAM2 looking at another number of pixels; only ``sam2_dims.json`` differs.

    Hiera's position embeddings are interpolated to any grid, as SAM 2 (arXiv 2408.00714) does it, so the tensors serve
    every size. A finer grid gives a finer map of logits (stride 4) and costs computation in proportion to its area.

    Args:
        directory: a checkpoint whose ``sam2_dims.json`` states its sizes.
        out_dir: new or empty; it appears only when complete.
        sam_size: side of the square SAM2 input, pixels; a multiple of 64.

    Raises:
        InputError: a released checkpoint without ``sam2_dims.json`` (upstream's code always gives it 1024 px), an
            impossible size, a checkpoint on SAM 3, an adapter, or the output directory is in use.
    """
    directory, out_dir = Path(directory), Path(out_dir)
    if is_adapter(directory):
        raise InputError(f'{directory}: is an adapter, its input size is that of its checkpoint; merge it first '
                         f'(tools/export_hf.py {directory} OUTPUT)')
    path = directory / SAM2_DIMS
    if not path.is_file():
        raise InputError(
            f'{directory}: has no {SAM2_DIMS}, so it is read at 1024 px wherever it is used; its input size '
            f'cannot be changed'
        )
    if is_sam3(read_sam2_dims(directory)):
        raise InputError(f'{directory}: looks at images with SAM 3, whose input size is fixed')
    if sam_size < 64 or sam_size % 64:
        raise InputError(f'sam_size: {sam_size} is no multiple of 64 pixels')
    dims = dict(json_object(path), image_size=sam_size)
    with new_directory(out_dir) as part:
        _copy_others(directory, part, skip={SAM2_DIMS}, rename=_CARD)
        write_json(part / SAM2_DIMS, dims)
    return out_dir
