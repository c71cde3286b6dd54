"""A trained model as a small adapter beside its start checkpoint, instead of a merged copy.

``adapter_model.safetensors`` and ``adapter_config.json`` are in peft's own format (LoRA factors under
``base_model.model.<module>``); ``trained_tensors.safetensors`` holds the tensors that were trained fully, by their name in
``Sa2VAModel``; ``base_checkpoint.json`` says what it belongs on.
"""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json, write_json
from sa2va_dpo.models.trainable import lora_layers
from .store import read_safetensors

_PREFIX = 'base_model.model.'
_WEIGHTS, _CONFIG, _TRAINED = 'adapter_model.safetensors', 'adapter_config.json', 'trained_tensors.safetensors'
_BASE = 'base_checkpoint.json'


def _base_fingerprint(model: nn.Module) -> str:
    """Hex digest of the names and shapes of the model without its adapter. Two families can have decoders of equal
    shape, so that an adapter of one would fit the other."""
    shapes = sorted((name.replace('.base_layer.', '.'), list(tensor.shape))
                    for name, tensor in model.state_dict().items() if '.lora_' not in name)
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def write_adapter(model: nn.Module, directory: Path, base: str) -> None:
    """Write the adapter files into an existing directory.

    Args:
        base: where the start checkpoint is, noted in the configuration.

    Raises:
        ValueError: the model has neither LoRA layers nor trainable tensors.
    """
    factors, ranks, alphas, rslora = {}, {}, {}, set()
    for name, layer in lora_layers(model):
        if list(layer.lora_A) != ['default']:
            raise ValueError(f'{name}: adapters {list(layer.lora_A)}; one adapter called "default" is supported')
        factors[f'{_PREFIX}{name}.lora_A.weight'] = layer.lora_A['default'].weight
        factors[f'{_PREFIX}{name}.lora_B.weight'] = layer.lora_B['default'].weight
        ranks[name], alphas[name] = layer.r['default'], layer.lora_alpha['default']
        # alpha / r, or alpha / sqrt(r) when rank-stabilised.
        rslora.add(abs(layer.scaling['default'] - alphas[name] / ranks[name]) > 1e-6 * layer.scaling['default'])
    if len(rslora) > 1:
        raise ValueError('some LoRA layers are rank-stabilised and some are not; one adapter cannot hold both')
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and '.lora_' not in name}
    if not factors and not trained:
        raise ValueError('nothing is trained: there is no LoRA layer and no trainable tensor')

    def plain(tensors: dict) -> dict:
        return {k: v.detach().cpu().contiguous().clone() for k, v in sorted(tensors.items())}

    if factors:
        first = next(iter(ranks))
        config = dict(peft_type='LORA', base_model_name_or_path=base, inference_mode=True, bias='none', lora_dropout=0.0,
                      r=ranks[first], lora_alpha=alphas[first], target_modules=sorted(ranks),
                      rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora.pop())
        write_json(directory / _CONFIG, config)
        save_file(plain(factors), directory / _WEIGHTS, metadata={'format': 'pt'})
    if trained:
        save_file(plain(trained), directory / _TRAINED, metadata={'format': 'pt'})
    write_json(directory / _BASE, dict(checkpoint=base, shapes=_base_fingerprint(model)))


@torch.no_grad()
def apply_adapter(model: nn.Module, directory: str | os.PathLike) -> int:
    """Put an adapter onto the start checkpoint's model, in place (LoRA layers are injected, frozen).

    Returns:
        Number of tensors taken from the adapter.

    Raises:
        InputError: no adapter there, or a tensor that does not fit this model, named.
    """
    directory = Path(directory)
    base = read_json(directory / _BASE, 'give the directory of an adapter', 'give the directory of an adapter', kind=dict)
    if base.get('shapes') != _base_fingerprint(model):
        raise InputError(f'{directory}: this adapter belongs to another model; put it on the checkpoint that it was '
                         f'trained from ({base.get("checkpoint")})')
    trained = read_safetensors(directory / _TRAINED) if (directory / _TRAINED).is_file() else {}
    factors = {}
    if (directory / _CONFIG).is_file():
        try:
            fields = read_json(directory / _CONFIG, kind=dict)
            config = LoraConfig(**{k: fields[k] for k in ('r', 'lora_alpha', 'target_modules', 'rank_pattern',
                                                          'alpha_pattern', 'use_rslora')})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{directory / _CONFIG}: not an adapter configuration ({error})') from None
        factors = read_safetensors(directory / _WEIGHTS)
        inject_adapter_in_model(config, model)
    wanted = {f'{_PREFIX}{name}.lora_{x}.weight': getattr(layer, f'lora_{x}')['default'].weight
              for name, layer in lora_layers(model) for x in 'AB'}
    # A fully trained tensor may have become the base of a LoRA layer.
    own = {name.replace('.base_layer.', '.'): p for name, p in model.named_parameters()}
    odd = sorted(set(wanted) ^ set(factors)) + sorted(set(trained) - set(own))
    if odd:
        raise InputError(f'{directory}: {odd[0]} has no counterpart ({len(odd)} in all); the adapter is incomplete or '
                         f'belongs to another model')
    pairs = [(name, wanted[name], tensor) for name, tensor in factors.items()]
    pairs += [(name, own[name], tensor) for name, tensor in trained.items()]
    for name, parameter, tensor in pairs:
        if parameter.shape != tensor.shape:
            raise InputError(f'{directory}: {name} has shape {list(tensor.shape)}, this model {list(parameter.shape)}')
    for _, parameter, tensor in pairs:
        parameter.copy_(tensor)
    model.requires_grad_(False)
    return len(pairs)
