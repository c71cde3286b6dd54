"""An adapter is loaded like a checkpoint, only onto the checkpoint that it was trained from."""
import filecmp
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sa2va_dpo.commands.export import main as export_main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.inference.predictor import Predictor
from sa2va_dpo.models.checkpoint import (
    base_directory,
    copy_with_sam_size,
    export_adapter,
    export_checkpoint,
    load_checkpoint,
    read_config,
    read_sam2_dims,
)
from sa2va_dpo.models.run_model import Sa2VARunModel
from sa2va_dpo.models.trainable import lora_layers

from .test_exporting import differing, move

RECIPE = dict(llm=dict(mode='lora', r=2, alpha=6), sam2_encoder=dict(mode='lora', r=4), sam2_neck='full',
              projector='full')


@pytest.fixture()
def base(micro_checkpoint, tmp_path):
    return shutil.copytree(micro_checkpoint, tmp_path / 'base')


@pytest.fixture()
def trained(base):
    return move(Sa2VARunModel(str(base), RECIPE)).eval()


@pytest.fixture()
def adapter(trained, tmp_path):
    return export_adapter(trained.policy, tmp_path / 'adapter')


@pytest.fixture(scope='module')
def batch(micro_checkpoint):
    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    return pre.collate([pre(np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8), 'Vessel?')])


@torch.no_grad()
def logits(model, batch):
    return model(batch).low_res


def message(call):
    with pytest.raises(InputError) as caught:
        call()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_loaded_through_the_door_it_answers_as_the_unmerged_model(trained, adapter, base, batch):
    loaded = load_checkpoint(adapter)
    assert torch.equal(logits(loaded, batch), logits(trained.policy, batch))
    assert not torch.equal(logits(load_checkpoint(base), batch), logits(loaded, batch))
    assert lora_layers(loaded) and not any(p.requires_grad for p in loaded.parameters())
    assert read_config(adapter) == read_config(base) and read_sam2_dims(adapter) == read_sam2_dims(base)
    assert loaded.source.directory == base and loaded.source.given == adapter
    # What a command makes of it: inference, and a predictor with the base's preprocessing.
    assert torch.equal(logits(Sa2VARunModel(str(adapter)).eval(), batch), logits(loaded, batch))
    image = np.zeros((50, 60, 3), np.uint8)
    ours = Predictor(trained.policy, Sa2VAPreprocessor.from_pretrained(base)).predict(image, 'Vessel?')
    theirs = Predictor.from_pretrained(adapter, device='cpu').predict(image, 'Vessel?')
    assert np.array_equal(theirs.logits, ours.logits)


def test_merged_it_is_the_directly_merged_export_byte_for_byte(trained, adapter, base, tmp_path, capsys):
    direct = export_checkpoint(trained.policy, base, tmp_path / 'direct')
    assert export_main([str(adapter), str(tmp_path / 'merged'), '--merge']) == 0
    assert str(base) in capsys.readouterr().out
    (tmp_path / 'merged/MODEL_CARD.md').unlink()
    assert differing(direct, tmp_path / 'merged') == [] and differing(base, direct) == ['model.safetensors']
    # From a model that is in memory as a whole, in either precision of its frozen weights, it is the same.
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_checkpoint(adapter, dtype=dtype)
        out = export_checkpoint(loaded, adapter, tmp_path / str(dtype))
        assert (differing(direct, out) == []) == (dtype == torch.float32)


def test_training_goes_on_from_an_adapter_and_its_own_adapter_belongs_on_it(trained, adapter, base, batch, tmp_path):
    again = Sa2VARunModel(str(adapter), RECIPE).eval()
    torch.testing.assert_close(logits(again.policy, batch), logits(trained.policy, batch), rtol=0, atol=1e-4)
    assert again.trainable_names() == trained.trainable_names()
    move(again)
    second = export_adapter(again.policy, tmp_path / 'second')
    assert json.loads((second / 'base_checkpoint.json').read_text())['checkpoint'] == str(adapter)
    assert torch.equal(logits(load_checkpoint(second), batch), logits(again.policy, batch))
    assert base_directory(second) == base
    direct = export_checkpoint(again.policy, base, tmp_path / 'direct')
    assert export_main([str(second), str(tmp_path / 'merged')]) == 0
    (tmp_path / 'merged/MODEL_CARD.md').unlink()
    assert differing(direct, tmp_path / 'merged') == []
    # What a run from an adapter saved exports without the frozen weights too.
    lean = Sa2VARunModel(str(adapter), RECIPE, device='meta')
    with torch.no_grad():
        for name, tensor in again.state_dict().items():
            path, _, leaf = name.rpartition('.')
            lean.get_submodule(path)._parameters[leaf] = torch.nn.Parameter(tensor)
    assert differing(direct, export_checkpoint(lean.policy, adapter, tmp_path / 'lean')) == []


