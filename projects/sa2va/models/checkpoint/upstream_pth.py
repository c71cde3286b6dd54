"""Upstream trainer checkpoints (``iter_N.pth``) over a base directory, as a directory in the released layout.

Upstream saves only what it trains: LoRA matrices and ``modules_to_save`` of the language model, projectors, the SAM2
mask decoder. Everything works on released names; no model is built, and one tensor is in memory at a time.

LoRA: Hu et al., arXiv 2106.09685: W + alpha / r * B A.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sa2va_dpo.common.errors import InputError

from .exporting import write_directory_like
from .layout import read_config
from .run import read_trained_tensors, weights_only_loads
from .store import CheckpointStore

_LORA = re.compile(r'(.*)\.lora_(A|B)(?:\.[^.]+)?\.weight$')
_SAVED = re.compile(r'(.*)\.modules_to_save\.[^.]+\.(weight|bias)$')
_ORIGINAL = re.compile(r'(.*)\.original_module\.(weight|bias)$')


@dataclass
class Change:
    """What happens to one released tensor: a new value, LoRA factors on top, or both."""

    value: str | None = None
    kind: str = ''
    lora_a: str | None = None
    lora_b: str | None = None


@dataclass
class Plan:
    """Released key -> change, and checkpoint keys that are superseded by another one (old copies that peft keeps)."""

    changes: dict[str, Change] = field(default_factory=dict)
    superseded: list[str] = field(default_factory=list)


def released_name(key: str, family_is_qwen: bool) -> str:
    """The released name of an upstream trainer's tensor (wrappers of the trainer and of peft taken off)."""
    key = key.removeprefix('module.')
    key = key.removeprefix('mllm.' if family_is_qwen else 'mllm.model.')
    key = key.replace('base_model.model.', '').replace('.base_layer.', '.')
    # SAM2's layer scale is called gamma in the trainer; transformers would rename that on loading.
    return re.sub(r'\.gamma$', '.g_weight', key)


def make_plan(keys, store: CheckpointStore, family_is_qwen: bool, where: str) -> Plan:
    """Give every checkpoint key its place.

    Raises:
        InputError: a key without a place in the base directory (none is ever dropped), or half of a LoRA pair.
    """
    plan, homeless = Plan(), []
    for key in keys:
        lora, saved, original = _LORA.match(key), _SAVED.match(key), _ORIGINAL.match(key)
        stem = lora or saved or original
        leaf = 'weight' if lora else stem.group(2) if stem else None
        name = released_name(f'{stem.group(1)}.{leaf}' if stem else key, family_is_qwen)
        if name not in store.tensors:
            homeless.append(key)
            continue
        if original:
            plan.superseded.append(key)
            continue
        change = plan.changes.setdefault(name, Change())
        if lora:
            attribute = 'lora_a' if lora.group(2) == 'A' else 'lora_b'
            if getattr(change, attribute) is not None:
                raise InputError(f'{where}: {key} and {getattr(change, attribute)} both belong to {name}; one adapter '
                                 f'per checkpoint')
            setattr(change, attribute, key)
        elif change.value is not None:
            raise InputError(f'{where}: {key} and {change.value} both give {name}')
        else:
            change.value, change.kind = key, 'modules_to_save' if saved else 'trained'
    if homeless:
        more = f' and {len(homeless) - 5} more' if len(homeless) > 5 else ''
        raise InputError(f'{where}: no place in {store.directory} for {", ".join(homeless[:5])}{more}; give the base '
                         f'directory that this run was started from')
    for name, change in plan.changes.items():
        if (change.lora_a is None) != (change.lora_b is None):
            raise InputError(f'{where}: {change.lora_a or change.lora_b} has no partner, the LoRA pair of {name} is '
                             f'incomplete')
    return plan


def alpha_of_config(path: Path) -> float | None:
    """The LoRA alpha stated in the config text that the trainer stores beside the weights, if there is exactly one."""
    if path.is_dir():
        return None
    with weights_only_loads():
        meta = torch.load(path, map_location='cpu', mmap=False).get('meta') or {}
    found = {float(x) for x in re.findall(r'lora_alpha[\'"]?\s*[=:]\s*([\d.]+)', str(meta.get('cfg', '')))}
    return found.pop() if len(found) == 1 else None


def convert(pth: str | Path, base: str | Path, output: str | Path, lora_alpha: float | None = None,
            rslora: bool = False) -> dict:
    """Write ``output``: the base directory with the trainer's tensors put in, shards, dtypes and other files kept.

    Args:
        pth: ``iter_N.pth``, a file or a DeepSpeed directory.
        base: a directory in the released layout with the same vocabulary.
        lora_alpha: None takes it from the config stored in the file.
        rslora: scale by alpha / sqrt(r) instead of alpha / r.

    Returns:
        The report: ``tensors`` maps every released key to where it came from; ``counts``; ``superseded``.

    Raises:
        InputError: a key without a place, another shape, an incomplete LoRA pair, an unknown alpha.
    """
    pth, base, output = Path(pth), Path(base), Path(output)
    where = str(pth)
    config, store = read_config(base), CheckpointStore(base)
    state = read_trained_tensors(pth)
    plan = make_plan(state, store, 'llm_config' not in config, where)
    has_lora = any(c.lora_a for c in plan.changes.values())
    if has_lora and lora_alpha is None:
        lora_alpha = alpha_of_config(pth)
        if lora_alpha is None:
            raise InputError(f'{where}: holds LoRA matrices but no config that states lora_alpha; give --lora-alpha '
                             f'(the run\'s config says it; upstream\'s own use 256 with r = 128)')
    origin = {}
    for name, info in store.tensors.items():
        change = plan.changes.get(name)
        if change is None:
            origin[name] = 'base'
            continue
        if change.value and tuple(state[change.value].shape) != info.shape:
            raise InputError(f'{where}: {change.value} has shape {list(state[change.value].shape)}, the base directory '
                             f'{list(info.shape)}; give the base directory that this run was started from')
        origin[name] = f'{change.kind} ({change.value})' if change.value else 'base'
        if change.lora_a:
            a, b = state[change.lora_a], state[change.lora_b]
            if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != info.shape or a.shape[0] != b.shape[1]:
                raise InputError(f'{where}: {change.lora_a} {list(a.shape)} and {change.lora_b} {list(b.shape)} do not '
                                 f'fit {name} {list(info.shape)}')
            origin[name] += f' + LoRA r={a.shape[0]} alpha={lora_alpha:g} ({change.lora_a})'

    def tensor_of(name: str) -> torch.Tensor:
        change, info = plan.changes.get(name), store.tensors[name]
        if change is None:
            return store.read(name)
        value = state[change.value].float() if change.value else store.read(name, torch.float32)
        if change.lora_a:
            a, b = state[change.lora_a].float(), state[change.lora_b].float()
            rank = a.shape[0]
            value = value + (lora_alpha / (rank ** 0.5 if rslora else rank)) * (b @ a)
        return value.to(info.dtype)

    write_directory_like(store, output, tensor_of)
    counts: dict[str, int] = {}
    for text in origin.values():
        kind = 'LoRA merged' if '+ LoRA' in text else text.split(' ')[0]
        counts[kind] = counts.get(kind, 0) + 1
    return dict(checkpoint=where, base=str(base), counts=counts, superseded=sorted(plan.superseded),
                tensors=dict(sorted(origin.items())))
