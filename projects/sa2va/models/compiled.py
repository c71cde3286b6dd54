"""Transformer layers compiled one by one (torch.compile; Ansel et al., "PyTorch 2", ASPLOS 2024).

A step of a small model on a fast GPU waits for the launches of its kernels, and a compiled layer launches fewer. The
repeated layers are compiled and nothing around them: layers of one shape share one compilation, and what reads a batch,
chooses a mask or caches stays plain Python.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Mapping

import torch
from mmengine.logging import MMLogger
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sa2va_dpo.common.errors import InputError, one_line
from sa2va_dpo.common.processes import pick_device

from .trainable import PARTS, checkpointed_parts

# SAM2 sees one image size, but its stages have their own: between two of them torch would take every side for one that
# varies. The other parts' lengths do vary (tiles, text): the second length makes the compilation one for any.
_DYNAMIC = {'sam2_encoder': False}
# How many compilations of one kind of layer may exist; beyond torch's 8 a layer would run uncompiled with a warning.
# SAM2's blocks are of a dozen shapes, each with and without gradient, with and without adapters, for every number of
# images.
_MOST_VARIANTS = 512


@dataclass(frozen=True)
class Compilation:
    """What is compiled and how.

    Attributes:
        parts: names of parts with transformer layers.
        backend: a name that ``torch.compile`` knows, or a function of its kind.
        mode: of the backend ``'inductor'``; None: its default.
    """

    parts: tuple[str, ...]
    backend: str | Callable = 'inductor'
    mode: str | None = None


def compilation(spec: bool | Mapping | None, quantised: Mapping[str, str] | None = None) -> Compilation | None:
    """The setting ``model.compile``, checked without a model.

    Args:
        spec: True, or a dict with any of ``parts`` (of ``llm``, ``vision``, ``sam2_encoder``; all by default),
            ``backend`` (default ``'inductor'``) and ``mode``. None and False are off.
        quantised: the model's quantised parts and their kinds.

    Returns:
        None where it is off.

    Raises:
        ValueError: an unknown field, part, backend or mode; a mode without inductor; a quantised one among the
            parts, whose kernels torch.compile cannot see into.
    """
    if spec is None or spec is False:
        return None
    if spec is not True and not isinstance(spec, Mapping):
        raise ValueError(f'compile: {spec!r} must be True, None or a dict (parts, backend, mode)')
    fields = {} if spec is True else dict(spec)
    unknown = sorted(set(fields) - {'parts', 'backend', 'mode'})
    if unknown:
        raise ValueError(f'compile: unknown field {", ".join(map(str, unknown))}; the fields are parts, backend, mode')
    known, parts = checkpointed_parts(), fields.get('parts')
    parts = known if parts is None else parts
    if not isinstance(parts, (list, tuple)) or not parts or [part for part in parts if part not in known]:
        raise ValueError(f'compile.parts: {parts!r} must be a list of some of {", ".join(known)}')
    hidden = {part: kind for part, kind in (quantised or {}).items() if part in parts}
    if hidden:
        words = ' and '.join(f'{part} in {kind}' for part, kind in hidden.items())
        left = [part for part in known if part not in hidden]
        raise ValueError(f'compile: cannot look into the kernels of {words}; name the other parts '
                         f'(dict(parts={left})), or leave the quantisation out')
    backend, mode = fields.get('backend', 'inductor'), fields.get('mode')
    if not callable(backend):
        if backend not in torch._dynamo.list_backends(exclude_tags=()):  # those for debugging too, which run anywhere
            usual = [*torch._dynamo.list_backends(), 'aot_eager', 'eager']
            raise ValueError(f'compile.backend: {backend!r} is not one of {", ".join(usual)}')
    if mode is not None:
        modes = list(torch._inductor.list_mode_options())
        if mode not in modes:
            raise ValueError(f'compile.mode: {mode!r} is not one of {", ".join(modes)}, None')
        if backend != 'inductor':
            raise ValueError(f'compile.mode: has no effect with backend {backend!r}; leave it out')
    return Compilation(tuple(dict.fromkeys(parts)), backend, mode)


def compile_layers(policy: nn.Module, how: Compilation, say: Callable[[str], None] | None = None) -> dict[str, int]:
    """Let the transformer layers of some parts be compiled when they are first called, in place.

    No name of a parameter and no state changes. A part that the model does not hold (a cache takes its place) is left
    out. A layer with activation checkpointing keeps its input only, as before: it is called again as a whole, or (from
    transformers 5 on) the compiler is told to compute again what is inside.

    Args:
        policy: a ``Sa2VAModel``, after :func:`..trainable.set_trainable`.
        how: see :func:`compilation`.
        say: takes one line on what was done; None: the run's log and its terminal.

    Returns:
        The number of layers of every part.

    Raises:
        InputError: the backend cannot compile on this machine (no C compiler, no Triton).
    """
    counts, device = {}, next(policy.parameters()).device
    if device.type != 'meta':
        _try(how.backend, how.mode, pick_device() if device.type == 'cpu' else str(device))
    _raise_limits()
    for part in how.parts:
        layers = layers_of(policy, part)
        for layer in layers:
            layer.compile(backend=how.backend, mode=how.mode, dynamic=_DYNAMIC.get(part))
        counts[part] = len(layers)
    text = ', '.join(f'{count} of {part}' for part, count in counts.items() if count) or 'none that this run holds'
    name = how.backend if isinstance(how.backend, str) else getattr(how.backend, '__name__', 'a function')
    line = f'compile: layers {text}, by {name}; the first steps take longer, and so does one with a new size'
    if say is None:
        # The terminal of a quiet command shows what is marked so: minutes without a step want a reason.
        MMLogger.get_current_instance().info(line, extra=dict(said=True))
    else:
        say(line)
    return counts


def undo_compilation(policy: nn.Module) -> None:
    """Let every layer run as it was before :func:`compile_layers`."""
    for module in policy.modules():
        module._compiled_call_impl = None


def layers_of(policy: nn.Module, part: str) -> list[nn.Module]:
    """The transformer layers of a part, in order; none where the model does not hold that part."""
    module: nn.Module | None = policy
    for name in PARTS[part].split('.'):
        module = getattr(module, name, None)
    return [] if module is None else [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]


def _raise_limits() -> None:
    """torch's limits on compilations of one function, which counts those of all layers of a kind."""
    config = torch._dynamo.config
    for name in ('recompile_limit', 'accumulated_recompile_limit'):
        # torch before 2.6 calls them otherwise.
        name = name if hasattr(config, name) else name.replace('recompile', 'cache_size')
        setattr(config, name, max(getattr(config, name), _MOST_VARIANTS))
    # Would cut a layer's graph where DDP's buckets end. A layer is small: its gradients are sent when it is done.
    config.optimize_ddp = False


@lru_cache(maxsize=None)
def _try(backend: str | Callable, mode: str | None, device: str) -> None:
    """Compile a trifle, so that a missing compiler is said in one line now and not from within the first step."""
    if not isinstance(backend, str):
        return
    try:
        torch.compile(lambda x: torch.relu(x + 1).sum(), backend=backend, mode=mode)(torch.ones(8, 8, device=device))
    except Exception as error:  # whatever a compiler, Triton or a missing header makes of it
        why = one_line(error, 1000).partition(' Set TORCHDYNAMO_VERBOSE')[0]
        raise InputError(f'compile: {backend} cannot compile for {device} here ({why}): install what it needs (a C '
                         f'compiler; Triton for a GPU), or leave compile out') from error
