"""A trained model as a small adapter beside its start checkpoint, instead of a merged copy.

``adapter_model.safetensors`` and ``adapter_config.json`` are in peft's own format (LoRA factors under
``base_model.model.<module>``); ``trained_tensors.safetensors`` holds the tensors that were trained fully, by their
name in ``Sa2VAModel``; ``base_checkpoint.json`` says what it belongs on: where that checkpoint was, a hash of its
weights, and its names and shapes.
"""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory, read_json, write_json, write_text
from sa2va_dpo.models.refinement import new_refinement
from sa2va_dpo.models.trainable import lora_layers
from sa2va_dpo.models.view_geometry import ViewGeometry

from .layout import ADAPTER_BASE, CARD_FILE, OWN_FILE, REFINEMENT_FILE, SAM2_DIMS, assign, is_adapter, json_object
from .store import CheckpointStore, read_safetensors

_PREFIX = 'base_model.model.'
_WEIGHTS, _CONFIG, _TRAINED = 'adapter_model.safetensors', 'adapter_config.json', 'trained_tensors.safetensors'
# Read of each weight file for its hash: this many pieces, evenly spread. A training step changes nearly every number.
_PIECES, _PIECE_BYTES = 64, 1 << 16


def _base_fingerprint(model: nn.Module) -> str:
    """Hex digest of the names and shapes of the model without its adapter and refinement (an adapter may bring the
    first one). Two families can have decoders of equal shape, so that an adapter of one would fit the other."""
    shapes = sorted((name.replace('.base_layer.', '.'), list(tensor.shape))
                    for name, tensor in model.state_dict().items()
                    if '.lora_' not in name and not name.startswith('refinement.'))
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def base_hash(directory: str | os.PathLike) -> str:
    """SHA-256, hex, of what makes a checkpoint the base of an adapter: size and evenly spread pieces of its weight
    files (all of a small one) and of its refinement, and its SAM2 sizes; of an adapter, its own files likewise and the
    hash of its base.

    The weights of released checkpoints are too large to be read a second time for a hash of every byte.
    """
    directory = Path(directory)
    total = hashlib.sha256()
    if is_adapter(directory):
        names = [_WEIGHTS, _TRAINED]
        # Of its record the hash alone: the path in it may be corrected.
        total.update(str(json_object(directory / ADAPTER_BASE).get('weights')).encode())
    else:
        names = [*CheckpointStore(directory).files, SAM2_DIMS, REFINEMENT_FILE]
    for path in (directory / name for name in names):
        if not path.is_file():
            continue
        size = path.stat().st_size
        total.update(size.to_bytes(8, 'little'))
        step = max(_PIECE_BYTES, (size - _PIECE_BYTES) // (_PIECES - 1))
        with open(path, 'rb') as file:
            for start in range(0, size, step):
                file.seek(start)
                total.update(file.read(_PIECE_BYTES))
    return total.hexdigest()


def check_base(directory: str | os.PathLike, base: str | os.PathLike) -> None:
    """Raise InputError unless ``base`` is the checkpoint from which the adapter in ``directory`` was trained."""
    recorded = json_object(Path(directory) / ADAPTER_BASE)
    if recorded.get('weights') != base_hash(base):
        raise InputError(f'{directory}: this adapter was trained from another checkpoint than {base} (its weights or '
                         f'its {SAM2_DIMS} differ); give the one that was at {recorded.get("checkpoint")}')


def export_adapter(model: nn.Module, out_dir: str | os.PathLike,
                   view: ViewGeometry | Mapping | int | str | None = None, card: str | None = None) -> Path:
    """Write what was trained as an adapter, to be loaded like a checkpoint or put on its base with
    :func:`load_adapter`.

    Args:
        model: with its LoRA layers in place and ``requires_grad`` as in training.
        out_dir: new or empty; it appears only when complete.
        view: how closely the policy looks; None: as its base states it.
        card: text of ``MODEL_CARD.md``; None writes none.

    Raises:
        InputError: the output directory is in use.
        ValueError: the model has neither LoRA layers nor trainable tensors, or came from no checkpoint.
    """
    if model.source is None:
        raise ValueError('the model came from no checkpoint: there is nothing that its adapter could belong on')
    with new_directory(Path(out_dir)) as part:
        write_adapter(model, part, model.source.given)
        if view is not None:
            write_json(part / OWN_FILE, dict(view=ViewGeometry.of(view).to_dict()))
        if card is not None:
            write_text(part / CARD_FILE, card)
    return Path(out_dir)


def write_adapter(model: nn.Module, directory: Path, base: Path) -> None:
    """Write the adapter files into an existing directory.

    Args:
        base: the start checkpoint, or the adapter that was merged into it before training.

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
        config = dict(peft_type='LORA', base_model_name_or_path=str(base), inference_mode=True, bias='none',
                      lora_dropout=0.0, r=ranks[first], lora_alpha=alphas[first], target_modules=sorted(ranks),
                      rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora.pop())
        write_json(directory / _CONFIG, config)
        save_file(plain(factors), directory / _WEIGHTS, metadata={'format': 'pt'})
    if trained:
        save_file(plain(trained), directory / _TRAINED, metadata={'format': 'pt'})
    write_json(directory / ADAPTER_BASE,
               dict(checkpoint=str(base), weights=base_hash(base), shapes=_base_fingerprint(model)))


@torch.no_grad()
def load_adapter(model: nn.Module, directory: str | os.PathLike) -> int:
    """Put an adapter onto the model of its base checkpoint, in place (LoRA layers are injected, frozen).

    That the checkpoint is the one it was trained from is for :func:`check_base`.

    Returns:
        Number of tensors taken from the adapter.

    Raises:
        InputError: no adapter there, or a tensor that does not fit this model, named.
    """
    directory = Path(directory)
    remedy = 'give the directory of an adapter'
    base = read_json(directory / ADAPTER_BASE, remedy, remedy, kind=dict)
    if base.get('shapes') != _base_fingerprint(model):
        raise InputError(f'{directory}: this adapter belongs to another model; put it on the checkpoint that it was '
                         f'trained from ({base.get("checkpoint")})')
    trained = read_safetensors(directory / _TRAINED) if (directory / _TRAINED).is_file() else {}
    if model.refinement is None and any(name.startswith('refinement.') for name in trained):
        model.refinement = new_refinement(model)
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
    places = {id(parameter): name for name, parameter in model.named_parameters()}
    for _, parameter, tensor in pairs:
        if parameter.is_meta:
            assign(model, places[id(parameter)], tensor)
        else:
            parameter.copy_(tensor)
    model.requires_grad_(False)
    return len(pairs)
