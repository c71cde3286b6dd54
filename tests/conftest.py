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
