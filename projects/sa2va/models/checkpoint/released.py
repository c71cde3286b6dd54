"""Released Hugging Face layout <-> our modules, exact both ways. The only door through which ``models`` reads files.

Nothing from a checkpoint directory is ever executed: weights are safetensors or ``weights_only`` pickles, configuration
is JSON, and ``.py`` files are only copied along.
"""
from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping

import torch
from accelerate import init_empty_weights

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory, read_json, write_json
from .adapter import apply_adapter, write_adapter
from .initialise import initialise, initial_video_memory
from .keys import KeyGroup, rename
from .keys_mllm import mllm_groups, vocabulary_head
from .keys_sam2 import sam2_groups, video_memory_shapes
from .store import CheckpointStore, other_weight_files, weight_files, write_like
from sa2va_dpo.models.mllm import check_config, family_of
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.sam2 import complete_dims

SAM2_DIMS = 'sam2_dims.json'
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
                    'vocab.json', 'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'preprocessor_config.json',
                    'video_preprocessor_config.json')


def _read_json(path: Path) -> dict:
    return read_json(path, 'repair or download it again', 'give a directory in the released Sa2VA layout', kind=dict)


def read_config(directory: str | os.PathLike) -> dict:
    """``config.json`` of a checkpoint directory.

    Raises:
        InputError: missing, not JSON, or no Sa2VA configuration.
    """
    path = Path(directory) / 'config.json'
    config = _read_json(path)
    check_config(config, str(path))
    return config


def read_sam2_dims(directory: str | os.PathLike) -> dict:
    """SAM2 sizes: ``sam2_dims.json`` when it is there, else Hiera-Large at 1024 px."""
    path = Path(directory) / SAM2_DIMS
    return complete_dims(_read_json(path) if path.is_file() else None, str(path))


@dataclass(frozen=True)
class Source:
    """The directory a model came from. Carried-through tensors are read from it when they are needed."""

    directory: Path
    config: dict

    def vocabulary_head(self) -> torch.Tensor:
        """The vocabulary head ``[vocabulary, D]`` as stored (the embedding when the two are tied and it is absent)."""
        store = CheckpointStore(self.directory)
        key, _, embedding, tied = vocabulary_head(self.config, family_of(self.config))
        return store.read(embedding if tied and key not in store.tensors else key)


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
    groups += sam2_groups([n[len('sam2.'):] for n in names if n.startswith('sam2.')])
    return groups


def carried_shapes(config: Mapping, sam2_dims: Mapping) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of tensors that no mask depends on: video memory and the vocabulary head.

    They live in no module; an export copies them from the source.
    """
    key, shape, *_ = vocabulary_head(config, family_of(config))
    return {**video_memory_shapes(sam2_dims), key: shape}


def released_shapes(config: Mapping, sam2_dims: Mapping | None = None) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of a complete checkpoint of this configuration (no memory is allocated)."""
    dims = complete_dims(sam2_dims)
    with empty_weights():
        model = Sa2VAModel(config, dims)
    return _released_shapes(model, config, dims)


def _released_shapes(model: Sa2VAModel, config: Mapping, dims: Mapping) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    shapes = dict(carried_shapes(config, dims))
    for group in key_groups(config, state):
        tensors = group.dump([torch.empty_like(state[name], device='meta') for name in group.ours])
        shapes.update({key: tuple(t.shape) for key, t in zip(group.released, tensors)})
    return shapes


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


