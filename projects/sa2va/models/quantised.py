"""A frozen language model in 4 or 8 bits (bitsandbytes): a quarter or half of its memory, for some rounding.

NF4: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314. int8: Dettmers et al.,
"LLM.int8()", arXiv 2208.07339. Only the matrices of the language model's layers; embeddings, norms, vision tower and
SAM2 keep their dtype. LoRA factors are trained beside the quantised matrices (peft).
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
_PREFIX = 'mllm.language_model.'


def check_quantisation(kind: str | None, trainable: Mapping | str | None) -> None:
    """Whether the language model may be quantised as ``kind`` where ``trainable`` says what moves.

    Raises:
        ValueError: an unknown kind, or the language model is trained fully: rounded weights cannot take small steps.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f'llm_quantisation: {kind!r} is not one of {", ".join(KINDS)}, None')
    llm = 'full' if trainable == 'all' else (trainable or {}).get('llm', 'frozen')
    if (llm if isinstance(llm, str) else dict(llm).get('mode')) == 'full':
        raise ValueError(f'llm_quantisation: {kind!r} needs a language model that is frozen or trained through LoRA, '
                         f'and trainable.llm is full: set it to "lora" or "frozen", or leave llm_quantisation out')


def quantiser(kind: str, checkpoint: str | os.PathLike, device: str | torch.device
              ) -> Callable[[nn.Module, str, torch.Tensor], None]:
    """What ``load_checkpoint`` is to do with each tensor that it has read: matrices of the language model's layers are
    quantised one by one as they come, so that the whole model is never in memory in its own dtype.

    Args:
        kind: one of ``KINDS``.
        checkpoint: directory that is read.
        device: where it goes.

    Raises:
        InputError: no GPU, bitsandbytes is not installed, or the checkpoint is an adapter, whose factors would have to
            be merged into rounded weights.
    """
    if torch.device(device).type != 'cuda':
        raise InputError(f'llm_quantisation={kind}: is for GPUs, and the model goes to {device}: leave it out here '
                         f'(--cfg-options model.llm_quantisation=None)')
    if is_adapter(checkpoint):
        raise InputError(f'{checkpoint}: is an adapter, which cannot be merged into a quantised language model: merge '
                         f'it first (tools/export_hf.py {checkpoint} OUTPUT), or leave llm_quantisation out')
    with extra('quantised', f'llm_quantisation={kind}'):
        import bitsandbytes  # noqa: F401
    # At every product of every step it says that it casts its input.
    logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)

    def place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
        path, _, leaf = name.rpartition('.')
        layer = model.get_submodule(path)
        if not (name.startswith(_PREFIX) and leaf == 'weight' and isinstance(layer, nn.Linear)):
            assign(model, name, tensor)
            return
        parent, _, child = path.rpartition('.')
        setattr(model.get_submodule(parent), child, quantised_linear(layer, tensor, kind))
        # peft asks the model that it changes what its layers are.
        model.mllm.language_model.is_loaded_in_4bit = kind == 'nf4'
        model.mllm.language_model.is_loaded_in_8bit = kind == 'int8'

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
