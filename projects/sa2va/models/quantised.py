"""A frozen language model or vision tower in 4 or 8 bits (bitsandbytes): a quarter or half of its memory, for some
rounding.

NF4: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314. int8: Dettmers et al.,
"LLM.int8()", arXiv 2208.07339. Only the matrices of their layers; embeddings, norms, projectors and SAM2 keep their
dtype. LoRA factors are trained beside the quantised matrices (peft).
"""
from __future__ import annotations

import logging
import os
from typing import Callable, Mapping

import torch
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.optional import extra
from sa2va_dpo.models.checkpoint import assign, is_adapter

KINDS = ('nf4', 'int8')
# Trainable part whose matrices can be quantised -> (the setting of the model that asks for it, prefix of its
# parameters, the part in words).
_PARTS = {'llm': ('llm_quantisation', 'mllm.language_model.', 'language model'),
          'vision': ('vision_quantisation', 'mllm.vision_model.', 'vision tower')}


def quantised_parts(settings: Mapping) -> dict[str, str]:
    """Part (``llm``, ``vision``) -> kind, of a model's settings ``llm_quantisation`` and ``vision_quantisation``."""
    return {part: settings[setting] for part, (setting, *_) in _PARTS.items() if settings.get(setting) is not None}


def check_quantisation(parts: Mapping[str, str], trainable: Mapping | str | None) -> None:
    """Whether parts may be quantised (:func:`quantised_parts`) where ``trainable`` says what moves.

    Raises:
        ValueError: an unknown kind, or the part is trained fully: rounded weights cannot take small steps.
    """
    for part, kind in parts.items():
        setting, _, words = _PARTS[part]
        if kind not in KINDS:
            raise ValueError(f'{setting}: {kind!r} is not one of {", ".join(KINDS)}, None')
        mode = 'full' if trainable == 'all' else (trainable or {}).get(part, 'frozen')
        if (mode if isinstance(mode, str) else dict(mode).get('mode')) == 'full':
            raise ValueError(f'{setting}: {kind!r} needs a {words} that is frozen or trained through LoRA, and '
                             f'trainable.{part} is full: set it to "lora" or "frozen", or leave {setting} out')


def quantiser(parts: Mapping[str, str], checkpoint: str | os.PathLike, device: str | torch.device
              ) -> Callable[[nn.Module, str, torch.Tensor], None]:
    """What ``load_checkpoint`` is to do with each tensor that it has read: matrices of the parts' layers are quantised
    one by one as they come, so that the whole model is never in memory in its own dtype.

    Args:
        parts: ``llm`` or ``vision`` -> one of ``KINDS``; nothing: every tensor goes into the model as it is.
        checkpoint: directory that is read.
        device: where it goes.

    Raises:
        InputError: no GPU, bitsandbytes is not installed, or the checkpoint is an adapter, whose factors would have to
            be merged into rounded weights.
    """
    if not parts:
        return assign
    part, kind = next(iter(parts.items()))
    setting = _PARTS[part][0]
    if torch.device(device).type != 'cuda':
        raise InputError(f'{setting}={kind}: is for GPUs, and the model goes to {device}: leave it out here '
                         f'(--cfg-options model.{setting}=None)')
    if is_adapter(checkpoint):
        raise InputError(f'{checkpoint}: is an adapter, which cannot be merged into quantised weights: merge it first '
                         f'(tools/export_hf.py {checkpoint} OUTPUT), or leave {setting} out')
    with extra('quantised', f'{setting}={kind}'):
        import bitsandbytes  # noqa: F401
    # At every product of every step it says that it casts its input.
    logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)

    def place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
        path, _, leaf = name.rpartition('.')
        layer = model.get_submodule(path)
        part = next((part for part in parts if name.startswith(_PARTS[part][1])), None)
        if part is None or leaf != 'weight' or not isinstance(layer, nn.Linear):
            assign(model, name, tensor)
            return
        parent, _, child = path.rpartition('.')
        setattr(model.get_submodule(parent), child, quantised_linear(layer, tensor, parts[part]))
        # peft asks the module that it changes what its layers are.
        root = model.get_submodule(_PARTS[part][1].rstrip('.'))
        root.is_loaded_in_4bit, root.is_loaded_in_8bit = parts[part] == 'nf4', parts[part] == 'int8'

    return place


def quantised_linear(layer: nn.Linear, weight: torch.Tensor, kind: str) -> nn.Linear:
    """bitsandbytes' layer in the place of ``layer``, with its bias.

    Args:
        layer: its own weight is not looked at.
        weight: ``[out, in]``, on the device where the layer is to be.
    """
    import bitsandbytes as bnb

    sizes = layer.in_features, layer.out_features
    if kind == 'nf4':
        new = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=weight.dtype, quant_type='nf4', device='meta')
        new.weight = bnb.nn.Params4bit(weight, quant_type='nf4', module=new).to(weight.device)
    else:
        # Without a threshold every column is in 8 bits: a frozen model's outliers would be looked for at every step.
        new = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=0.0, device='meta')
        # bitsandbytes quantises on the way from the host to the GPU.
        new.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False).to(weight.device)
    new.bias = layer.bias
    return new


def statistics(policy: nn.Module) -> dict[str, torch.Tensor]:
    """The scales of every quantised matrix, which are no parameters: with the codes they are its values."""
    found = {}
    for name, module in policy.named_modules():
        state = getattr(module.weight, 'quant_state', None) if isinstance(module, nn.Linear) else None
        if state is not None:
            found[f'{name}.weight.absmax'] = state.absmax
            if state.nested:
                found[f'{name}.weight.nested_absmax'] = state.state2.absmax
        elif isinstance(module, nn.Linear) and hasattr(module, 'state') and hasattr(module.weight, 'SCB'):
            # It moves from the weight to the layer's state with the first forward pass.
            found[f'{name}.weight.scale'] = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return found
