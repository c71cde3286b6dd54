"""An export takes from the model what was trained, and every other byte from the source."""
import filecmp
import os

import pytest
import torch
from safetensors.torch import load_file

from sa2va_dpo.models.checkpoint import (
    export_checkpoint,
    load_checkpoint,
    load_trained_tensors,
    read_config,
    read_sam2_dims,
)
from sa2va_dpo.models.checkpoint.layout import key_groups
from sa2va_dpo.models.run_model import Sa2VARunModel
from sa2va_dpo.models.trainable import lora_layers, merge_adapters

# LoRA on the query projection alone: the released InternViT tensor holds query, key and value in one.
RECIPE = dict(llm=dict(mode='lora', r=2, alpha=6), vision=dict(mode='lora', r=2, targets=('q_proj', 'fc1')),
              sam2_encoder=dict(mode='lora', r=2), sam2_neck='full', projector='full')


def move(model, only=lambda name: True):
    """Every trainable tensor away from where it was, the same for the same name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and only(name):
                draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))
                parameter += 0.05 * draw.to(parameter)
    return model


def differing(a, b):
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    return [name for name in os.listdir(a) if not filecmp.cmp(a / name, b / name, shallow=False)]


def released_keys(directory, ours):
    """Released keys of the tensors whose name ``ours`` accepts."""
    names = load_checkpoint(directory, device='meta').state_dict()
    return {key for group in key_groups(read_config(directory), names) if any(map(ours, group.ours))
            for key in group.released}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_a_float32_checkpoint_loaded_in_any_dtype_exports_the_same_bytes(micro_checkpoint, tmp_path, dtype):
    model = load_checkpoint(micro_checkpoint, dtype=dtype)
    stored = load_file(micro_checkpoint / 'model.safetensors')
    assert any((tensor != tensor.to(torch.bfloat16)).any() for tensor in stored.values()), 'rounding must matter here'
    assert differing(micro_checkpoint, export_checkpoint(model, micro_checkpoint, tmp_path / 'out')) == []


def test_only_what_was_trained_differs_from_the_source(micro_checkpoint, tmp_path):
    model = Sa2VARunModel(str(micro_checkpoint), dict(projector='full', sam2_neck='full'), dtype='bfloat16',
                          trainable_dtype='float32')
    move(model, only=lambda name: 'text_hidden_fcs' in name)
    export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'out')
    old, new = (load_file(d / 'model.safetensors') for d in (micro_checkpoint, tmp_path / 'out'))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {key for key in old if key.startswith('text_hidden_fcs.')}
    trained = dict(model.policy.named_parameters())
    assert all(torch.equal(new[key], trained[key]) for key in changed), 'float32 as it was trained'


def test_lora_is_merged_onto_the_stored_weights_whatever_the_frozen_dtype(micro_checkpoint, tmp_path):
    """Frozen weights in bfloat16 with factors in float32 export the bytes of a run that is float32 throughout."""
    mixed = move(Sa2VARunModel(str(micro_checkpoint), RECIPE, dtype='bfloat16', trainable_dtype='float32'))
    plain = Sa2VARunModel(str(micro_checkpoint), RECIPE)
    plain.load_state_dict(mixed.state_dict(), strict=False)
    outs = [export_checkpoint(m.policy, micro_checkpoint, tmp_path / name)
            for name, m in (('mixed', mixed), ('plain', plain))]
    assert {p.dtype for p in mixed.policy.mllm.parameters()} == {torch.float32, torch.bfloat16}
    assert differing(*outs) == [] and differing(micro_checkpoint, outs[0]) == ['model.safetensors']


def test_the_frozen_rows_of_a_fused_tensor_keep_their_bits(micro_checkpoint, tmp_path):
    model = move(Sa2VARunModel(str(micro_checkpoint), dict(vision=dict(mode='lora', r=2, targets=('q_proj',))),
                               dtype='bfloat16', trainable_dtype='float32'))
    export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'out')
    old, new = (load_file(d / 'model.safetensors') for d in (micro_checkpoint, tmp_path / 'out'))
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert changed == ['vision_model.encoder.layers.0.attn.qkv.weight']
    rows = (old[changed[0]] != new[changed[0]]).any(1)
    third = len(rows) // 3
    assert rows[:third].all() and not rows[third:].any()


def test_merging_on_the_way_equals_merging_before(micro_checkpoint, tmp_path):
    model = move(Sa2VARunModel(str(micro_checkpoint), RECIPE))
    on_the_way = export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'a')
    assert lora_layers(model.policy), 'the model is left as it was'
    merge_adapters(model.policy)
    assert differing(on_the_way, export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'b')) == []


def test_a_run_exports_without_its_frozen_weights_in_memory(micro_checkpoint, tmp_path):
    whole = move(Sa2VARunModel(str(micro_checkpoint), RECIPE))
    torch.save(dict(state_dict=whole.state_dict()), tmp_path / 'iter_1.pth')
    lean = Sa2VARunModel(str(micro_checkpoint), RECIPE, device='meta')
    assert load_trained_tensors(lean, tmp_path / 'iter_1.pth') == len(whole.state_dict())
    assert any(p.is_meta for p in lean.parameters()) and not any(t.is_meta for t in lean.state_dict().values())
    outs = [export_checkpoint(m.policy, micro_checkpoint, tmp_path / name)
            for name, m in (('whole', whole), ('lean', lean))]
    assert differing(*outs) == [] and differing(micro_checkpoint, outs[0]) == ['model.safetensors']


def test_a_model_without_its_language_model_exports_the_stored_one(micro_checkpoint, tmp_path):
    model = move(Sa2VARunModel(str(micro_checkpoint), dict(projector='full'), with_mllm=False))
    export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'out')
    old, new = (load_file(d / 'model.safetensors') for d in (micro_checkpoint, tmp_path / 'out'))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {key for key in old if key.startswith('text_hidden')}


def test_a_diverged_adapter_is_not_written(micro_checkpoint, tmp_path):
    model = move(Sa2VARunModel(str(micro_checkpoint), dict(llm=dict(mode='lora', r=2))))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if 'lora_B' in n)[0, 0] = float('nan')
    with pytest.raises(ValueError, match='not finite'):
        export_checkpoint(model.policy, micro_checkpoint, tmp_path / 'out')
    assert os.listdir(tmp_path) == []


def test_every_trained_part_reaches_the_file(micro_checkpoint, tmp_path):
    """One part after the other: its released tensors change, all others keep their bytes."""
    assert read_sam2_dims(micro_checkpoint)['image_size'] == 128
    stored = load_file(micro_checkpoint / 'model.safetensors')
    for part in ('vision_projector', 'prompt_encoder', 'mask_decoder'):
        model = move(Sa2VARunModel(str(micro_checkpoint), {part: 'full'}))
        trained = {name.removeprefix('policy.') for name in model.trainable_names()}
        new = load_file(export_checkpoint(model.policy, micro_checkpoint, tmp_path / part) / 'model.safetensors')
        changed = {key for key in stored if not torch.equal(stored[key], new[key])}
        assert changed and changed == released_keys(micro_checkpoint, trained.__contains__)


def test_the_view_travels_with_what_was_trained(micro_checkpoint, tmp_path):
    """Beside the weights, of which nothing changes; an adapter brings its own, and merged it is still there."""
    import json
    import shutil

    from mmengine.config import Config

    from sa2va_dpo.commands.export import export_run, merge_adapter
    from sa2va_dpo.commands.view import main as view_command
    from sa2va_dpo.common.errors import InputError
    from sa2va_dpo.inference.predictor import Predictor
    from sa2va_dpo.models.checkpoint import read_view

    start = tmp_path / 'start'
    shutil.copytree(micro_checkpoint, start)
    model = move(Sa2VARunModel(str(start), RECIPE))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'iter_1.pth')

    def run(view):
        data = dict() if view is None else dict(view=view)
        return Config(dict(model=dict(checkpoint=str(start), trainable=RECIPE), train_dataloader=dict(dataset=data)))

    export_run(run(None), tmp_path / 'iter_1.pth', tmp_path / 'whole')
    export_run(run(dict(grid=2, context='tile')), tmp_path / 'iter_1.pth', tmp_path / 'tiled')
    assert not (tmp_path / 'whole/sa2va_dpo.json').exists() and read_view(tmp_path / 'whole').plain
    assert json.loads((tmp_path / 'tiled/sa2va_dpo.json').read_text())['view'] == dict(
        grid=2, overlap=0.25, blend='hann', context='tile', whole_share=0.25)
    # Every other file is the same to the byte, but for the card, which says how it looks.
    assert set(os.listdir(tmp_path / 'tiled')) - set(os.listdir(tmp_path / 'whole')) == {'sa2va_dpo.json'}
    for name in set(os.listdir(tmp_path / 'whole')) - {'MODEL_CARD.md'}:
        assert filecmp.cmp(tmp_path / 'whole' / name, tmp_path / 'tiled' / name, shallow=False)
    assert 'overlapping tiles (grid 2' in (tmp_path / 'tiled/MODEL_CARD.md').read_text()
    assert Predictor.from_pretrained(tmp_path / 'tiled', device='cpu').view.grid == 2

    export_run(run(dict(grid=3)), tmp_path / 'iter_1.pth', tmp_path / 'adapter', adapter=True)
    assert read_view(tmp_path / 'adapter').grid == 3
    assert Predictor.from_pretrained(tmp_path / 'adapter', device='cpu').view.grid == 3
    merge_adapter(tmp_path / 'adapter', tmp_path / 'merged')
    assert read_view(tmp_path / 'merged').grid == 3

    # The start states one: what was trained on it looks as it does, unless the run says otherwise.
    assert view_command([str(start), '--grid', '4']) == 0 and read_view(start).grid == 4
    export_run(run(None), tmp_path / 'iter_1.pth', tmp_path / 'inherited')
    export_run(run(dict(grid=1)), tmp_path / 'iter_1.pth', tmp_path / 'again')
    assert read_view(tmp_path / 'inherited').grid == 4 and read_view(tmp_path / 'again').plain
    for arguments, words in ((['--overlap', '0.1'], 'says nothing without --grid'), (['--grid', '9'], 'view.grid: 9'),
                             (['--grid', '2', '--blend', 'x'], 'view.blend')):
        with pytest.raises(InputError, match=words):
            view_command([str(start), *arguments])
    assert read_view(start).grid == 4
