"""A new checkpoint with random weights, in the released layout."""
from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory, write_json
from sa2va_dpo.models.grounding import complete_dims
from sa2va_dpo.models.mllm import check_config, family_of
from sa2va_dpo.models.sa2va import Sa2VAModel

from .initialise import Start, initial_video_memory, initialise, starts
from .keys_mllm import vocabulary_head
from .layout import SAM2_DIMS, carried_shapes, empty_weights, json_object, key_groups, shapes_of
from .store import write_new

_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
                    'vocab.json', 'merges.txt', 'tokenizer.model', 'chat_template.jinja', 'preprocessor_config.json',
                    'video_preprocessor_config.json')


def _check_tokenizer(directory: Path, vocabulary: int) -> None:
    path = directory / 'tokenizer.json'
    tokenizer = json_object(path)
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
        tensors = {k: initial_video_memory(k, s) for k, s in carried_shapes(config, dims).items() if k != key}
        tensors[key] = torch.randn(shape) * shape[1] ** -0.5
    state = model.state_dict()
    for group in key_groups(config, state):
        tensors.update(zip(group.released, group.dump([state[name] for name in group.ours])))
    with new_directory(out_dir) as part:
        save_file({k: tensors[k].contiguous().clone() for k in sorted(tensors)}, part / 'model.safetensors',
                  metadata={'format': 'pt'})
        _write_rest(part, config, sam2_dims, tokenizer_dir)
    return out_dir


def _write_rest(part: Path, config: dict, sam2_dims: dict | None, tokenizer_dir: Path) -> None:
    """Everything of a checkpoint directory but its weights."""
    write_json(part / 'config.json', config, indent=2)
    if sam2_dims is not None:
        write_json(part / SAM2_DIMS, sam2_dims)
    for name in _TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, part / name)


def stream_checkpoint(config: dict, sam2_dims: dict | None, tokenizer_dir: str | os.PathLike,
                      out_dir: str | os.PathLike, seed: int = 0, *, dtype: torch.dtype = torch.bfloat16,
                      device: str | torch.device = 'cpu', shard_bytes: int = 5_000_000_000) -> int:
    """As :func:`init_checkpoint` for sizes of which no copy should be in memory: one tensor at a time is drawn, on
    ``device``, and written, in sharded safetensors files.

    Args:
        dtype: in which tensors are stored.
        device: where random numbers are drawn: a GPU is some hundred times as fast as a CPU. The same seed gives the
            same bytes on the same kind of device.
        shard_bytes: largest weight file.

    Returns:
        The number of parameters, video-memory tensors included.

    Raises:
        InputError: as :func:`init_checkpoint`, or the disk has no room for the weights.
    """
    out_dir, tokenizer_dir = Path(out_dir), Path(tokenizer_dir)
    dims = complete_dims(sam2_dims)
    check_config(config)
    head, head_shape, *_ = vocabulary_head(config, family_of(config))
    _check_tokenizer(tokenizer_dir, vocabulary=head_shape[0])
    with empty_weights():
        model = Sa2VAModel(config, dims)
    shapes = shapes_of(model, config, dims)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    rules: dict[str, Start] = {start.name: start for start in starts(model)}
    producer = {key: group for group in key_groups(config, model.state_dict()) for key in group.released}
    waiting: dict[str, torch.Tensor] = {}  # of a group that was drawn for another of its keys

    def tensor_of(key: str) -> torch.Tensor:
        bar.update(math.prod(shapes[key]))
        if key == head:
            return torch.empty(shapes[key], dtype=dtype, device=device).normal_(0.0, head_shape[1] ** -0.5)
        if key not in producer:
            return initial_video_memory(key, shapes[key])
        if key not in waiting:
            group = producer[key]
            ours = [rules[name].fill(torch.empty(rules[name].tensor.shape, dtype=dtype, device=device))
                    for name in group.ours]
            waiting.update(zip(group.released, group.dump(ours)))
        return waiting.pop(key)

    with new_directory(out_dir) as part:
        free, needed = shutil.disk_usage(part).free, parameters * dtype.itemsize
        if free < needed:
            raise InputError(f'{out_dir}: the weights take {needed / 2 ** 30:.1f} GiB, {free / 2 ** 30:.1f} GiB are '
                             f'free there; make room or choose another disk')
        with torch.random.fork_rng(), tqdm(total=parameters, desc='drawing weights', unit='', unit_scale=True) as bar:
            torch.manual_seed(seed)
            write_new(part, shapes, dtype, tensor_of, shard_bytes)
        _write_rest(part, config, sam2_dims, tokenizer_dir)
    return parameters
