"""An optimiser whose states lie in host memory: what DeepSpeed asks the GPU about each gradient, asked once a step.

ZeRO with an offloaded optimiser waits for the GPU twice for every trained tensor, once to see whether its gradient is
finite and once for its norm. With a small model of many trained tensors that takes longer than the optimiser. A
gradient that is not finite has a norm that is not finite, so one transfer of all norms answers both.
"""
from __future__ import annotations

from types import MethodType

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

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


@HOOKS.register_module()
class OffloadHook(Hook):
    """:func:`ask_once` for the run's optimiser."""

    def before_train(self, runner) -> None:
        engine = getattr(runner.model, 'model', None)
        ask_once(getattr(engine, 'optimizer', None))
