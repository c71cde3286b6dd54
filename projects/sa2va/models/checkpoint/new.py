"""A new checkpoint with random weights, in the released layout."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory, write_json
from sa2va_dpo.models.mllm import check_config, family_of
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.sam2 import complete_dims

from .initialise import initial_video_memory, initialise
from .keys_mllm import vocabulary_head
from .keys_sam2 import video_memory_shapes
from .layout import SAM2_DIMS, json_object, key_groups

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
