"""What can be cached, and when it may be."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.frozen import DEPENDS


@dataclass(frozen=True)
class Kind:
    """One kind of result.

    Attributes:
        name: the key under which a batch brings it.
        parts: the trainable parts (``models/trainable.py``) that it depends on; none of them may move.
        modules: prefixes of the parameters that decide its values, for the fingerprint.
        replaces: kinds that are not needed where this one is brought.
    """

    name: str
    parts: frozenset[str]
    modules: tuple[str, ...]
    replaces: tuple[str, ...] = ()


# Where two would do, the stronger one comes first.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind('seg_states', DEPENDS['seg_states'], ('mllm.',), ('vision_tokens',)),
    Kind('vision_tokens', DEPENDS['vision_tokens'], ('mllm.vision_model.', 'mllm.mlp1.')),
    Kind('sam2_features', DEPENDS['sam2_features'], (
        'sam2.vision_encoder.', 'sam2.mask_decoder.conv_s', 'sam2.no_memory_embedding'), ('sam2_levels',)),
    Kind('sam2_levels', DEPENDS['sam2_levels'], ('sam2.vision_encoder.',)),
    # Of the policy before training: nothing that moves can change it.
    Kind('reference_low_res', frozenset(), ('',)),
)}


def obstacles(kind: Kind, trainable: Mapping | str, has_reference: bool, brightness: float) -> str | None:
    """Why ``kind`` cannot be cached in a run; None where it can.

    Args:
        trainable: normalised switches (the open parts), or ``'all'``.
        has_reference: the objective uses a reference.
        brightness: of the training set; its draws are endless, flips are four views and no obstacle.
    """
    if kind.name == 'reference_low_res' and not has_reference:
        return 'the objective has no reference'
    moving = kind.parts if trainable == 'all' else kind.parts & set(trainable)
    if moving:
        return f'it depends on {", ".join(sorted(moving))}, which is trained'
    if brightness:
        return f'the images are drawn anew at every visit (brightness {brightness})'
    return None


def choose(items: str | Sequence[str], trainable: Mapping | str, has_reference: bool, brightness: float) -> list[Kind]:
    """The kinds of a run.

    Args:
        items: ``'auto'`` for all that are possible and not replaced by a stronger one, or names of kinds.

    Raises:
        InputError: an unknown kind, or one that is impossible in this run.
    """
    if isinstance(items, str):
        if items != 'auto':
            raise InputError(f'cache.items: {items!r} must be "auto" or a list of {", ".join(KINDS)}')
        chosen = [kind for kind in KINDS.values() if obstacles(kind, trainable, has_reference, brightness) is None]
    else:
        chosen = []
        for name in items:
            if name not in KINDS:
                raise InputError(f'cache.items: unknown {name!r}; the kinds are {", ".join(KINDS)}')
            reason = obstacles(KINDS[name], trainable, has_reference, brightness)
            if reason:
                raise InputError(f'cache.items: {name} cannot be cached: {reason}; take it out, or set items="auto"')
            chosen.append(KINDS[name])
    replaced = {name for kind in chosen for name in kind.replaces}
    return [kind for kind in chosen if kind.name not in replaced]
