"""Ranks from the environment, and one reading of every device string."""
import pytest
import torch

from sa2va_dpo.common import processes
from sa2va_dpo.common.errors import InputError


@pytest.fixture()
def gpus(monkeypatch):
    def set_count(count):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    set_count(0)
    return set_count


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.local_rank(), processes.world_size(), processes.local_world_size()) == (
        0,
        0,
        1,
        1,
    )
    monkeypatch.setenv('WORLD_SIZE', 'two')
    with pytest.raises(InputError, match='WORLD_SIZE=two: must be a number'):
        processes.world_size()


def test_the_default_is_the_own_gpu_or_the_cpu(gpus, monkeypatch):
    assert processes.pick_device() == 'cpu'
    gpus(2)
    assert processes.pick_device() == 'cuda:0'
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert processes.pick_device() == processes.pick_device('cuda') == 'cuda:1'
    assert processes.pick_device('cuda:0') == 'cuda:0' and processes.pick_device('cpu') == 'cpu'
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(InputError, match='local rank 2 has no GPU, this machine has 2'):
        processes.pick_device()


@pytest.mark.parametrize(
    'name',
    [
        'gpus',
        '',
        'cuda:',
        'cuda:-1',
        'cuda:x',
        'CUDA',
        'cpu:1',
        'meta',
        'cuda:0 ',
        '0',
        'ü',
        'cuda:' + '9' * 30,
        'cuda:١',
        0,
    ],
)
def test_what_is_no_device(gpus, name):
    gpus(1)
    with pytest.raises(InputError, match='--device .*no such device here: give cpu, cuda or cuda:N'):
        processes.pick_device(name)


def test_devices_that_are_not_here(gpus):
    with pytest.raises(InputError, match='--dev cuda:0: no GPU is visible here: use --dev cpu'):
        processes.pick_device('cuda:0', '--dev')
    gpus(2)
    with pytest.raises(InputError, match='cuda:2: this machine has 2 GPUs, numbered from 0: give cuda:0 to cuda:1'):
        processes.pick_device('cuda:2')
