"""The supervised term: cross-entropy, Dice and clDice of the logits against a mask."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import checked_mask, is_number, real, soft_dice, to_pairs


def supervised_term(logits: Tensor, target: Tensor, *, bce_weight: float = 1.0, dice_weight: float = 1.0,
                    cldice_weight: float = 0.0, cldice_iterations: int = 10,
                    image_index: Tensor | None = None) -> Tensor:
    """Supervised loss per sample: ``bce_weight * BCE + dice_weight * (1 - Dice) + cldice_weight * (1 - clDice)``.

    BCE is the mean over pixels; Dice is :func:`soft_dice`; clDice is :func:`soft_cldice`.

    Args:
        logits: [N, H, W], or [B, H, W] with ``image_index`` [N].
        target: [N, H, W] in [0, 1]; soft targets are area averages.
        cldice_iterations: see :func:`soft_cldice`.

    Returns:
        [N]. A term of weight 0 is not computed.

    Raises:
        ValueError: shapes that differ, integer masks, a negative weight or all weights 0.
    """
    weights = dict(bce_weight=bce_weight, dice_weight=dice_weight, cldice_weight=cldice_weight)
    for name, weight in weights.items():
        if not (is_number(weight) and weight >= 0):
            raise ValueError(f'{name} {weight!r} must be a number of at least 0')
    if not any(weights.values()):
        raise ValueError('bce_weight, dice_weight and cldice_weight are all 0: the supervised term would be nothing')
    per_image = real(logits)
    z = to_pairs(per_image, image_index)
    y = checked_mask(target, z, 'target')
    loss = z.new_zeros(z.shape[0])
    if bce_weight:
        loss = loss + bce_weight * F.binary_cross_entropy_with_logits(z, y, reduction='none').mean((-2, -1))
    if dice_weight:
        loss = loss + dice_weight * (1 - soft_dice(z, y))
    if cldice_weight:
        loss = loss + cldice_weight * (1 - soft_cldice(per_image, y, cldice_iterations, image_index=image_index))
    return loss


def soft_cldice(logits: Tensor, target: Tensor, iterations: int = 10, eps: float = 1.0,
                image_index: Tensor | None = None) -> Tensor:
    """Differentiable centreline Dice (Shit et al., arXiv 2003.07311, algorithms 1 and 2).

    Topology precision: share of the predicted skeleton inside the target; topology sensitivity: share of the
    target's skeleton inside the prediction; clDice is their harmonic mean.

    Args:
        logits: [N, H, W], or [B, H, W] with ``image_index`` [N]: the skeleton of a prediction, by far the dearest
            part, is then computed once an image.
        target: [N, H, W] in [0, 1].
        iterations: of the soft skeleton; at least the largest vessel radius in pixels.
        eps: pixels, so that two empty masks score 1.

    Returns:
        [N] in (0, 1].
    """
    probability = real(logits).sigmoid()
    predicted = to_pairs(soft_skeleton(probability, iterations), image_index)
    p = to_pairs(probability, image_index)
    y = checked_mask(target, p, 'target')
    true = _target_skeleton(y, iterations)
    precision = ((predicted * y).sum((-2, -1)) + eps) / (predicted.sum((-2, -1)) + eps)
    sensitivity = ((true * p).sum((-2, -1)) + eps) / (true.sum((-2, -1)) + eps)
    return 2 * precision * sensitivity / (precision + sensitivity)


def soft_skeleton(probability: Tensor, iterations: int) -> Tensor:
    """Soft skeleton of [N, H, W] in [0, 1] (algorithm 1 of arXiv 2003.07311), same shape.

    Each round adds what a morphological opening removes from the image eroded so far. Beyond the border the image
    is taken to go on, so a vessel that leaves the frame is not eroded from the frame's edge.
    """
    # Shifted views are five times faster than max pooling on a CPU; through autograd they keep every intermediate
    # image.
    opened = _pooled_opening if probability.requires_grad and torch.is_grad_enabled() else _shifted_opening
    image, skeleton = probability, torch.zeros_like(probability)
    # Nothing can be removed from an empty image. To look is dearer than to go on where it waits for a GPU.
    may_stop = opened is _shifted_opening and probability.device.type == 'cpu'
    for _ in range(iterations + 1):
        if may_stop and not image.any():
            break
        eroded, dilated = opened(image)
        removed = F.relu(image - dilated)
        # The union of fuzzy sets a + b - ab; never above 1.
        skeleton = skeleton + removed - skeleton * removed
        image = eroded
    return skeleton


def _target_skeleton(target: Tensor, iterations: int) -> Tensor:
    """:func:`soft_skeleton` of masks [N, H, W]; one that repeats, as a mask chosen in several pairs does, once."""
    if target.device.type != 'cpu' or target.requires_grad:
        return soft_skeleton(target, iterations)
    place: dict[bytes, int] = {}
    row = [place.setdefault(mask.tobytes(), len(place)) for mask in target.contiguous().numpy()]
    distinct = [row.index(i) for i in range(len(place))]
    return soft_skeleton(target[distinct], iterations)[row]


def _pooled_opening(image: Tensor) -> tuple[Tensor, Tensor]:
    """[N, H, W] eroded by a cross, and that dilated by a square."""
    eroded = -torch.maximum(F.max_pool2d(-image, (3, 1), 1, (1, 0)), F.max_pool2d(-image, (1, 3), 1, (0, 1)))
    return eroded, F.max_pool2d(eroded, 3, 1, 1)


def _shifted_opening(image: Tensor) -> tuple[Tensor, Tensor]:
    """The same values as :func:`_pooled_opening`."""
    def neighbours(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        # Beyond the border the image goes on: its own edge repeated changes no extremum over a window that holds it.
        size = x.shape[axis]
        return (torch.cat((x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)), axis),
                torch.cat((x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)), axis))

    eroded = image
    for axis in (-2, -1):
        before, after = neighbours(image, axis)
        eroded = torch.minimum(eroded, torch.minimum(before, after))
    dilated = eroded
    for axis in (-2, -1):
        before, after = neighbours(dilated, axis)
        dilated = torch.maximum(dilated, torch.maximum(before, after))
    return eroded, dilated
