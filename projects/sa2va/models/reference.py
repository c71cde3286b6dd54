"""The frozen reference policy of DPO: the policy exactly as it was before training.

DPO: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290.
"""
from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call

from .trainable import adapters_disabled

_SNAPSHOT = 'snapshot_'


class InitialPolicyReference(nn.Module):
    """Adapters off AND snapshots of every fully trained tensor, so no second copy of the model is held.

    Switching adapters off is not enough when a part is trained fully (projector, mask decoder): those tensors
    are copied here at construction. The copies are non-persistent buffers, so they follow the model's device and
    dtype but never enter a checkpoint.

    Args:
        policy: the ``Sa2VAModel`` after :func:`set_trainable` and before the first optimiser step.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self._names: list[str] = []
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and 'lora_' not in name:
                self.register_buffer(_SNAPSHOT + str(len(self._names)), parameter.detach().clone(), persistent=False)
                self._names.append(name)

    @torch.no_grad()
    def forward(self, policy: nn.Module, batch: dict):
        """What ``policy(batch)`` returned before training; no gradient, dropout off."""
        live = dict(policy.named_parameters())
        # DeepSpeed casts parameters to bf16 but leaves buffers in float32; the layers need one dtype.
        snapshot = {name: getattr(self, _SNAPSHOT + str(i)).to(live[name].dtype) for i, name in enumerate(self._names)}
        was_training = [module for module in policy.modules() if module.training]
        policy.eval()
        try:
            with adapters_disabled(policy):
                return functional_call(policy, snapshot, (batch,))
        finally:
            for module in was_training:
                module.training = True


class FrozenCopyReference(nn.Module):
    """A full frozen copy of the policy (full fine-tuning: memory doubles, as the guide says)."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(policy).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'FrozenCopyReference':
        """Stays in eval mode whatever the run does: a reference with dropout would not be a reference."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, policy: nn.Module, batch: dict):
        return self.copy(batch)


def build_reference(kind: str, policy: nn.Module) -> nn.Module | None:
    """``'none'`` (the guide's simplified form), ``'initial'`` (adapter off plus snapshots), ``'copy'`` or ``'stored'``.

    Returns:
        None for ``'none'``, and for ``'stored'``, whose logits come with the batches.

    Raises:
        ValueError: unknown kind.
    """
    if kind in ('none', 'stored'):
        return None
    if kind == 'initial':
        return InitialPolicyReference(policy)
    if kind == 'copy':
        return FrozenCopyReference(policy)
    raise ValueError(f'reference: {kind!r} is not one of "none", "initial", "copy", "stored"')
