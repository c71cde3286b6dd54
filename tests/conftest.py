"""Fixtures shared by all tiers."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores are shared by everything a test starts; more threads only add contention.
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    path = REPO_ROOT.parent / 'shared'
    if not path.is_dir():
        pytest.skip(f'{path} is not here: the parity fixtures and real images lie beside the checkout')
    return path


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason='no CUDA device on this machine')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(reason)


@pytest.fixture(scope='session')
def micro_checkpoint(tmp_path_factory) -> Path:
    """A released-layout directory of the tiny architecture shrunk to 128 px: random weights, about a second a
    forward."""
    import copy

    from sa2va_dpo.models.checkpoint import init_checkpoint
    from sa2va_dpo.models.tiny import CONFIG, SAM2_DIMS, write_tokenizer

    root = tmp_path_factory.mktemp('micro')
    config = copy.deepcopy(CONFIG)
    config['force_image_size'] = config['vision_config']['image_size'] = 56
    config['vision_config'].update(num_hidden_layers=1, hidden_size=32, intermediate_size=64)
    config['llm_config'].update(num_hidden_layers=2, hidden_size=64, intermediate_size=96,
                                vocab_size=write_tokenizer(root / 'tokenizer'))
    config['hidden_size'] = 64
    dims = dict(SAM2_DIMS, image_size=128, embed_dim=16, stages=[1, 1, 2, 1], global_att_blocks=[3], hidden_dim=64)
    init_checkpoint(config, dims, root / 'tokenizer', root / 'checkpoint', seed=3)
    return root / 'checkpoint'
