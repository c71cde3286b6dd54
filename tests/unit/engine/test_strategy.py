"""One config on any machine."""
import os

import pytest
import torch
from mmengine.config import Config

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common import processes
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.strategy import fit_to_machine


def deepspeed_config(**more) -> Config:
    return Config(dict(
        strategy=dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2), bf16=dict(enabled=True),
                      gradient_clipping=0.5, gradient_accumulation_steps=4),
        optim_wrapper=dict(type='DeepSpeedOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)), **more))


@pytest.fixture()
def gpus(monkeypatch):
    def set_count(count):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    return set_count


def test_with_a_gpu_deepspeed_runs_as_written(gpus):
    gpus(1)
    cfg = deepspeed_config()
    expected = deepspeed_config()
    expected.optim_wrapper.optimizer.fused = True
    assert fit_to_machine(cfg) == 'DeepSpeed ZeRO-2, bf16, on GPU'
    assert cfg.pretty_text == expected.pretty_text
    # What a launcher would have set, or DeepSpeed wants MPI.
    assert os.environ['RANK'] == '0' and os.environ['WORLD_SIZE'] == '1' and int(os.environ['MASTER_PORT']) > 0


def test_the_optimiser_is_fused_on_a_gpu_unless_the_config_says(gpus):
    for count, given, expected in ((1, {}, True), (1, dict(fused=False), False), (0, {}, None)):
        gpus(count)
        cfg = deepspeed_config(launcher='none')
        cfg.optim_wrapper.optimizer.update(given)
        fit_to_machine(cfg)
        assert cfg.optim_wrapper.optimizer.get('fused') is expected


@pytest.mark.parametrize('threads, processes, expected', [(1, 2, 4), (1, 16, 1), (6, 2, 6)])
def test_an_offloaded_optimiser_has_the_cores_that_torchrun_takes_away(gpus, monkeypatch, threads, processes, expected):
    gpus(1)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    chosen = [threads]
    monkeypatch.setattr(torch, 'set_num_threads', chosen.append)
    cfg = deepspeed_config()
    fit_to_machine(cfg)
    assert chosen == [threads]  # nothing is offloaded
    cfg.strategy.zero_optimization.offload_optimizer = dict(device='cpu')
    fit_to_machine(cfg)
    assert chosen[-1] == expected


@pytest.mark.parametrize('released, bf16, expected', [
    (True, True, dict(device='cuda:1', dtype='bfloat16')), (True, False, dict(device='cuda:1')), (False, True, {})])
def test_released_sizes_are_read_straight_onto_each_process_s_gpu(gpus, monkeypatch, micro_checkpoint, released, bf16,
                                                                  expected):
    from sa2va_dpo.models.checkpoint import layout

    gpus(2)
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(layout, 'RELEASED_BYTES', 1000 if released else 10 ** 9)
    cfg = deepspeed_config(model=dict(checkpoint=str(micro_checkpoint)))
    cfg.strategy.bf16.enabled = bf16
    fit_to_machine(cfg)
    assert cfg.model == dict(checkpoint=str(micro_checkpoint), **expected)
    # What the user wrote stays.
    cfg.model = dict(checkpoint=str(micro_checkpoint), device='cpu', dtype='float32')
    fit_to_machine(cfg)
    assert cfg.model.device == 'cpu' and cfg.model.dtype == 'float32'
    gpus(0)
    cfg = deepspeed_config(model=dict(checkpoint=str(micro_checkpoint)))
    cfg.launcher = 'none'
    fit_to_machine(cfg)
    assert 'device' not in cfg.model and 'dtype' not in cfg.model


def test_without_a_gpu_clipping_and_accumulation_survive(gpus):
    gpus(0)
    cfg = deepspeed_config()
    assert 'SingleDeviceStrategy in float32 on CPU' in fit_to_machine(cfg)
    assert cfg.strategy.type == 'SingleDeviceStrategy'
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.5)
    assert cfg.optim_wrapper.accumulative_counts == 4
    assert cfg.optim_wrapper.optimizer.lr == 1e-3


def test_amp_is_left_out_on_cpu(gpus):
    gpus(0)
    cfg = Config(
        dict(
            strategy=dict(type='SingleDeviceStrategy'),
            optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='AdamW', lr=1.0)),
        )
    )
    fit_to_machine(cfg)
    assert 'dtype' not in cfg.optim_wrapper and cfg.optim_wrapper.get('type', 'OptimWrapper') == 'OptimWrapper'


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(InputError, match='nproc_per_node.*has 2'):
        fit_to_machine(deepspeed_config(launcher='pytorch'))


def test_environment_of_a_launcher_is_kept(gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('MASTER_PORT', '1234')
    processes.prepare_process_group_env()
    assert os.environ['RANK'] == '3' and os.environ['MASTER_PORT'] == '1234'
