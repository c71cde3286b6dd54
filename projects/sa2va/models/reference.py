"""The frozen reference policy of DPO: the policy exactly as it was before training, or at the start of a round.

DPO: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290.
"""
from __future__ import annotations

import copy
import hashlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Iterator, Mapping, Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .trainable import adapters_add_nothing, adapters_disabled, in_eval_mode, lora_layers

REFERENCES = ('none', 'initial', 'copy', 'stored')
_SNAPSHOT = 'snapshot_'


@dataclass(frozen=True)
class _Anatomy:
    """What a pass of the reference touches in the policy, found once: a walk over all modules takes as long as many
    layers.

    Attributes:
        modules: all of the policy.
        layers: those that carry an adapter.
        places: for each snapshot, (module, attribute) of its parameter; more than one where weights are tied.
    """

    policy: nn.Module
    modules: list[nn.Module]
    layers: list[BaseTunerLayer]
    places: list[list[tuple[nn.Module, str]]]

    @classmethod
    def of(cls, policy: nn.Module, names: Sequence[str]) -> '_Anatomy':
        places: dict[int, list[tuple[nn.Module, str]]] = {id(policy.get_parameter(name)): [] for name in names}
        modules = list(policy.modules())
        for module in modules:
            for attribute, parameter in module._parameters.items():
                if id(parameter) in places:
                    places[id(parameter)].append((module, attribute))
        return cls(policy, modules, [layer for _, layer in lora_layers(policy)], list(places.values()))


@contextmanager
def _standing_in(places: Sequence[Sequence[tuple[nn.Module, str]]], tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside the block each module computes with the tensor given for its parameter, as ``torch.func.functional_call``
    has it, which looks for tied weights in the whole model at every call."""
    held = [(module, attribute, module._parameters[attribute]) for place in places for module, attribute in place]
    try:
        for place, tensor in zip(places, tensors, strict=True):
            for module, attribute in place:
                module._parameters[attribute] = tensor
        yield
    finally:
        for module, attribute, parameter in held:
            module._parameters[attribute] = parameter


class InitialPolicyReference(nn.Module):
    """Adapters off AND snapshots of every fully trained tensor, so no second copy of the model is held.

    Switching adapters off is not enough when a part is trained fully (projector, mask decoder): those tensors
    are copied here at construction. The copies are non-persistent buffers, so they follow the model's device and
    dtype but never enter a checkpoint by themselves: :meth:`state_dict_of_reference` hands them out.

    After :meth:`reset` the reference is the policy of that moment: snapshots of every trainable tensor, LoRA factors
    among them, and adapters left on.

    Args:
        policy: the ``Sa2VAModel`` after :func:`set_trainable` and before the first optimiser step.

    Attributes:
        version: counts resets and loads, for callers that keep the reference's logits.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self._names: list[str] = []
        self._anatomy: _Anatomy | None = None
        self.version = 0
        self._take({name: p for name, p in _trainable(policy).items() if 'lora_' not in name})

    def _take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for i in range(len(self._names)):
            delattr(self, _SNAPSHOT + str(i))
        self._names, self._anatomy = list(tensors), None
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(_SNAPSHOT + str(i), tensor.detach().clone(), persistent=False)

    def _parts(self, policy: nn.Module) -> _Anatomy:
        if self._anatomy is None or self._anatomy.policy is not policy:
            self._anatomy = _Anatomy.of(policy, self._names)
        return self._anatomy

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, _SNAPSHOT + str(i)) for i, name in enumerate(self._names)}

    @property
    def adapters_on(self) -> bool:
        """Whether the adapters belong to the reference (after a reset) or are off in it."""
        return any('lora_' in name for name in self._names)

    @torch.no_grad()
    def forward(self, policy: nn.Module, batch: dict):
        """What ``policy(batch)`` returned before training, or at the last reset; no gradient, dropout off."""
        parts = self._parts(policy)
        # DeepSpeed casts parameters to bf16 but leaves buffers in float32; the layers need one dtype.
        snapshot = [tensor.to(module._parameters[attribute].dtype) for tensor, ((module, attribute), *_) in
                    zip(self._snapshot().values(), parts.places, strict=True)]
        adapters = nullcontext() if self.adapters_on else adapters_disabled(parts.layers)
        with in_eval_mode(policy, parts.modules), adapters, _standing_in(parts.places, snapshot):
            return policy(batch)

    def reset(self, policy: nn.Module) -> None:
        """From now on the reference is the policy as it is now."""
        self._take(_trainable(policy))
        self.version += 1

    @torch.no_grad()
    def equals(self, policy: nn.Module) -> bool:
        """Whether the policy, with dropout off, is the reference: every trained tensor equals its snapshot, and
        adapters that are off in the reference add nothing (their B factors are zero)."""
        live = dict(policy.named_parameters())
        if not all(torch.equal(tensor.to(live[name]), live[name]) for name, tensor in self._snapshot().items()):
            return False
        return self.adapters_on or adapters_add_nothing(policy)

    def state_dict_of_reference(self) -> dict[str, torch.Tensor]:
        """The snapshots by parameter name of the policy, on the CPU: plain tensors, for a file beside a checkpoint."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self._snapshot().items()}

    def load_reference(self, policy: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`state_dict_of_reference` handed out, of this reference or of one that was reset.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; names it.
        """
        live = _trainable(policy)
        with_adapters = any('lora_' in name for name in tensors)
        wanted = {name: p for name, p in live.items() if with_adapters or 'lora_' not in name}
        odd = sorted(set(wanted) ^ set(tensors))
        if odd:
            raise ValueError(f'reference: {odd[0]} is {"missing" if odd[0] in wanted else "unexpected"} ({len(odd)} in '
                             f'all): these tensors belong to another trainable setting')
        for name, parameter in wanted.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(f'reference: {name} has shape {tuple(tensors[name].shape)}, the policy '
                                 f'{tuple(parameter.shape)}')
        self._take({name: tensors[name].to(parameter.device) for name, parameter in wanted.items()})
        self.version += 1