def test_without_its_language_model(trained, adapter, batch):
    model = load_checkpoint(adapter, with_mllm=False)
    with torch.no_grad():
        states = trained.policy.seg_states(batch)
    stored = dict(seg_states=states, seg_index=torch.tensor([[0, 0]]), sam_pixel_values=batch['sam_pixel_values'])
    assert model.mllm is None and torch.equal(logits(model, stored), logits(trained.policy, batch))


def test_a_base_that_moved_is_asked_for_once(adapter, base, batch, tmp_path):
    expected = logits(load_checkpoint(adapter), batch)
    moved = base.rename(tmp_path / 'elsewhere')
    said = message(lambda: load_checkpoint(adapter))
    assert str(base) in said and '--base DIR' in said and 'base_checkpoint.json' in said
    for call in (read_config, read_sam2_dims, Sa2VAPreprocessor.from_pretrained):
        assert str(base) in message(lambda: call(adapter))
    assert torch.equal(logits(load_checkpoint(adapter, base=moved), batch), expected)
    assert Predictor.from_pretrained(adapter, base=moved).model is not None
    assert export_main([str(adapter), str(tmp_path / 'out'), '--base', str(moved)]) == 0
    record = json.loads((adapter / 'base_checkpoint.json').read_text())
    (adapter / 'base_checkpoint.json').write_text(json.dumps(dict(record, checkpoint=str(moved))))
    assert torch.equal(logits(load_checkpoint(adapter), batch), expected)


def test_another_checkpoint_of_the_same_shapes_is_refused(adapter, base, tmp_path):
    tensors = load_file(base / 'model.safetensors')
    tensors['text_hidden_fcs.0.bias'][0] += 1e-3
    save_file(tensors, base / 'model.safetensors', metadata={'format': 'pt'})
    assert 'trained from another checkpoint' in message(lambda: load_checkpoint(adapter))
    assert export_and_fail(adapter, tmp_path / 'out') and not (tmp_path / 'out').exists()


def export_and_fail(adapter, out):
    return 'trained from another checkpoint' in message(lambda: export_main([str(adapter), str(out), '--merge']))


def test_the_same_weights_at_another_input_size_are_another_base(adapter, base, tmp_path):
    resized = copy_with_sam_size(base, tmp_path / 'resized', 192)
    assert 'trained from another checkpoint' in message(lambda: load_checkpoint(adapter, base=resized))
    assert 'merge it first' in message(lambda: copy_with_sam_size(adapter, tmp_path / 'x', 192))


def test_damage_and_misuse_are_one_line(adapter, base, tmp_path):
    record = json.loads((adapter / 'base_checkpoint.json').read_text())
    (adapter / 'base_checkpoint.json').write_text(json.dumps(dict(record, checkpoint=str(adapter))))
    assert 'leads back to itself' in message(lambda: load_checkpoint(adapter))
    (adapter / 'base_checkpoint.json').write_text(json.dumps({k: v for k, v in record.items() if k != 'weights'}))
    assert 'trained from another checkpoint' in message(lambda: load_checkpoint(adapter))
    (adapter / 'base_checkpoint.json').write_text('{')
    assert 'base_checkpoint.json' in message(lambda: load_checkpoint(adapter))
    assert 'needs no base' in message(lambda: load_checkpoint(base, base=base))
    assert 'is no adapter directory' in message(lambda: export_main([str(base), str(tmp_path / 'out')]))
    (adapter / 'base_checkpoint.json').write_text(json.dumps(record))
    assert 'adapter already' in message(lambda: export_main([str(adapter), str(tmp_path / 'out'), '--adapter']))
    assert 'belongs to the form' in message(lambda: export_main(['a', 'b', 'c', '--base', 'd']))
    tensors = load_file(adapter / 'adapter_model.safetensors')
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, adapter / 'adapter_model.safetensors')
    assert 'has no counterpart' in message(lambda: load_checkpoint(adapter))


def test_a_model_that_came_from_nowhere_has_no_adapter(trained, tmp_path):
    trained.policy.source = None
    with pytest.raises(ValueError, match='came from no checkpoint'):
        export_adapter(trained.policy, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_hash_of_a_small_base_covers_every_byte(adapter, base):
    """Any byte of the weights, the last among them, is part of it; other files of the folder are not."""
    path = base / 'model.safetensors'
    content = bytearray(path.read_bytes())
    assert len(content) < 64 << 16
    for place in (len(content) - 1, len(content) // 3):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert 'another checkpoint' in message(lambda: load_checkpoint(adapter))
    path.write_bytes(content)
    (base / 'README.md').write_text('x')
    assert filecmp.cmp(path, path) and os.path.isfile(base / 'README.md')
    load_checkpoint(adapter)
