"""One optimiser step of the studies: the arithmetic of the runner's (``tests/unit/benchmarks/test_step.py`` holds the
two equal)."""
from __future__ import annotations

from typing import Iterable

import torch
from torch import nn

CLIP = 1.0


def optimizer_of(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The runner's AdamW without weight decay for a model, and its parameters in the order in which gradients are
    clipped."""
    from sa2va_dpo import plugins  # noqa: F401
    from sa2va_dpo.engine.optim import PolicyOptimWrapperConstructor

    optimizer = PolicyOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.0))
    )(model).optimizer
    return optimizer, [parameter for group in optimizer.param_groups for parameter in group['params']]


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule, parameters: Iterable[nn.Parameter], data: dict
) -> dict:
    """Forward, backward, clipped update; what ``model.loss`` returns for ``data`` (see ``Sa2VADPOModel.loss``)."""
    losses = model(**data, mode='loss')
    total = sum(value for key, value in losses.items() if 'loss' in key)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    schedule.step()
    return losses
