"""An optimiser whose states lie in host memory: what DeepSpeed asks the GPU about each gradient, asked once a step.

ZeRO with an offloaded optimiser waits for the GPU twice for every trained tensor, once to see whether its gradient is
finite and once for its norm. With a small model of many trained tensors that takes longer than the optimiser. A
gradient that is not finite has a norm that is not finite, so one transfer of all norms answers both.
"""
from __future__ import annotations

from types import MethodType

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .activation_hook import meter_of
from .activation_memory import allowed
from .console_hook import SAID
from .pair_validation import bare_model

_NAMES = ('update_offload_overflow_tracker_for_param_grad', 'complete_grad_norm_calculation_for_cpu_offload',
          'has_overflow', 'norm_for_param_grads')


def ask_once(optimizer: object) -> bool:
    """Let a DeepSpeed ZeRO-2 optimiser with offloaded states wait for the GPU once a step, in place.

    Norms, the decision on overflow and the step are those of DeepSpeed.

    Returns:
        Whether it is such an optimiser, with the methods that this is about; another one is left as it is.
    """
    if not getattr(optimizer, 'cpu_offload', False) or not all(hasattr(optimizer, name) for name in _NAMES):
        return False
    has_overflow, complete = optimizer.has_overflow, optimizer.complete_grad_norm_calculation_for_cpu_offload

    def fetch(self) -> None:
        norms = self.norm_for_param_grads
        if norms and any(norm.device.type != 'cpu' for norm in norms.values()):
            self.norm_for_param_grads = dict(zip(norms, torch.stack(list(norms.values())).cpu().unbind()))

    def track(self, param) -> None:
        """Its norm has just been taken; it is looked at when all are there."""

    def overflow(self, *args, **kwargs) -> bool:
        fetch(self)
        self.local_overflow = self.local_overflow or not all(
            torch.isfinite(norm) for norm in self.norm_for_param_grads.values())
        return has_overflow(*args, **kwargs)

    def norm(self, params):
        fetch(self)
        return complete(params)

    for name, method in zip(_NAMES, (track, norm, overflow)):
        setattr(optimizer, name, MethodType(method, optimizer))
    return True


# Of AdamW in float32 for each trained number: the number itself, its gradient and two moments.
_BYTES = 16


def room_for_states(numbers: int, available: int, held: int, limit: int) -> tuple[float, float] | None:
    """Whether the states of an optimiser of so many trained numbers would fit on the device beside a step.

    Args:
        available: bytes that tensors may still take between two steps.
        held: bytes that the allocator keeps beyond what tensors take then: what a step needs for a while.
        limit: bytes that the process may hold at most.

    Returns:
        (what they take, what is free while a step runs), GiB; None where they do not fit into what a step may take
        (:func:`allowed`).
    """
    needed = _BYTES * numbers
    fits = needed <= allowed(available, limit) - held
    return (needed / 2 ** 30, (available - held) / 2 ** 30) if fits else None


@HOOKS.register_module()
class OffloadHook(Hook):
    """:func:`ask_once` for the run's optimiser; where its states would fit on the GPU, one line says so once."""

    # Activations are measured in the first step; those after it are as all others.
    _looks_at = 4

    def __init__(self) -> None:
        self.left = 0

    def before_train(self, runner) -> None:
        engine = getattr(runner.model, 'model', None)
        if ask_once(getattr(engine, 'optimizer', None)):
            self.left = self._looks_at

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.left:
            return
        self.left -= 1
        if self.left:
            return
        model = bare_model(runner.model)
        device = next(model.parameters()).device
        meter = meter_of(device)
        if meter is None:
            return
        available, limit = meter.room()
        # ZeRO shares the states out.
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad) // get_world_size()
        found = room_for_states(numbers, available, torch.cuda.memory_reserved(device) - meter.allocated(), limit)
        if found is not None:
            needed, free = found
            runner.logger.info(
                f'optimiser: its states are in host memory; they would take {needed:.1f} GiB of {free:.0f} that are '
                f'free on this GPU, and a step would be shorter (docs/training.md): '
                f'--cfg-options strategy.zero_optimization.offload_optimizer.device=none', extra=SAID)
