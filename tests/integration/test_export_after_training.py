"""A trained model in memory against the same model exported and loaded again: merged, and as an adapter."""
import copy

import pytest
import torch
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import export_adapter, export_checkpoint, load_adapter, load_checkpoint
from sa2va_dpo.models.trainable import merge_adapters, set_trainable

pytestmark = pytest.mark.integration
TRAINABLE = {'llm': dict(mode='lora', r=4), 'sam2_encoder': dict(mode='lora', r=2, alpha=6), 'projector': 'full',
             'mask_decoder': 'full'}


@pytest.fixture(params=['internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl'])
def setting(request, shared_dir):
    directory = shared_dir / 'fixtures/sa2va_parity' / request.param
    limits = {} if 'internvl' in request.param else dict(min_pixels=12000, max_pixels=40000)
    pre = Sa2VAPreprocessor.from_pretrained(directory, **limits)
    return directory, pre.collate([pre(Image.open(directory / 'image.png'), 'Vessel?')])


def train(directory, batch, dtype=torch.float32):
    """Three real optimiser steps of everything that is open; LoRA, full tensors, all parts move."""
    model = load_checkpoint(directory, dtype=dtype)
    set_trainable(model, TRAINABLE)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(3):
        loss = model(batch).low_res.sigmoid().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def logits(model, batch):
    return model.eval()(batch).low_res


def test_merged_export_in_float32(setting, tmp_path):
    directory, batch = setting
    model = train(directory, batch)
    before = logits(model, batch)
    assert (before - logits(load_checkpoint(directory), batch)).abs().max() > 0.1  # it did move
    merge_adapters(model)
    again = logits(load_checkpoint(export_checkpoint(model, directory, tmp_path / 'out')), batch)
    # The file holds the merged weights to the bit; merging itself only reorders float32 sums.
    assert torch.equal(again, logits(model, batch))
    difference = (again - before).abs().max().item()
    print(f'{directory.name}: merged, exported, loaded again: max |difference| of mask logits {difference:.1e}')
    assert difference <= 1e-4


def test_rounding_of_merged_weights_to_bfloat16(setting):
    directory, batch = setting
    model = train(directory, batch)
    before = logits(model, batch)
    merge_adapters(model)
    after = logits(copy.deepcopy(model).bfloat16().float(), batch)
    difference = (after - before).abs()
    print(f'{directory.name}: merged weights rounded to bfloat16: max |difference| {difference.max():.2f}, mean '
          f'{difference.mean():.3f}, logits have a spread of {before.std():.2f}')
    assert difference.mean() < 0.1 * before.std()


def test_adapter_export(setting, tmp_path):
    directory, batch = setting
    model = train(directory, batch)
    out = export_adapter(model, tmp_path / 'adapter')
    assert sorted(p.name for p in out.iterdir()) == ['adapter_config.json', 'adapter_model.safetensors',
                                                     'base_checkpoint.json', 'trained_tensors.safetensors']
    fresh = load_checkpoint(directory)
    assert load_adapter(fresh, out) > 20
    assert torch.equal(logits(fresh, batch), logits(model, batch))
    merge_adapters(fresh)
    export_checkpoint(fresh, directory, tmp_path / 'merged')


def test_adapter_of_another_model_is_refused(setting, shared_dir, tmp_path):
    directory, batch = setting
    out = export_adapter(train(directory, batch), tmp_path / 'adapter')
    other = 'qwen3_vl' if 'qwen3' not in directory.name else 'internvl_qwen2'
    with pytest.raises(InputError):
        load_adapter(load_checkpoint(shared_dir / 'fixtures/sa2va_parity' / other), out)
    with pytest.raises(InputError, match='adapter'):
        load_adapter(load_checkpoint(directory), tmp_path)
    (out / 'trained_tensors.safetensors').write_bytes((out / 'trained_tensors.safetensors').read_bytes()[:-4])
    with pytest.raises(InputError, match='cut short'):
        load_adapter(load_checkpoint(directory), out)


def test_adapter_is_in_pefts_own_format(setting, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import load_peft_weights
    directory, batch = setting
    model = train(directory, batch)
    out = export_adapter(model, tmp_path / 'adapter')
    theirs = load_checkpoint(directory)
    config = LoraConfig.from_pretrained(str(out))
    inject_adapter_in_model(config, theirs)
    weights = {k.removeprefix('base_model.model.').replace('.weight', '.default.weight'): v
               for k, v in load_peft_weights(str(out), device='cpu').items()}
    missing = theirs.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    # The fully trained tensors lie beside it; put in by name, the model is complete.
    from safetensors.torch import load_file
    assert not theirs.load_state_dict(load_file(out / 'trained_tensors.safetensors'), strict=False).unexpected_keys
    assert torch.equal(logits(theirs, batch), logits(model, batch))