def _assign(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, without a copy."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def load_checkpoint(directory: str | os.PathLike, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = 'cpu', *, requires_grad: bool = False,
                    with_mllm: bool = True) -> Sa2VAModel:
    """The model of a released directory, in eval mode.

    Tensors are read one at a time, in file order, and go straight to ``device`` in ``dtype``, piece by piece, so that
    host memory peaks a little above what stays on the host. Frequency buffers stay float32.

    Args:
        directory: released Hugging Face layout; ``sam2_dims.json`` overrides the SAM2 sizes.
        dtype: of all parameters.
        device: where they go.
        requires_grad: True opens every parameter; the default freezes all (see ``models/trainable.py``).
        with_mllm: False leaves the language model and its vision tower on the disk (the model then takes only batches that
            bring their [SEG] states); the names and shapes of their tensors are checked all the same.

    Raises:
        InputError: a missing, unexpected or mis-shaped tensor (named), a damaged file, a foreign configuration.
    """
    directory = Path(directory)
    config, dims, store = read_config(directory), read_sam2_dims(directory), CheckpointStore(directory)
    with empty_weights():
        model = Sa2VAModel(config, dims)
    head, _, _, tied = vocabulary_head(config, family_of(config))
    _check_keys(store, _released_shapes(model, config, dims), optional={head} if tied else set())
    if not with_mllm:
        model.mllm = None

    buffers = {name for name, _ in model.named_buffers()}
    for group in sorted(key_groups(config, model.state_dict()), key=lambda g: store.order(g.released[0])):
        kind = torch.float32 if group.ours[0] in buffers else dtype
        for name, tensor in zip(group.ours, group.load([store.read(k, kind, device) for k in group.released])):
            _assign(model, name, tensor)
    store.close()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    model.source = Source(directory.resolve(), config)
    return model.eval().requires_grad_(requires_grad)


def _copy_others(source: Path, target: Path, skip: set[str]) -> None:
    for path in sorted(source.iterdir()):
        if path.name in skip or (path.name.startswith('.') and path.is_dir()):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy2(path, target / path.name)


def export_checkpoint(model: Sa2VAModel, source_dir: str | os.PathLike, out_dir: str | os.PathLike) -> Path:
    """Write a model in the released layout of the directory it came from.

    Weight files keep the names, shards, key order, key names and dtypes of the source, index and all other files
    (``config.json`` with its ``auto_map``, tokenizer, ``.py`` files) are copied untouched, and the carried-through
    tensors (video memory, vocabulary head) are copied bit for bit. ``export(load(x))`` equals ``x`` byte for byte.

    Args:
        model: parameters under the names of an untouched ``Sa2VAModel`` (adapters merged by the caller).
        source_dir: the released directory that fixes the layout.
        out_dir: new or empty; it appears only when complete.

    Raises:
        InputError: the output directory is in use, or the source holds weights in two formats.
        ValueError: the model's tensors are not those of the source's configuration (unmerged adapters).
    """
    source_dir, out_dir = Path(source_dir), Path(out_dir)
    config, store = read_config(source_dir), CheckpointStore(source_dir)
    with empty_weights():
        expected = set(Sa2VAModel(config, read_sam2_dims(source_dir)).state_dict())
    state = model.state_dict()
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise ValueError(f'the model does not have the tensors of {source_dir} ({odd[0]}, {len(odd)} in all); '
                         f'merge adapters first')
    producer = {key: (group, i) for group in key_groups(config, state) for i, key in enumerate(group.released)}

    def tensor_of(key: str) -> torch.Tensor:
        if key not in producer:
            return store.read(key)
        group, i = producer[key]
        tensors = group.dump([state[name].detach() for name in group.ours])
        return tensors[i].to(device='cpu', dtype=store.tensors[key].dtype)

    write_directory_like(store, out_dir, tensor_of)
    return out_dir


