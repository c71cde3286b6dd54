"""The refinement on disk: a file beside the released weights, which do not notice."""
import filecmp
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.inference.predictor import Predictor
from sa2va_dpo.models.checkpoint import (
    copy_with_sam_size,
    copy_with_view,
    export_adapter,
    export_checkpoint,
    load_checkpoint,
    read_again,
)
from sa2va_dpo.models.trainable import set_trainable
from sa2va_dpo.models.view_geometry import ViewGeometry

FILE = 'sa2va_dpo_refinement.safetensors'


def with_refinement(directory, seed=0, **parts):
    model = load_checkpoint(directory)
    set_trainable(model, dict(refinement='full', **parts))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.refinement.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


def logits(model):
    draw = torch.Generator().manual_seed(0)
    batch = dict(sam_pixel_values=torch.randn(1, 3, model.sam_size, model.sam_size, generator=draw),
                 seg_states=torch.randn(1, model.text_hidden_fcs[0].in_features, generator=draw),
                 seg_index=torch.tensor([[0, 0]]))
    with torch.no_grad():
        return model(batch).low_res


@pytest.fixture(scope='module')
def refined(micro_checkpoint, tmp_path_factory):
    """A checkpoint with a refinement, and the logits of the model that wrote it."""
    model = with_refinement(micro_checkpoint)
    return export_checkpoint(model, micro_checkpoint, tmp_path_factory.mktemp('refined') / 'hf'), logits(model)


def test_the_released_files_are_byte_for_byte_what_they_were(micro_checkpoint, refined):
    directory, _ = refined
    assert sorted(os.listdir(directory)) == sorted([*os.listdir(micro_checkpoint), FILE])
    assert all(filecmp.cmp(micro_checkpoint / name, directory / name, shallow=False)
               for name in os.listdir(micro_checkpoint))


def test_what_is_read_gives_the_logits_that_were_written(refined):
    directory, expected = refined
    model = load_checkpoint(directory)
    assert torch.equal(logits(model), expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert Predictor.from_pretrained(str(directory)).model.refinement is not None


@pytest.mark.parametrize('dtype, device', [(torch.float32, 'cpu'), (torch.bfloat16, 'cpu'), (torch.float32, 'meta')])
def test_a_model_that_was_only_read_exports_the_same_bytes(refined, tmp_path, dtype, device):
    directory, _ = refined
    export_checkpoint(load_checkpoint(directory, dtype, device), directory, tmp_path / 'out')
    assert sorted(os.listdir(tmp_path / 'out')) == sorted(os.listdir(directory))
    assert all(filecmp.cmp(directory / name, tmp_path / 'out' / name, shallow=False) for name in os.listdir(directory))


def test_a_second_training_replaces_it_and_a_model_without_one_leaves_it_out(refined, tmp_path):
    directory, before = refined
    again = with_refinement(directory, seed=1)
    export_checkpoint(again, directory, tmp_path / 'again')
    assert torch.equal(logits(load_checkpoint(tmp_path / 'again')), logits(again))
    assert not torch.equal(logits(again), before)
    again.refinement = None
    export_checkpoint(again, directory, tmp_path / 'none')
    assert not (tmp_path / 'none' / FILE).exists()


def test_training_goes_on_from_the_stored_numbers(refined):
    directory, _ = refined
    model = load_checkpoint(directory, torch.bfloat16)
    model.refinement.float()
    read_again(model, {f'refinement.{name}' for name in model.refinement.state_dict()}, torch.float32)
    stored = load_file(directory / FILE)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.refinement.state_dict().items())


def test_another_size_or_view_keeps_it(tmp_path):
    tiny = bundled_checkpoint()
    source = export_checkpoint(with_refinement(tiny), tiny, tmp_path / 'source')
    copy_with_view(source, tmp_path / 'view', ViewGeometry(grid=2))
    copy_with_sam_size(source, tmp_path / 'size', 512)
    for name in ('view', 'size'):
        assert filecmp.cmp(source / FILE, tmp_path / name / FILE, shallow=False)
        assert load_checkpoint(tmp_path / name).refinement is not None


@pytest.mark.parametrize('parts', [{}, dict(llm=dict(mode='lora', r=2))])
def test_an_adapter_brings_it(micro_checkpoint, tmp_path, parts):
    model = with_refinement(micro_checkpoint, **parts)
    adapter = export_adapter(model, tmp_path / 'adapter')
    read = load_checkpoint(adapter)
    assert torch.equal(logits(read), logits(model))
    merged = export_checkpoint(load_checkpoint(adapter, merge=True), adapter, tmp_path / 'merged')
    assert torch.equal(logits(load_checkpoint(merged)), logits(model))


def test_an_adapter_knows_a_base_whose_refinement_was_changed(refined, tmp_path):
    base = tmp_path / 'base'
    shutil.copytree(refined[0], base)
    adapter = export_adapter(with_refinement(base, seed=2), tmp_path / 'adapter')
    assert load_checkpoint(adapter).refinement is not None
    (base / FILE).unlink()
    with pytest.raises(InputError, match='trained from another checkpoint'):
        load_checkpoint(adapter)


@pytest.mark.parametrize('damage, words', [
    (lambda path: path.write_bytes(b'nothing'), FILE),
    (lambda path: save_file({'body.0.weight': torch.zeros(3)}, path), 'does not fit this checkpoint'),
    (lambda path: save_file({**load_file(path), 'more': torch.zeros(1)}, path), 'more does not fit'),
])
def test_a_bad_file_is_named(refined, tmp_path, damage, words):
    directory = tmp_path / 'hf'
    shutil.copytree(refined[0], directory)
    damage(directory / FILE)
    with pytest.raises(InputError) as error:
        load_checkpoint(directory)
    assert words in str(error.value) and FILE in str(error.value) and '\n' not in str(error.value)
