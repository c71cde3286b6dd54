"""Offloaded optimiser: the GPU is asked once a step, and decisions and norms stay DeepSpeed's."""
import pytest
import torch

from sa2va_dpo.engine.offload import ask_once


class ZeroOptimizer:
    """The part of DeepSpeed's ZeRO-2 optimiser that is about norms and overflow, with its arithmetic."""

    cpu_offload = True

    def __init__(self):
        self.norm_for_param_grads, self.local_overflow = {}, False

    def set_norm(self, key, grad):
        self.norm_for_param_grads[key] = grad.float().norm(2)

    def update_offload_overflow_tracker_for_param_grad(self, grad):
        if not torch.isfinite(grad).all():
            self.local_overflow = True

    def has_overflow(self, partition_gradients=True):
        return bool(torch.ByteTensor([self.local_overflow]).item())

    def complete_grad_norm_calculation_for_cpu_offload(self, keys):
        return torch.tensor(sum(self.norm_for_param_grads[key].item() ** 2 for key in keys) ** 0.5)


def backward(optimizer, grads):
    for key, grad in enumerate(grads):
        optimizer.set_norm(key, grad)
        optimizer.update_offload_overflow_tracker_for_param_grad(grad)
    return optimizer.has_overflow(), optimizer.complete_grad_norm_calculation_for_cpu_offload(range(len(grads))).item()


@pytest.mark.parametrize('bad', [None, float('nan'), float('inf'), -float('inf')])
def test_the_same_decision_and_the_same_norm(bad):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(5, 7, generator=generator).bfloat16() for _ in range(4)]
    if bad is not None:
        grads[2][3, 1] = bad
    theirs, ours = ZeroOptimizer(), ZeroOptimizer()
    assert ask_once(ours)
    expected, found = backward(theirs, grads), backward(ours, grads)
    assert found[0] == expected[0] == (bad is not None)
    assert found[1] == pytest.approx(expected[1], nan_ok=True, abs=0)


def test_what_is_no_offloaded_optimiser_is_left_as_it_is():
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    assert not ask_once(plain) and not ask_once(None)
    on_gpu = ZeroOptimizer()
    on_gpu.cpu_offload = False
    assert not ask_once(on_gpu) and 'has_overflow' not in vars(on_gpu)


def test_deepspeed_has_the_methods_that_are_replaced():
    from sa2va_dpo.engine.offload import _NAMES

    zero = pytest.importorskip('deepspeed.runtime.zero.stage_1_and_2').DeepSpeedZeroOptimizer
    # The last is an attribute that its constructor sets.
    assert all(callable(getattr(zero, name)) for name in _NAMES[:-1])
