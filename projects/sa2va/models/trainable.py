"""Which parts of the policy move: frozen, LoRA (through peft) or full, one switch per part.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""
from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Iterable, Iterator, Mapping, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .refinement import new_refinement

# Part name -> attribute path inside Sa2VAModel. A part holds what lies under its path and under no longer path here:
# the decoder's IoU and object-score heads get no gradient from a mask, so they are parts of their own.
PARTS: dict[str, str] = {
    'llm': 'mllm.language_model',
    'vision': 'mllm.vision_model',
    'vision_projector': 'mllm.mlp1',
    'projector': 'text_hidden_fcs',
    'sam2_encoder': 'sam2.vision_encoder.backbone',
    'sam2_neck': 'sam2.vision_encoder.neck',
    'prompt_encoder': 'sam2.prompt_encoder',
    'mask_decoder': 'sam2.mask_decoder',
    'iou_head': 'sam2.mask_decoder.iou_prediction_head',
    'object_score_head': 'sam2.mask_decoder.pred_obj_score_head',
    'refinement': 'refinement',
}
# Of parts that begin at nothing, where the run's learning rate is one for weights that have been trained long.
_LR_MULT = {'refinement': 10.0}

# Linear layers that carry a LoRA adapter, by the suffix of their module name.
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    'llm': ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'),
    'vision': ('q_proj', 'k_proj', 'v_proj', 'out_proj', 'qkv', 'projection_layer', 'proj', 'fc1', 'fc2',
               'gate_proj', 'up_proj', 'down_proj', 'linear_fc1', 'linear_fc2'),
    # The first four are SAM2's, the others SAM 3's.
    'sam2_encoder': ('qkv', 'proj', 'proj_in', 'proj_out', 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'fc1', 'fc2'),
}

_MODES = ('frozen', 'lora', 'full')


def _normalise(part: str, setting) -> dict:
    """One part's switch as a dict with ``mode``; raises ValueError naming the part and the field."""
    if not isinstance(setting, (str, Mapping)):
        raise ValueError(f'trainable.{part}: is {setting!r}, must be a mode or a dict with one')
    setting = dict(mode=setting) if isinstance(setting, str) else dict(setting)
    mode = setting.get('mode')
    if mode not in _MODES:
        raise ValueError(f'trainable[{part!r}]: mode is {mode!r}, must be one of {_MODES}')
    allowed = {'frozen': {'mode'}, 'full': {'mode', 'lr_mult'},
               'lora': {'mode', 'lr_mult', 'r', 'alpha', 'dropout', 'targets'}}[mode]
    unknown = sorted(set(setting) - allowed)
    if unknown:
        raise ValueError(f'trainable[{part!r}]: {", ".join(unknown)} is no field of mode {mode!r} '
                         f'(fields: {", ".join(sorted(allowed))})')
    if mode == 'full' and part in _LR_MULT:
        setting.setdefault('lr_mult', _LR_MULT[part])
    if mode == 'lora' and part not in LORA_TARGETS:
        raise ValueError(f'trainable[{part!r}]: LoRA is offered for {", ".join(LORA_TARGETS)}; '
                         f'this part is small, train it with mode "full"')
    rank = setting.get('r', 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f'trainable[{part!r}]: r is {rank!r}, must be a whole number of at least 1')
    for name, high in (('alpha', math.inf), ('dropout', 1.0), ('lr_mult', math.inf)):
        value = setting.get(name, 0.5)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < high:
            raise ValueError(f'trainable[{part!r}]: {name} is {value!r}, must be a number from 0'
                             + (' and below 1' if high == 1 else ''))
    return setting


def normalise_switches(spec: Mapping[str, str | Mapping] | str) -> dict[str, dict]:
    """The switches of every open part, checked without a model; see :func:`set_trainable`.

    Raises:
        ValueError: unknown part, mode or field, or every part is frozen.
    """
    if spec == 'all':
        return {part: dict(mode='full') for part in PARTS}
    if isinstance(spec, str):
        raise ValueError(f'trainable: {spec!r} must be "all" or a dict of parts ({", ".join(PARTS)})')
    unknown = sorted(set(spec) - set(PARTS))
    if unknown:
        raise ValueError(f'trainable: unknown part {", ".join(unknown)}; the parts are {", ".join(PARTS)}')
    switches = {part: _normalise(part, setting) for part, setting in spec.items()}
    switches = {part: setting for part, setting in switches.items() if setting['mode'] != 'frozen'}
    if not switches:
        raise ValueError('trainable: every part is frozen, there is nothing to train')
    return switches


