"""What every loss on masks shares: shapes, dtypes, checks, averages over regions, soft Dice.

Shapes used throughout ``losses``: P pairs, B images, H x W pixels. Logits are [P, H, W], or [B, H, W] together with
``image_index`` [P] int64 that says to which image each pair belongs. Masks are [P, H, W], bool or floating point in
[0, 1]; integer masks are refused, because a 0/255 mask would be taken for a probability of 255. Half precision is
computed in float32, float64 stays float64.
"""
from __future__ import annotations

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor


def real(logits: Tensor) -> Tensor:
    """Any floating point as float32; float64 as it is."""
    # bfloat16 has 8 bits of mantissa: a sum over a million pixels would stop growing after a few hundred.
    return logits if logits.dtype == torch.float64 else logits.float()


def checked_mask(mask: Tensor, like: Tensor, name: str) -> Tensor:
    """A mask in the dtype of the logits ``like``.

    Raises:
        ValueError: an integer mask, or another shape than that of ``like``; says ``name``.
    """
    if not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise ValueError(f'{name} has dtype {mask.dtype}: masks are bool, or floating point in [0, 1]')
    if mask.shape != like.shape:
        raise ValueError(f'{name} {tuple(mask.shape)} and logits {tuple(like.shape)} must have one shape')
    return mask.to(like.dtype)


def checked_inputs(logits: Tensor, reference_logits: Tensor | None, chosen: Tensor, rejected: Tensor,
                   image_index: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """z, z_ref (detached) with a row per image (or pair), and y_w, y_l with a row per pair.

    Raises:
        ValueError: shapes that differ, no pairs, integer masks, an ``image_index`` that is not int64 [P].
    """
    if logits.ndim != 3:
        raise ValueError(f'logits {tuple(logits.shape)} must be [P, H, W]')
    if chosen.shape[0] == 0:
        raise ValueError('no pairs: a loss needs at least one')
    z = real(logits)
    if reference_logits is not None and reference_logits.shape != logits.shape:
        raise ValueError(f'reference_logits {tuple(reference_logits.shape)} and logits {tuple(logits.shape)} must have '
                         'one shape')
    z_ref = None if reference_logits is None else reference_logits.detach().to(z.dtype)
    if image_index is None:
        like = z
    else:
        if image_index.dtype != torch.int64 or image_index.shape != chosen.shape[:1]:
            raise ValueError(f'image_index must be int64 [P] = ({chosen.shape[0]},), not {image_index.dtype} '
                             f'{tuple(image_index.shape)}')
        like = z[:1].expand(chosen.shape[0], -1, -1)
    return z, z_ref, checked_mask(chosen, like, 'chosen'), checked_mask(rejected, like, 'rejected')


def to_pairs(per_image: Tensor, image_index: Tensor | None) -> Tensor:
    """A row per image -> a row per pair; without an index they are rows per pair already."""
    return per_image if image_index is None else per_image.index_select(0, image_index)


def is_number(value: object) -> bool:
    """A real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def soft_dice(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """Soft Dice with first-power denominator (Milletari et al., arXiv 1606.04797, have squares instead).

    ``(2 sum p y + eps) / (sum p + sum y + eps)``; eps in pixels makes two empty masks a Dice of 1 and keeps the
    logarithm of it finite.

    Args:
        logits: [N, H, W].
        target: [N, H, W] in [0, 1].

    Returns:
        [N] in (0, 1].
    """
    z = real(logits)
    y = checked_mask(target, z, 'target')
    p = z.sigmoid()
    overlap = (p * y).sum((-2, -1))
    return (2 * overlap + eps) / (p.sum((-2, -1)) + y.sum((-2, -1)) + eps)


def region_average(in_plus: Tensor, in_minus: Tensor, region: Tensor, reduction: str) -> Tensor:
    """Average ``in_plus`` over D+ and ``in_minus`` over D-, pooled (``disagreement``) or apart (``balanced``)."""
    plus, minus = F.relu(region), F.relu(-region)
    size_plus, size_minus = plus.sum((-2, -1)), minus.sum((-2, -1))
    sum_plus, sum_minus = (plus * in_plus).sum((-2, -1)), (minus * in_minus).sum((-2, -1))
    if reduction == 'disagreement':
        return ratio(sum_plus + sum_minus, size_plus + size_minus)
    filled = (size_plus > 0).to(region) + (size_minus > 0).to(region)
    return ratio(ratio(sum_plus, size_plus) + ratio(sum_minus, size_minus), filled)


def ratio(total: Tensor, size: Tensor) -> Tensor:
    """``total / size``, 0 for an empty region. The size never reaches 0 in the division: 0/0 would be NaN."""
    return total / torch.where(size > 0, size, torch.ones_like(size))