class FrozenCopyReference(nn.Module):
    """A full frozen copy of the policy (full fine-tuning: memory doubles, as the guide says)."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.version = 0
        self.copy = copy.deepcopy(policy).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'FrozenCopyReference':
        """Stays in eval mode whatever the run does: a reference with dropout would not be a reference."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, policy: nn.Module, batch: dict):
        return self.copy(batch)

    @torch.no_grad()
    def reset(self, policy: nn.Module) -> None:
        """From now on the reference is the policy as it is now."""
        copies = dict(self.copy.named_parameters())
        for name, parameter in _trainable(policy).items():
            copies[name].copy_(parameter)
        self.version += 1

    def equals(self, policy: nn.Module) -> bool:
        """Whether the policy, with dropout off, is the reference."""
        copies = dict(self.copy.named_parameters())
        return all(torch.equal(copies[name].to(parameter), parameter) for name, parameter in policy.named_parameters())

    def state_dict_of_reference(self) -> dict[str, torch.Tensor]:
        """The whole copy by parameter name, on the CPU."""
        return {name: p.detach().cpu().contiguous() for name, p in self.copy.named_parameters()}

    @torch.no_grad()
    def load_reference(self, policy: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`state_dict_of_reference` handed out.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; names it.
        """
        copies = dict(self.copy.named_parameters())
        odd = sorted(set(copies) ^ set(tensors))
        odd += [name for name in tensors if name in copies and tensors[name].shape != copies[name].shape]
        if odd:
            raise ValueError(f'reference: {odd[0]} does not fit ({len(odd)} in all): these tensors belong to another '
                             f'model')
        for name, parameter in copies.items():
            parameter.copy_(tensors[name])
        self.version += 1


def _trainable(policy: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def digests(policy: nn.Module) -> dict[torch.dtype, dict[str, str]]:
    """Hashes of every trainable tensor: of its bits, and of its bits once rounded to bfloat16, as DeepSpeed may do
    after the model was built."""
    found: dict[torch.dtype, dict[str, str]] = {}
    for name, parameter in _trainable(policy).items():
        for dtype in {parameter.dtype, torch.bfloat16}:
            found.setdefault(dtype, {})[name] = _digest(parameter.to(dtype))
    return found


@torch.no_grad()
def same_digests(policy: nn.Module, start: Mapping[torch.dtype, Mapping[str, str]]) -> bool:
    """Whether every trainable tensor is, in its present dtype, what :func:`digests` saw."""
    return all(start.get(p.dtype, {}).get(name) == _digest(p) for name, p in _trainable(policy).items())


def _digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()


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
    raise ValueError(f'reference: {kind!r} is not one of {", ".join(REFERENCES)}')