def set_trainable(policy: nn.Module, spec: Mapping[str, str | Mapping] | str) -> dict[str, dict]:
    """Freeze everything, then open the parts that ``spec`` names.

    Args:
        policy: a ``Sa2VAModel``; changed in place (LoRA layers are injected).
        spec: part name (a key of ``PARTS``) -> ``'frozen'``, ``'full'``, ``'lora'`` or a dict with ``mode`` and,
            for LoRA, ``r`` (rank, default 64), ``alpha`` (default 2 r), ``dropout`` (default 0.0) and ``targets``
            (module-name suffixes), and ``lr_mult`` (multiplies the run's learning rate for this part; default 1, of
            ``refinement``, which is made where the model has none, 10).
            The string ``'all'`` opens every part that the model has fully (supervised training from scratch).

    Returns:
        The normalised switches, one per open part.

    Raises:
        ValueError: unknown part, mode or field, or nothing trainable.
    """
    switches = normalise_switches(spec)
    policy.requires_grad_(spec == 'all')
    if spec == 'all':
        return switches
    if 'refinement' in switches and policy.refinement is None:
        policy.refinement = new_refinement(policy)
    for part, setting in switches.items():
        module = _part(policy, part)
        if setting['mode'] == 'full':
            for name, parameter in policy.named_parameters():
                if part_of(name) == part:
                    parameter.requires_grad_(True)
            continue
        rank = setting.get('r', 64)
        targets = tuple(setting.get('targets', LORA_TARGETS[part]))
        names = [name for name, layer in module.named_modules()
                 if isinstance(layer, nn.Linear) and name.rsplit('.', 1)[-1] in targets]
        if not names:
            raise ValueError(f'trainable[{part!r}]: no linear layer is called {", ".join(targets)}')
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=setting.get('alpha', 2 * rank),
                       lora_dropout=setting.get('dropout', 0.0), target_modules=names), module)
    return switches


def store_trainable_as(policy: nn.Module, trainable: torch.dtype, frozen: torch.dtype) -> None:
    """Keep trained tensors in ``trainable`` while what is frozen stays in ``frozen``, in place.

    Where the two differ the policy computes under autocast in ``frozen``, as mixed-precision training does
    (Micikevicius et al., arXiv 1710.03740): frozen weights cost half the memory, optimiser steps are not rounded.
    """
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trainable)
    if trainable == frozen:
        return
    policy.autocast_dtype = frozen
    for _, layer in lora_layers(policy):
        # peft would copy every input into float32 first, only for autocast to copy it back.
        layer.cast_input_dtype_enabled = False


# Part with transformer layers -> the parts whose gradient passes through those layers.
_LAYERED: dict[str, tuple[str, ...]] = {
    'llm': ('llm', 'vision', 'vision_projector'), 'vision': ('vision',), 'sam2_encoder': ('sam2_encoder',)}


def checkpointed_parts(spec: Mapping[str, bool] | None = None) -> list[str]:
    """The parts of a specification for :func:`checkpoint_activations`, checked without a model; all there are by
    default.

    Raises:
        ValueError: another part, or a value that is no bool.
    """
    if spec is not None and not isinstance(spec, Mapping):
        raise ValueError(f'activation_checkpointing: {spec!r} must be a dict of parts ({", ".join(_LAYERED)}), or '
                         f'"auto"')
    for part, value in (spec or {}).items():
        if part not in _LAYERED or not isinstance(value, bool):
            raise ValueError(f'activation_checkpointing[{part!r}]: {value!r}; the parts are {", ".join(_LAYERED)}, '
                             f'the values True and False')
    return list(_LAYERED if spec is None else spec)


