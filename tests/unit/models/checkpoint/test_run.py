"""Run checkpoints are read without executing anything, and must fit the model to the tensor."""
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.checkpoint import check_names, load_trained_tensors, read_trained_tensors, weights_only_loads


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.open = nn.Linear(2, 3)
        self.frozen = nn.Linear(2, 3).requires_grad_(False)


def state(**changes):
    good = {'open.weight': torch.ones(3, 2), 'open.bias': torch.zeros(3)}
    good.update(changes)
    return {name: tensor for name, tensor in good.items() if tensor is not None}


def test_history_buffers_and_numpy_scalars_are_read(tmp_path):
    history = HistoryBuffer()
    history.update(1.5)
    torch.save(dict(state_dict=state(), message_hub=dict(log_scalars=dict(loss=history)), meta=dict(x=np.float64(2))),
               tmp_path / 'iter_1.pth')
    model = Model()
    assert load_trained_tensors(model, tmp_path / 'iter_1.pth') == 2
    assert model.open.weight.eq(1).all()
    with weights_only_loads():
        loaded = torch.load(tmp_path / 'iter_1.pth')
    assert loaded['message_hub']['log_scalars']['loss'].statistics('mean') == 1.5


def test_getattr_opens_nothing_else(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, 'register_statistics')

    torch.save(dict(state_dict=Reach()), tmp_path / 'reach.pth')
    with pytest.raises(InputError, match='refused'):
        read_trained_tensors(tmp_path / 'reach.pth')


def test_members_of_an_allowed_enumeration_are_read_by_name_as_early_python_3_11_writes_them(tmp_path):
    stages = pytest.importorskip('deepspeed.runtime.zero.config').ZeroStageEnum

    class ByName:
        def __init__(self, name):
            self.name = name

        def __reduce__(self):
            return getattr, (stages, self.name)

    torch.save(dict(state_dict=state(), stage=ByName('gradients')), tmp_path / 'stage.pth')
    with weights_only_loads():
        assert torch.load(tmp_path / 'stage.pth')['stage'] is stages.gradients
    torch.save(dict(state_dict=state(), stage=ByName('mro')), tmp_path / 'other.pth')
    with pytest.raises(InputError, match='refused'):
        read_trained_tensors(tmp_path / 'other.pth')


def test_the_safe_loader_is_put_back(tmp_path):
    before = torch.load
    with pytest.raises(ValueError):
        with weights_only_loads():
            raise ValueError
    assert torch.load is before


@pytest.mark.parametrize('change, words', [
    ({'open.bias': None}, '1 trained tensors of this config are missing, first open.bias'),
    ({'frozen.bias': torch.zeros(3)}, '1 tensors have no place in this config, first frozen.bias'),
    ({'open.bias': torch.zeros(4)}, r'open.bias has shape \(4,\), the config wants \(3,\)'),
])
def test_tensors_must_fit_exactly(change, words):
    with pytest.raises(InputError, match=words):
        check_names(Model(), state(**change), 'iter_1.pth')


@pytest.mark.parametrize('write, words', [
    (lambda path: None, 'no such checkpoint'),
    (lambda path: path.write_bytes(b'PK\x03\x04 cut short'), 'cannot be read|refused'),
    (lambda path: torch.save([1, 2], path), 'no field state_dict'),
    (lambda path: path.mkdir(), 'cannot be read as a checkpoint'),
    (lambda path: path.write_bytes(pickle.dumps(print)), 'refused|cannot be read'),
])
def test_unusable_files_are_named(tmp_path, write, words):
    path = tmp_path / 'iter_9.pth'
    write(path)
    with pytest.raises(InputError, match=words) as error:
        read_trained_tensors(path)
    assert 'iter_9.pth' in str(error.value) and '\n' not in str(error.value)


def test_what_ddp_wrapped_is_read_under_its_plain_name(tmp_path):
    torch.save(dict(state_dict={f'module.{name}': tensor for name, tensor in state().items()}), tmp_path / 'iter_1.pth')
    model = Model()
    assert load_trained_tensors(model, tmp_path / 'iter_1.pth') == 2 and model.open.weight.eq(1).all()


@pytest.mark.parametrize('change', [{'open.bias': None}, {'frozen.bias': torch.zeros(3)}, {'open.bias': torch.zeros(4)},
                                    {'stranger': torch.zeros(1)}])
def test_a_refused_checkpoint_leaves_the_model_as_it_was(tmp_path, change):
    torch.save(dict(state_dict=state(**change)), tmp_path / 'iter_1.pth')
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match='iter_1.pth'):
        load_trained_tensors(model, tmp_path / 'iter_1.pth')
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_open_tensors_are_asked_for():
    """Those that are frozen must not be there, those that are open must, one of each kind named with its count."""
    model = Model()
    check_names(model, state(), 'iter_1.pth')
    model.frozen.requires_grad_(True)
    with pytest.raises(InputError, match='2 trained tensors of this config are missing, first frozen.bias'):
        check_names(model, state(), 'iter_1.pth')
    model.requires_grad_(False)
    with pytest.raises(InputError, match='2 tensors have no place in this config, first open.bias'):
        check_names(model, state(), 'iter_1.pth')


def test_tensors_of_a_model_on_the_meta_device_are_put_in_place_in_float32(tmp_path):
    torch.save(
        dict(state_dict=state(**{'open.weight': torch.ones(3, 2, dtype=torch.bfloat16)})), tmp_path / 'iter_1.pth'
    )
    model = Model().to('meta')
    assert load_trained_tensors(model, tmp_path / 'iter_1.pth') == 2
    assert model.open.weight.dtype == torch.float32 and model.open.weight.requires_grad and model.frozen.weight.is_meta
