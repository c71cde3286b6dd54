"""Fixtures shared by all tiers."""
from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# Two cores are shared by everything a test starts; more threads only add contention.
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

# How long an example takes says how busy the machine is; the same examples everywhere.
hypothesis.settings.register_profile('house', deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile('house')

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def talkative(monkeypatch):
    """A command that a test runs in this process makes it quiet; the next test begins as a library user does."""
    from sa2va_dpo.common import console

    monkeypatch.setattr(console, '_quiet', False)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    path = REPO_ROOT.parent / 'shared'
    if not path.is_dir():
        pytest.skip(f'{path} is not here: the parity fixtures and real images lie beside the checkout')
    return path


def pytest_sessionfinish(session):
    """A process of several hands its tally of faults to the one that prints."""
    from tests.faults.harness import TALLY

    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['faults'] = [dict(TALLY.done), dict(TALLY.bad)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    from tests.faults.harness import TALLY

    done, bad = getattr(node, 'workeroutput', {}).get('faults', ({}, {}))
    TALLY.done.update(done)
    TALLY.bad.update(bad)


def pytest_terminal_summary(terminalreporter):
    from tests.faults.harness import TALLY

    if TALLY.done:
        terminalreporter.write_line('faults: ' + ', '.join(f'{n} {kind}' for kind, n in sorted(TALLY.done.items())))
        names = ('lost', 'mixed', 'tracebacks', 'wrong messages', 'wrong exit codes')
        terminalreporter.write_line('faults: ' + ', '.join(f'{TALLY.bad[name]} {name}' for name in names))


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


@pytest.fixture(scope='session')
def llava_checkpoint(tmp_path_factory) -> Path:
    """The released configuration of Sa2VA-LLaVA-1.5-7B, shrunk: 3 CLIP layers of which 2 are read, 2 decoder layers,
    28 px (4 image tokens), SAM2 at 128 px; random weights."""
    import copy
    import json

    from sa2va_dpo.models.checkpoint import init_checkpoint
    from sa2va_dpo.models.tiny import SAM2_DIMS, write_tokenizer
    from sa2va_dpo.models.variants import RELEASED

    root = tmp_path_factory.mktemp('llava')
    config = copy.deepcopy(RELEASED['Sa2VA-LLaVA-1.5-7B'])
    size = write_tokenizer(root / 'tokenizer', ('<s>', '</s>', '<image>'))
    added = json.loads((root / 'tokenizer/tokenizer.json').read_text())['added_tokens']
    config.update(vocab_size=size, image_seq_length=4,
                  image_token_index=next(token['id'] for token in added if token['content'] == '<image>'))
    # Upstream leaves the size of the base model's own table here.
    config['text_config'].update(vocab_size=size + 57, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=4)
    config['vision_config'].update(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                                   image_size=28)
    dims = dict(SAM2_DIMS, image_size=128, embed_dim=16, stages=[1, 1, 2, 1], global_att_blocks=[3], hidden_dim=64)
    return init_checkpoint(config, dims, root / 'tokenizer', root / 'checkpoint', seed=5)


# 12 x 12 patches, positions of 4 x 4 tiled over them, windows of 4 x 4, every second layer looking at the whole image.
SAM3_DIMS = dict(kind='sam3', image_size=168, pretrain_image_size=56, embed_dim=64, depth=4, num_heads=4, mlp_dim=96,
                 window_size=4, global_att_blocks=[1, 3], hidden_dim=64, decoder_mlp_dim=128, iou_head_hidden_dim=32)


@pytest.fixture(scope='session')
def sam3_checkpoint(tmp_path_factory, shared_dir) -> Path:
    """A tiny Qwen3-VL with a tiny SAM 3, with every number drawn: zeros and ones of a fresh model hide mistakes."""
    import json

    import torch

    from sa2va_dpo.models.checkpoint import export_checkpoint, init_checkpoint, load_checkpoint
    from sa2va_dpo.models.sam3 import Sam3TrackerModel

    if Sam3TrackerModel is None:
        pytest.skip('SAM 3 exists from transformers 5 on: run tests/run_next.sh')
    fixture = shared_dir / 'fixtures/sa2va_parity/qwen3_vl'
    root = tmp_path_factory.mktemp('sam3')
    out = init_checkpoint(json.loads((fixture / 'config.json').read_text()), SAM3_DIMS, fixture, root / 'c', seed=2)
    model = load_checkpoint(out)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.sam2.parameters():
            if parameter.ndim < 2 or float(parameter.std()) < 0.1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return export_checkpoint(model, out, root / 'drawn')