def write_directory_like(store: CheckpointStore, out_dir: Path, tensor_of: Callable[[str], torch.Tensor]) -> None:
    """A directory like the store's: same weight files with other numbers, all other files copied untouched.

    Args:
        tensor_of: released key -> CPU tensor of the stored shape and dtype; called once per key.
        out_dir: new or empty; it appears only when complete.

    Raises:
        InputError: the output directory is in use, or the store's directory holds weights in two formats.
    """
    double = other_weight_files(store)
    if double:
        raise InputError(f'{store.directory}: holds {double[0]} beside {store.files[0]}; remove the one that is not to '
                         f'be exported, it would be stale')
    with new_directory(out_dir) as part:
        write_like(store, part, tensor_of)
        _copy_others(store.directory, part, skip=weight_files(store))


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
            impossible size, or the output directory is in use.
    """
    directory, out_dir = Path(directory), Path(out_dir)
    path = directory / SAM2_DIMS
    if not path.is_file():
        raise InputError(f'{directory}: has no {SAM2_DIMS}, so it is read at 1024 px wherever it is used; its input size '
                         f'cannot be changed')
    if sam_size < 64 or sam_size % 64:
        raise InputError(f'sam_size: {sam_size} is no multiple of 64 pixels')
    dims = dict(_read_json(path), image_size=sam_size)
    with new_directory(out_dir) as part:
        _copy_others(directory, part, skip={SAM2_DIMS})
        write_json(part / SAM2_DIMS, dims)
    return out_dir


def export_adapter(model: Sa2VAModel, out_dir: str | os.PathLike) -> Path:
    """Write what was trained as an adapter (see ``checkpoint/adapter.py``), to be put on the start checkpoint again with
    :func:`load_adapter`.

    Args:
        model: with its LoRA layers in place and ``requires_grad`` as in training.
        out_dir: new or empty; it appears only when complete.
    """
    with new_directory(Path(out_dir)) as part:
        write_adapter(model, part, str(model.source.directory) if model.source else '')
    return Path(out_dir)


def load_adapter(model: Sa2VAModel, directory: str | os.PathLike) -> int:
    """Put an adapter onto a loaded checkpoint, in place; returns the number of tensors taken.

    Raises:
        InputError: no adapter there, or one of another model.
    """
    return apply_adapter(model, directory)


def _check_tokenizer(directory: Path, vocabulary: int) -> None:
    path = directory / 'tokenizer.json'
    tokenizer = _read_json(path)
    added = {token['content']: token['id'] for token in tokenizer.get('added_tokens', [])}
    if '[SEG]' not in added:
        raise InputError(f'{path}: no [SEG] token; take the tokenizer of a Sa2VA checkpoint')
    top = max([*added.values(), *tokenizer.get('model', {}).get('vocab', {}).values()])
    if top >= vocabulary:
        raise InputError(f'{path}: token id {top} does not fit vocab_size {vocabulary} of the configuration; '
                         f'make vocab_size at least {top + 1}')


def init_checkpoint(config: dict, sam2_dims: dict | None, tokenizer_dir: str | os.PathLike,
                    out_dir: str | os.PathLike, seed: int = 0) -> Path:
    """Write a randomly initialised checkpoint in the released layout (float32, one file).

    Args:
        config: a released-form ``config.json``.
        sam2_dims: sizes of SAM2, written as ``sam2_dims.json``; None means Hiera-Large at 1024 px.
        tokenizer_dir: tokenizer and processor files are copied from here.
        out_dir: new or empty.
        seed: of all random numbers; the same seed gives the same bytes.

    Raises:
        InputError: the output directory is in use, or the tokenizer has no [SEG] token or is larger than the
            vocabulary.
    """
    from safetensors.torch import save_file

    out_dir, tokenizer_dir = Path(out_dir), Path(tokenizer_dir)
    dims = complete_dims(sam2_dims)
    check_config(config)
    key, shape, *_ = vocabulary_head(config, family_of(config))
    _check_tokenizer(tokenizer_dir, vocabulary=shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sa2VAModel(config, dims)
        initialise(model)
        tensors = {k: initial_video_memory(k, s) for k, s in video_memory_shapes(dims).items()}
        tensors[key] = torch.randn(shape) * shape[1] ** -0.5
    state = model.state_dict()
    for group in key_groups(config, state):
        tensors.update(zip(group.released, group.dump([state[name] for name in group.ours])))
    with new_directory(out_dir) as part:
        save_file({k: tensors[k].contiguous().clone() for k in sorted(tensors)}, part / 'model.safetensors',
                  metadata={'format': 'pt'})
        write_json(part / 'config.json', config, indent=2)
        if sam2_dims is not None:
            write_json(part / SAM2_DIMS, sam2_dims)
        for name in _TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, part / name)
    return out_dir
