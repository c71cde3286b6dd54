"""Fit a run's config to the machine: DeepSpeed where there is a GPU, mmengine's plain strategies where there is
none."""
from __future__ import annotations

import os

import torch
from mmengine.config import Config
from mmengine.registry import STRATEGIES

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.optional import extra
from sa2va_dpo.common.processes import local_rank, local_world_size, prepare_process_group_env, world_size
from sa2va_dpo.models.checkpoint import is_released_size
from sa2va_dpo.models.quantised import quantised_parts


def fit_to_machine(cfg: Config) -> str:
    """Change ``cfg`` in place so that it runs here; returns one line that says what was chosen.

    With a GPU the config's strategy runs as written; weights of released size go straight to it as they are read.
    Without one, DeepSpeedStrategy is replaced by mmengine's SingleDeviceStrategy (or DDPStrategy over gloo under a
    launcher) in float32, keeping gradient clipping and accumulation. ``deepspeed_on_cpu=True`` keeps DeepSpeed over
    gloo, which the tests use.

    Raises:
        InputError: a launcher asks for more processes than there are GPUs, or DeepSpeed is asked for and not installed.
    """
    strategy = cfg.get('strategy', dict(type='SingleDeviceStrategy'))
    if STRATEGIES.get(strategy['type']) is None:
        raise InputError(
            f'strategy.type={strategy["type"]}: no such strategy: mmengine has DeepSpeedStrategy, '
            'SingleDeviceStrategy, DDPStrategy'
        )
    deepspeed = strategy['type'] == 'DeepSpeedStrategy'
    distributed = cfg.get('launcher', 'none') != 'none'
    gpus = torch.cuda.device_count()
    if gpus and distributed and local_rank() >= gpus:
        raise InputError(f'--nproc_per_node: local rank {local_rank()} has no GPU, '
                         f'this machine has {gpus}: start at most {gpus} processes')
    if gpus:
        _fuse_optimiser(cfg)
        _stream_to_gpu(cfg, bf16=deepspeed and strategy.get('bf16', {}).get('enabled', False))
    if deepspeed and (gpus or cfg.get('deepspeed_on_cpu')):
        with extra('train', 'strategy.type DeepSpeedStrategy'):
            import deepspeed as ds

        prepare_process_group_env()
        if not gpus:
            _skip_shared_memory_op()
            # mmengine would call torch.cuda.set_device; with a group already there it leaves that step out.
            ds.init_distributed(dist_backend='gloo', auto_mpi_discovery=False)
        if gpus and strategy.get('zero_optimization', {}).get('offload_optimizer'):
            _use_all_cores()
        precision = 'bf16' if strategy.get('bf16', {}).get('enabled') else 'fp32'
        stage = strategy.get('zero_optimization', {}).get('stage', 0)
        return f'DeepSpeed ZeRO-{stage}, {precision}, on {"GPU" if gpus else "CPU over gloo"}'
    if gpus and not deepspeed:
        return f'{strategy["type"]} as configured, on GPU'
    if deepspeed:
        wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')
        if strategy.get('gradient_clipping'):
            wrapper['clip_grad'] = dict(max_norm=strategy['gradient_clipping'])
        if strategy.get('gradient_accumulation_steps', 1) > 1:
            wrapper['accumulative_counts'] = strategy['gradient_accumulation_steps']
        cfg.optim_wrapper = wrapper
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('type', 'dtype')}
    if not distributed:
        cfg.strategy = dict(type='SingleDeviceStrategy')
        return 'no GPU here: SingleDeviceStrategy in float32 on CPU'
    torch.distributed.init_process_group('gloo')
    # Parts that a mask does not depend on (other hypotheses' heads) get no gradient. mmengine would name a CUDA device.
    cfg.strategy = dict(type='DDPStrategy', model_wrapper=dict(
        type='MMDistributedDataParallel', find_unused_parameters=True, device_ids=None))
    return f'no GPU here: DDPStrategy over gloo in float32 on CPU, {world_size()} processes'


def _stream_to_gpu(cfg: Config, bf16: bool) -> None:
    """Let every process read weights of released size onto its own GPU, in bfloat16 where DeepSpeed would cast them to
    it anyway: otherwise each holds the whole model in float32 in host memory first. What is to be quantised is so on
    its way to the GPU, whatever its size."""
    model = cfg.get('model') or {}
    if 'checkpoint' in model and (is_released_size(model['checkpoint']) or quantised_parts(model)):
        model.setdefault('device', f'cuda:{local_rank()}')
        if bf16:
            model.setdefault('dtype', 'bfloat16')


def _fuse_optimiser(cfg: Config) -> None:
    """One kernel for a step of Adam, on the GPU or, where its states are offloaded, one pass over host memory."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if optimizer.get('type') in ('Adam', 'AdamW'):
        optimizer.setdefault('fused', True)


def _use_all_cores() -> None:
    """torchrun gives each of several processes one thread, with which the step of an offloaded optimiser takes as long
    as a whole forward pass."""
    if torch.get_num_threads() == 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))


def _skip_shared_memory_op() -> None:
    """Mark DeepSpeed's shared-memory collective as unavailable: compiling it takes minutes, gloo serves small CPU
    runs."""
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
