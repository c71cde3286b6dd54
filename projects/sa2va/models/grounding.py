"""The model that turns a [SEG] vector into a mask: SAM2, or SAM 3's tracker, behind one interface.

Both have ``vision_encoder`` (``backbone``, ``neck``; its output has ``fpn_hidden_states``, three levels),
``prompt_encoder``, ``mask_decoder``, ``no_memory_embedding`` and ``get_image_wide_positional_embeddings``; that is all
that ``Sa2VAModel`` calls. Where sizes are stated (``sam2_dims.json``, whatever the model), ``kind`` says which of the
two they are of. """
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.limits import check_model_sizes

from .sam2 import HIERA_LARGE_1024, build_sam2, check_sam2_dims
from .sam3 import SAM3_1008, build_sam3, check_sam3_dims, require_sam3


def is_sam3(dims: Mapping) -> bool:
    """Whether sizes are those of SAM 3's tracker."""
    return dims.get('kind', 'sam2') == 'sam3'


def complete_dims(dims: Mapping | None, where: str = 'sam2_dims.json') -> dict:
    """``dims`` over the released sizes: Hiera-Large at 1024 px, with ``kind='sam3'`` SAM 3's tracker at 1008 px.

    Raises:
        InputError: an unknown size or kind, or an image size that the strides do not divide.
    """
    dims = dict(dims or {})
    if dims.get('kind', 'sam2') not in ('sam2', 'sam3'):
        raise InputError(f'{where}: kind is {dims["kind"]!r}, must be sam2 or sam3')
    third = is_sam3(dims)
    defaults = SAM3_1008 if third else HIERA_LARGE_1024
    if not third:
        dims.pop('kind', None)
    unknown = sorted(set(dims) - set(defaults))
    if unknown:
        raise InputError(f'{where}: unknown field {", ".join(unknown)}; the fields are {", ".join(defaults)}')
    full = {**defaults, **dims}
    check_model_sizes(where, full)
    for name, value in full.items():
        if type(value) is not type(defaults[name]) and not (isinstance(defaults[name], float) and type(value) is int):
            raise InputError(f'{where}: {name} is {value!r}, must be like {defaults[name]!r}')
    (check_sam3_dims if third else check_sam2_dims)(full, where)
    return full


def require(dims: Mapping, what: str) -> None:
    """Raises InputError, about the checkpoint ``what``, where this transformers lacks the model of ``dims``."""
    if is_sam3(dims):
        require_sam3(what)


def build_grounding(dims: Mapping) -> nn.Module:
    """The model of complete sizes, with fresh weights (on the meta device inside ``empty_weights``).

    Raises:
        InputError: SAM 3 on a transformers that has none.
    """
    return build_sam3(dims) if is_sam3(dims) else build_sam2(dims)


def patch_embedding(grounding: nn.Module) -> torch.Tensor:
    """The weight that an image meets first; its dtype is the one that pixels must have."""
    backbone = grounding.vision_encoder.backbone
    found = backbone.patch_embed if hasattr(backbone, 'patch_embed') else backbone.embeddings.patch_embeddings
    return found.projection.weight