def checkpoint_activations(policy: nn.Module, spec: Mapping[str, bool]) -> int:
    """Let the layers of some parts keep only their inputs for the backward pass and run again in it.

    Memory of activations falls to about one layer's, time grows by that part's forward pass. A part through which no
    gradient flows keeps no activations anyway and is left as it is.

    Args:
        policy: after :func:`set_trainable`.
        spec: ``llm``, ``vision`` or ``sam2_encoder`` -> True or False; a part that is left out stays as it is.

    Returns:
        The number of layers that do so because of this call.

    Raises:
        ValueError: another part, or a value that is no bool.
    """
    checkpointed_parts(spec)
    moving = parts_with_layers(policy)
    policy.gradient_checkpointing_enable([PARTS[part] for part in moving if spec.get(part) is False], enable=False)
    return policy.gradient_checkpointing_enable([PARTS[part] for part in moving if spec.get(part)])


def parts_with_layers(policy: nn.Module) -> list[str]:
    """The parts that :func:`checkpoint_activations` takes and through which gradients flow."""
    moving = {part_of(name) for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return [part for part, through in _LAYERED.items() if moving.intersection(through)]


def part_of(parameter_name: str) -> str | None:
    """The part that a parameter of ``Sa2VAModel`` belongs to: the one with the longest matching path."""
    matches = [part for part, path in PARTS.items() if parameter_name.startswith(path + '.')]
    return max(matches, key=lambda part: len(PARTS[part]), default=None)


def _part(policy: nn.Module, part: str) -> nn.Module:
    """The module behind a part's name; raises ValueError when this family has no such module."""
    module = policy
    for name in PARTS[part].split('.'):
        module = getattr(module, name, None)
        if module is None:
            raise ValueError(f'trainable[{part!r}]: this model has no {PARTS[part]}')
    return module


def lora_layers(policy: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Every module that carries an adapter, with its name."""
    return [(name, module) for name, module in policy.named_modules() if isinstance(module, BaseTunerLayer)]


def adapters_add_nothing(policy: nn.Module) -> bool:
    """Whether every adapter's B factor is zero, so that the base weights alone answer (true where there is none)."""
    return not any(bool(parameter.any()) for name, parameter in policy.named_parameters()
                   if '.lora_' in name and '_B.' in name)


@contextmanager
def in_eval_mode(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Inside the block the model predicts as in validation, without gradient; what was training before is training
    after.

    Args:
        modules: all modules of ``model``, for callers that come back each step and have found them once.
    """
    # Switched one by one, past Module.__setattr__, which looks at what it is given first: thousands of modules twice
    # a step take longer than a layer, and between the launches of small kernels that counts.
    training = [vars(module) for module in modules or model.modules() if module.training]
    for attributes in training:
        attributes['training'] = False
    try:
        with torch.no_grad():
            yield
    finally:
        for attributes in training:
            attributes['training'] = True


@contextmanager
def adapters_disabled(layers: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """Switch LoRA adapters off inside the block: the base weights alone answer.

    What requires a gradient stays as it is: peft's own switch, ``enable_adapters``, takes it from the adapters and
    gives it back, which costs as much as a layer.

    Args:
        layers: every layer that carries one (:func:`lora_layers`), found once by callers that come back each step.
    """
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@torch.no_grad()
def merge_adapters(policy: nn.Module) -> None:
    """Fold every adapter into its base weight (W + alpha/r B A) and take the LoRA layers out, in place.

    Afterwards the parameter names are those of the untouched model again, which export needs.
    """
    for name, layer in lora_layers(policy):
        layer.merge(safe_merge=True)
        parent_name, _, leaf = name.rpartition('.')
        parent = policy.get_submodule(parent_name) if parent_name else policy
        setattr(parent, leaf, layer.get_base_layer())


def parameter_groups(policy: nn.Module, switches: Mapping[str, Mapping]) -> list[dict]:
    """Trainable parameters by part: ``[{part, lr_mult, params: [(name, parameter), ...]}, ...]``.

    What belongs to no part (single tensors such as SAM2's no-memory embedding, open only with ``'all'``) forms the
    last group, ``other``, so that no trainable parameter can be left out of the optimiser.
    """
    groups = {part: dict(part=part, lr_mult=float(setting.get('lr_mult', 1.0)), params=[])
              for part, setting in switches.items()}
    rest = []
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        (groups[part]['params'] if part in groups else rest).append((name, parameter))
    if rest:
        groups['other'] = dict(part='other', lr_mult=1.0, params=rest)
    return [group for group in groups.values() if group['params']]
