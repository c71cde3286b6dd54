"""A language model in 4 or 8 bits on a GPU: near the same masks, LoRA beside it trains, an export is exact."""
from pathlib import Path

import numpy as np
import pytest
import torch

from sa2va_dpo.caching.fingerprint import weights_digest
from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.quantised import KINDS, statistics
from sa2va_dpo.models.run_model import Sa2VARunModel

pytestmark = pytest.mark.gpu
TINY_CHECKPOINT = Path(bundled_checkpoint()).absolute()
bitsandbytes = pytest.importorskip('bitsandbytes')
RECIPE = dict(llm=dict(mode='lora', r=4), projector='full')


def model_of(kind, trainable=RECIPE, **settings):
    return Sa2VARunModel(str(TINY_CHECKPOINT), trainable, dtype='bfloat16', device='cuda', llm_quantisation=kind,
                         **settings)


@pytest.fixture(scope='module')
def batch():
    pre = Sa2VAPreprocessor.from_pretrained(TINY_CHECKPOINT)
    rng = np.random.default_rng(1)
    batch = pre.collate([pre(rng.integers(0, 255, (224, 224, 3), np.uint8), 'Vessel?') for _ in range(2)])
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@pytest.mark.parametrize('kind', KINDS)
def test_masks_stay_near_and_only_the_language_model_changes(kind, batch):
    plain, quantised = model_of(None, None).eval(), model_of(kind, None).eval()
    with torch.no_grad():
        a, b = plain(batch).low_res, quantised(batch).low_res
    assert 0 < (a - b).abs().mean() < 0.1 * a.std()
    changed = {type(module).__name__ for module in quantised.policy.modules()} - {
        type(module).__name__ for module in plain.policy.modules()}
    assert changed == {'Linear4bit' if kind == 'nf4' else 'Linear8bitLt'}
    frozen = {name: p for name, p in plain.policy.named_parameters() if not name.startswith('mllm.language_model.')}
    after = dict(quantised.policy.named_parameters())
    assert frozen and all(torch.equal(p, after[name]) for name, p in frozen.items())


@pytest.mark.parametrize('kind', KINDS)
def test_the_vision_tower_too(kind, batch):
    plain = model_of(None, None).eval()
    torch.manual_seed(0)
    quantised = model_of(None, dict(vision=dict(mode='lora', r=4)), vision_quantisation=kind).eval()
    with torch.no_grad():
        a, b = plain(batch).low_res, quantised(batch).low_res
    assert 0 < (a - b).abs().mean() < 0.1 * a.std()
    after = dict(quantised.policy.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in plain.policy.named_parameters()
               if not name.startswith('mllm.vision_model.'))
    quantised.train()
    quantised.policy(batch).low_res.square().mean().backward()
    factors = [p for name, p in after.items() if 'vision_model' in name and 'lora_B' in name]
    assert factors and all(p.grad is not None and bool(p.grad.any()) for p in factors)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('settings', [{}, dict(trainable_dtype='float32')], ids=['bfloat16', 'autocast'])
def test_lora_beside_it_learns(kind, settings, batch):
    torch.manual_seed(0)
    model = model_of(kind, activation_checkpointing=dict(llm=True), **settings).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        # States of one kind of answer: what the adapters can reach through the quantised layers.
        loss = (model.policy.encode_prompt(batch) - 1.0).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    moved = [layer.lora_B['default'].weight for name, layer in model.policy.named_modules()
             if hasattr(layer, 'lora_B') and name.startswith('mllm.language_model.')]
    assert moved and all(bool(weight.any()) for weight in moved)


@pytest.mark.parametrize('kind', KINDS)
def test_scales_are_part_of_a_cache_s_fingerprint(kind, batch):
    model = model_of(kind, None)
    with torch.no_grad():
        model(batch)  # int8 scales move house with the first pass
    before = weights_digest(model.policy, ['mllm.language_model.'])
    scale = next(iter(statistics(model.policy).values()))
    scale.add_(1)
    assert weights_digest(model.policy, ['mllm.language_model.']) != before


def test_an_adapter_is_refused_as_a_base(tmp_path):
    (tmp_path / 'base_checkpoint.json').write_text('{}')
    with pytest.raises(InputError, match='is an adapter, which cannot be merged'):
        Sa2VARunModel(str(tmp_path), RECIPE, device='cuda', llm_quantisation='nf4')
