"""Checkpoints that are drawn and written one tensor at a time."""
import copy
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models import random_checkpoint
from sa2va_dpo.models.checkpoint import (
    export_checkpoint,
    init_checkpoint,
    load_checkpoint,
    released_shapes,
    stream_checkpoint,
)
from sa2va_dpo.models.variants import RELEASED, released_name


@pytest.fixture(scope='module', params=['internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl'])
def source(request, shared_dir):
    return shared_dir / 'fixtures/sa2va_parity' / request.param


def settings(source):
    dims = source / 'sam2_dims.json'
    return json.loads((source / 'config.json').read_text()), json.loads(dims.read_text()) if dims.is_file() else None


def test_shards_hold_every_tensor_and_load(source, tmp_path):
    config, dims = settings(source)
    count = stream_checkpoint(config, dims, source, tmp_path / 'a', seed=1, shard_bytes=100_000)
    stream_checkpoint(config, dims, source, tmp_path / 'b', seed=1, shard_bytes=100_000)
    shapes = released_shapes(config, dims)
    assert count == sum(math.prod(shape) for shape in shapes.values())
    index = json.loads((tmp_path / 'a/model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == 2 * count and sorted(index['weight_map']) == sorted(shapes)
    files = sorted(set(index['weight_map'].values()))
    assert len(files) > 2 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
    found = {}
    for file in files:
        # Read by the format's own library, not by ours.
        part = load_file(tmp_path / 'a' / file)
        assert {index['weight_map'][key] for key in part} == {file}
        bytes_of = sum(tensor.nbytes for tensor in part.values())
        assert bytes_of <= 100_000 or len(part) == 1
        assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()
        found.update(part)
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == shapes
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    model = load_checkpoint(tmp_path / 'a', dtype=torch.bfloat16)
    export_checkpoint(model, tmp_path / 'a', tmp_path / 'c')
    assert all((tmp_path / 'a' / file).read_bytes() == (tmp_path / 'c' / file).read_bytes() for file in files)


def test_numbers_are_spread_as_those_of_init_checkpoint(source, tmp_path):
    config, dims = settings(source)
    init_checkpoint(config, dims, source, tmp_path / 'whole', seed=1)
    stream_checkpoint(config, dims, source, tmp_path / 'streamed', seed=2, dtype=torch.float32)
    whole, streamed = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'streamed'))
    assert whole.keys() == streamed.keys()
    for key, tensor in whole.items():
        if tensor.numel() >= 256:
            std, mean = tensor.std().item(), tensor.mean().item()
            assert streamed[key].std() == pytest.approx(std, rel=0.25, abs=1e-6), key
            assert streamed[key].mean() == pytest.approx(mean, abs=0.3 * std + 1e-6), key
        elif tensor.numel() > 1 and tensor.std() == 0:
            assert torch.equal(streamed[key], tensor), key


def test_no_room_is_said_before_a_byte_is_written(source, tmp_path, monkeypatch):
    config, dims = settings(source)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match='the weights take .* are free there; make room'):
        stream_checkpoint(config, dims, source, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('said, meant', [
    ('1B', 'Sa2VA-1B'), ('8b', 'Sa2VA-8B'), ('InternVL3-8B', 'Sa2VA-InternVL3-8B'),
    ('Sa2VA-Qwen3-VL-4B', 'Sa2VA-Qwen3-VL-4B')])
def test_sizes_by_their_short_names(said, meant):
    assert released_name(said) == meant


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(InputError, match='did you mean Sa2VA-InternVL3-8B'):
        released_name('InternVL-8B')
    with pytest.raises(InputError, match='there are Sa2VA-1B, Sa2VA-4B'):
        released_name('400B')


@pytest.mark.parametrize('name', ['Sa2VA-1B', 'Sa2VA-8B', 'Sa2VA-Qwen2_5-VL-3B', 'Sa2VA-Qwen3-VL-4B',
                                  'Sa2VA-LLaVA-1.5-7B'])
def test_a_released_directory_is_one_for_the_preprocessor(name, tmp_path, monkeypatch):
    """The real configuration with few and narrow layers: tokenizer, template and processor must fit."""
    config = copy.deepcopy(RELEASED[name])
    small = dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, hidden_size=64,
                 intermediate_size=64, vocab_size=1000)
    if 'llm_config' in config:
        config['llm_config'].update(small)
        config['vision_config'].update(num_hidden_layers=1, hidden_size=32, intermediate_size=32,
                                       num_attention_heads=2)
    elif 'llama' in str(config):
        config['text_config'].update(small)
        config.update(vocab_size=1000)
        config['vision_config'].update(num_hidden_layers=2, hidden_size=32, intermediate_size=32,
                                       num_attention_heads=2)
    else:
        sections = [8, 0, 0]
        config['text_config'].update(small, head_dim=16)
        config['text_config']['rope_scaling'] = dict(config['text_config']['rope_scaling'], mrope_section=sections)
        config['vision_config'].update(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=64)
    monkeypatch.setitem(random_checkpoint.RELEASED, name, config)
    monkeypatch.setattr(random_checkpoint, 'stream_checkpoint',
                        lambda config, dims, *rest, **settings: stream_checkpoint(
                            config, dict(embed_dim=16, stages=[1, 1, 2, 1], global_att_blocks=[3]), *rest, **settings))
    full, _ = random_checkpoint.write_random_checkpoint(name, tmp_path / 'out')
    assert full == name
    pre = Sa2VAPreprocessor.from_pretrained(tmp_path / 'out')
    sample = pre(np.random.default_rng(0).integers(0, 255, (448, 448, 3), np.uint8), 'Vessel?')
    assert len(sample['seg_positions']) == 1
    assert pre.sam_size == 1024
    load_checkpoint(tmp_path / 'out', device='meta')
