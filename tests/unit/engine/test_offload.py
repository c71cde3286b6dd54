"""Offloaded optimiser: the GPU is asked once a step, and decisions and norms stay DeepSpeed's."""
from types import SimpleNamespace

import pytest
import torch

from sa2va_dpo.engine import offload
from sa2va_dpo.engine.offload import OffloadHook, ask_once, room_for_states


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


GIB = 2 ** 30


@pytest.mark.parametrize('available, held, limit, expected', [
    (20, 4, 24, (3.2, 16.0)),
    (8, 2, 24, (3.2, 6.0)),
    (7, 2, 24, None),  # 3.2 and a margin of 2.4 do not go into 5
    (120, 118, 140, None),
])
def test_states_fit_beside_a_step_or_not(available, held, limit, expected):
    found = room_for_states(GIB // 5, available * GIB, held * GIB, limit * GIB)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.01))


@pytest.mark.parametrize('offloaded, room, lines', [(True, 100, 1), (True, 0, 0), (False, 100, 0)])
def test_one_line_where_they_would_fit(monkeypatch, offloaded, room, lines):
    meter = SimpleNamespace(room=lambda: (room * GIB, 140 * GIB), allocated=lambda: 3 * GIB)
    monkeypatch.setattr(offload, 'meter_of', lambda device: meter)
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: 5 * GIB)
    said = []
    engine = torch.nn.Linear(2, 2)
    engine.optimizer = ZeroOptimizer()
    engine.optimizer.cpu_offload = offloaded
    runner = SimpleNamespace(model=SimpleNamespace(model=engine, module=engine),
                             logger=SimpleNamespace(info=lambda line, extra: said.append(line)))
    monkeypatch.setattr(offload, 'bare_model', lambda model: engine)
    hook = OffloadHook()
    hook.before_train(runner)
    for step in range(10):
        hook.after_train_iter(runner, step)
    assert len(said) == lines
    assert all('of 98 that are free' in line and 'offload_optimizer.device=none' in line for line in said)
