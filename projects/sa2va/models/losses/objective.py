"""Preference losses between masks of one image, and the anchors that keep them honest: pure functions.

The policy gives one map of logits z for an image. A mask y (hard, or soft coverage in [0, 1]) has the per-pixel
Bernoulli log-likelihood ``y log p + (1 - y) log(1 - p)`` with ``p = sigmoid(z)``, so one map scores any mask. For a
chosen mask y_w and a rejected mask y_l with ``s = y_w - y_l`` the log-partition terms cancel:

    log pi(y_w) - log pi(y_l) = sum_i s_i z_i

Only pixels on which the masks disagree (the region D) carry signal. The losses use this identity rather than the
difference of two large sums, so pixels outside D contribute exactly nothing, in value and in gradient.

Shapes used throughout: P pairs, B images, H x W pixels. Logits are [P, H, W], or [B, H, W] together with
``image_index`` [P] int64 that says to which image each pair belongs. Masks are [P, H, W], bool or floating point in
[0, 1]; integer masks are refused, because a 0/255 mask would be taken for a probability of 255. Half precision is
computed in float32, float64 stays float64.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ('mean', 'sum', 'disagreement', 'balanced')
LOSS_TYPES = ('sigmoid', 'robust', 'hinge', 'ipo', 'dice')

# |z| above which a pixel counts as saturated: sigmoid(10) is within 5e-5 of 1, its gradient is as small.
SATURATED_LOGIT = 10.0


@dataclass(frozen=True)
class PreferenceOutput:
    """What :func:`preference_loss` returns. Everything but the losses is detached.

    Attributes:
        loss: scalar, the (weighted) mean of ``per_pair_loss``.
        per_pair_loss: [P], before pair weights.
        chosen_rewards, rejected_rewards: [P], ``beta * (log pi(y) - log pi_ref(y))``; ``beta * log pi(y)`` without
            a reference.
        margin: [P], chosen minus rejected reward.
        accuracy: scalar, the share of pairs with ``margin > 0``. A pair with a margin of exactly 0 (identical masks;
            every pair while policy and reference are still equal) does not count as preferred.
    """

    loss: Tensor
    per_pair_loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margin: Tensor
    accuracy: Tensor


# --- log-likelihood of masks ------------------------------------------------------------------------------------


def mask_log_prob(logits: Tensor, mask: Tensor, reduction: str = 'mean', region: Tensor | None = None) -> Tensor:
    """Bernoulli log-likelihood of a mask, reduced to one number a pair.

    With ``l_i = y_i log sigmoid(z_i) + (1 - y_i) log sigmoid(-z_i)`` (finite for every finite logit):

    * ``mean``: ``sum_i l_i / N`` (the guide's mask log-probability);
    * ``sum``: ``sum_i l_i``, the exact log-probability of the whole mask;
    * ``disagreement``: ``sum_i |r_i| l_i / sum_i |r_i|`` with r = ``region`` (RN-DPO, arXiv 2601.23222);
    * ``balanced``: the averages of l over D+ (weights ``relu(r)``) and over D- (weights ``relu(-r)``), averaged
      over those of the two that are not empty, so that neither thickening nor thinning outvotes the other.

    Worked: z = 0 everywhere, any hard mask of 4 pixels: every ``l_i = -log 2``; mean -0.6931, sum -2.7726.

    Args:
        logits: [P, H, W].
        mask: [P, H, W] in [0, 1].
        reduction: one of :data:`REDUCTIONS`.
        region: [P, H, W] signed disagreement ``chosen - rejected``, for the last two reductions only.

    Returns:
        [P] float32 (float64 for float64 logits). 0 where the region is empty.

    Raises:
        ValueError: unknown reduction, shapes that differ, integer masks, a region missing or not asked for.
    """
    _check_reduction(reduction)
    regional = reduction in ('disagreement', 'balanced')
    if regional and region is None:
        raise ValueError(f'reduction {reduction!r} needs region = chosen - rejected, [P, H, W]')
    if not regional and region is not None:
        raise ValueError(f'reduction {reduction!r} is over all pixels: leave region out')
    z = _real(logits)
    y = _mask(mask, z, 'mask')
    log_likelihood = y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)
    if not regional:
        total = log_likelihood.sum((-2, -1))
        return total if reduction == 'sum' else total / (z.shape[-2] * z.shape[-1])
    return _region_average(log_likelihood, log_likelihood, region.to(z), reduction)


def log_ratio_margin(logits: Tensor, chosen: Tensor, rejected: Tensor, *, reference_logits: Tensor | None = None,
                     reduction: str = 'mean', clip: float | None = None, image_index: Tensor | None = None) -> Tensor:
    """``(log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l))``, one number a pair.

    Computed as ``sum_i w_i s_i d_i`` with ``s = y_w - y_l`` and ``d = z - z_ref`` (d = z without a reference); the
    weights w are 1/N, 1, 1/|D| with ``|D| = sum |s|``, or for ``balanced`` 1/(k |D+|) and 1/(k |D-|), where k counts
    the non-empty ones of D+ and D-.

    ``clip`` bounds d to [-clip, clip] at each pixel (a trust region: a pixel that has moved that far from the
    reference, in either direction, gets no further push from the preference term).

    Soft masks are read as coverage: a pixel with ``|s_i| = 0.3`` is three tenths of a pixel of D.

    Worked: z = (2, -1), y_w = (1, 0), y_l = (0, 1): s = (1, -1), sum s z = 3; mean 1.5, disagreement 1.5,
    balanced ((2) + (1)) / 2 = 1.5.

    Returns:
        [P], differentiable in ``logits``; exactly 0 with zero gradient where the masks are identical.

    Raises:
        ValueError: as :func:`preference_loss`.
    """
    _check_reduction(reduction)
    _check_clip(clip, reference_logits is not None)
    z, z_ref, y_w, y_l = _inputs(logits, reference_logits, chosen, rejected, image_index)
    change = _change(z, z_ref, clip)
    return _reduce_signed(_per_pair(change, image_index), y_w - y_l, reduction)


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
    z = _real(logits)
    y = _mask(target, z, 'target')
    p = z.sigmoid()
    overlap = (p * y).sum((-2, -1))
    return (2 * overlap + eps) / (p.sum((-2, -1)) + y.sum((-2, -1)) + eps)


# --- the preference loss ------------------------------------------------------------------------------------------


def preference_loss(logits: Tensor, chosen: Tensor, rejected: Tensor, *, reference_logits: Tensor | None = None,
                    beta: float = 0.1, label_smoothing: float = 0.0, reduction: str = 'mean',
                    loss_type: str = 'sigmoid', clip: float | None = None, pair_weights: Tensor | None = None,
                    image_index: Tensor | None = None) -> PreferenceOutput:
    """Push the policy towards the chosen mask and away from the rejected one.

    With h the log-ratio margin of :func:`log_ratio_margin`:

    * ``sigmoid``: ``-(1 - e) log sigma(beta h) - e log sigma(-beta h)``, e = ``label_smoothing``. e = 0 is DPO
      (Rafailov et al., arXiv 2305.18290): with a reference and ``reduction='mean'`` the guide's full form, without
      one its simplified form. e > 0 is conservative DPO (Mitchell 2023): the label is wrong with probability e.
    * ``robust``: ``(-(1 - e) log sigma(beta h) + e log sigma(-beta h)) / (1 - 2 e)`` (Chowdhury et al.,
      arXiv 2403.00409), unbiased under label flips with probability e.
    * ``hinge``: ``relu(1 - beta h)`` (SLiC, arXiv 2305.10425; RSO, arXiv 2309.06657).
    * ``ipo``: ``(h - 1 / (2 beta))^2`` (Azar et al., arXiv 2310.12036) on AVERAGE log-likelihoods, as TRL has it.
    * ``dice``: ``sigmoid`` with ``log softDice(p, y)`` in the place of ``log pi(y)``: a likelihood of the whole mask
      in which background pixels do not dominate.

    Worked: z = (2, -1), y_w = (1, 0), y_l = (0, 1), mean, beta 0.1, no reference: h = 1.5, loss
    ``-log sigma(0.15) = 0.6210``; chosen reward 0.1 (log sigma(2) + log sigma(1)) / 2 = -0.02201, rejected -0.17201.

    Rewards are computed with the reduction of the loss. With ``clip``, the policy they score is the clipped one, so
    that ``margin = chosen_rewards - rejected_rewards = beta h`` always holds.

    Args:
        logits: [P, H, W], or [B, H, W] with ``image_index``.
        chosen, rejected: [P, H, W] in [0, 1].
        reference_logits: shape of ``logits``; no gradient flows into them.
        beta: > 0, inverse temperature of the implicit reward.
        clip: largest change of a logit against the reference that counts, > 0 (see :func:`log_ratio_margin`).
        pair_weights: [P], not negative; the loss is the mean of ``weight * per_pair_loss``.
        image_index: [P] int64.

    Raises:
        ValueError: an unsupported combination (see :func:`check_combination`), shapes that differ, integer masks.
    """
    check_combination(loss_type=loss_type, reduction=reduction, beta=beta, label_smoothing=label_smoothing, clip=clip,
                      has_reference=reference_logits is not None)
    z, z_ref, y_w, y_l = _inputs(logits, reference_logits, chosen, rejected, image_index)
    if pair_weights is not None and pair_weights.shape != y_w.shape[:1]:
        raise ValueError(f'pair_weights {tuple(pair_weights.shape)} must be [P] = ({y_w.shape[0]},)')

    change = _change(z, z_ref, clip)
    if clip is None:
        scored = z
    else:
        scored = z_ref + change
    if loss_type == 'dice':
        h, chosen_log_ratio = _dice_log_ratios(scored, z_ref, y_w, y_l, image_index)
    else:
        signed = y_w - y_l
        h = _reduce_signed(_per_pair(change, image_index), signed, reduction)
        chosen_log_ratio = _chosen_log_ratio(scored, z_ref, y_w, signed, reduction, image_index)

    per_pair = _loss_of_margin(h, loss_type, beta, label_smoothing)
    loss = per_pair.mean() if pair_weights is None else (per_pair * pair_weights.to(per_pair)).mean()
    margin = beta * h.detach()
    chosen_rewards = beta * chosen_log_ratio
    return PreferenceOutput(loss=loss, per_pair_loss=per_pair, chosen_rewards=chosen_rewards,
                            rejected_rewards=chosen_rewards - margin, margin=margin,
                            accuracy=(margin > 0).to(margin).mean())


def check_combination(*, loss_type: str, reduction: str, beta: float, label_smoothing: float, clip: float | None,
                      has_reference: bool) -> None:
    """Raise ``ValueError`` with the reason for settings that cannot mean anything together."""
    _check_reduction(reduction)
    if loss_type not in LOSS_TYPES:
        raise ValueError(f'loss_type {loss_type!r} must be one of {", ".join(LOSS_TYPES)}')
    if not (_is_number(beta) and math.isfinite(beta) and beta > 0):
        raise ValueError(f'beta {beta!r} must be a number above 0')
    if not (_is_number(label_smoothing) and 0 <= label_smoothing < 0.5):
        raise ValueError(f'label_smoothing {label_smoothing!r} must be in [0, 0.5): at one half the labels say nothing')
    if loss_type == 'robust' and label_smoothing == 0:
        raise ValueError('loss_type "robust" corrects for the flip rate label_smoothing: give one in (0, 0.5), '
                         'or use loss_type "sigmoid", which it equals at 0')
    if loss_type in ('hinge', 'ipo') and label_smoothing > 0:
        raise ValueError(f'loss_type {loss_type!r} has no label_smoothing: set it to 0, or use "sigmoid" or "robust"')
    if loss_type == 'ipo' and reduction == 'sum':
        raise ValueError('loss_type "ipo" regresses the margin onto 1 / (2 beta), which only fits average '
                         'log-likelihoods: reduction "sum" grows with the image; use "mean", "disagreement" or '
                         '"balanced"')
    if loss_type == 'dice' and reduction != 'mean':
        raise ValueError(f'loss_type "dice" is a ratio over the whole mask, reduction {reduction!r} has no meaning '
                         'for it: leave reduction at "mean"')
    _check_clip(clip, has_reference)


def _loss_of_margin(h: Tensor, loss_type: str, beta: float, label_smoothing: float) -> Tensor:
    if loss_type == 'ipo':
        return (h - 1 / (2 * beta)).square()
    if loss_type == 'hinge':
        return F.relu(1 - beta * h)
    right, flipped = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    if loss_type == 'robust':
        return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * flipped


def _dice_log_ratios(z: Tensor, z_ref: Tensor | None, y_w: Tensor, y_l: Tensor,
                     image_index: Tensor | None) -> tuple[Tensor, Tensor]:
    z = _per_pair(z, image_index)
    log_w, log_l = soft_dice(z, y_w).log(), soft_dice(z, y_l).log()
    h, chosen = log_w - log_l, log_w.detach()
    if z_ref is not None:
        z_ref = _per_pair(z_ref, image_index)
        ref_w = soft_dice(z_ref, y_w).log()
        h = h - (ref_w - soft_dice(z_ref, y_l).log())
        chosen = chosen - ref_w
    return h, chosen


@torch.no_grad()
def _chosen_log_ratio(z: Tensor, z_ref: Tensor | None, y_w: Tensor, signed: Tensor, reduction: str,
                      image_index: Tensor | None) -> Tensor:
    """``log pi(y_w) - log pi_ref(y_w)`` in the loss's reduction; the rejected one follows from the margin."""
    regional = reduction in ('disagreement', 'balanced')
    # The |s_i| share of pixel i that lies in D is wholly vessel in one mask and wholly background in the other;
    # only with this reading do the rewards of soft masks differ by exactly the margin.
    label = (signed > 0).to(signed) if regional else y_w
    region = signed if regional else None
    log_ratio = mask_log_prob(_per_pair(z, image_index), label, reduction, region)
    if z_ref is not None:
        log_ratio = log_ratio - mask_log_prob(_per_pair(z_ref, image_index), label, reduction, region)
    return log_ratio


def _change(z: Tensor, z_ref: Tensor | None, clip: float | None) -> Tensor:
    if z_ref is None:
        return z
    change = z - z_ref
    return change if clip is None else change.clamp(-clip, clip)


def _reduce_signed(change: Tensor, signed: Tensor, reduction: str) -> Tensor:
    """``sum_i w_i s_i d_i`` of :func:`log_ratio_margin`."""
    if reduction in ('mean', 'sum'):
        total = (signed * change).sum((-2, -1))
        return total if reduction == 'sum' else total / (change.shape[-2] * change.shape[-1])
    return _region_average(change, -change, signed, reduction)


def _region_average(in_plus: Tensor, in_minus: Tensor, region: Tensor, reduction: str) -> Tensor:
    """Average ``in_plus`` over D+ and ``in_minus`` over D-, pooled (``disagreement``) or apart (``balanced``)."""
    plus, minus = F.relu(region), F.relu(-region)
    size_plus, size_minus = plus.sum((-2, -1)), minus.sum((-2, -1))
    sum_plus, sum_minus = (plus * in_plus).sum((-2, -1)), (minus * in_minus).sum((-2, -1))
    if reduction == 'disagreement':
        return _ratio(sum_plus + sum_minus, size_plus + size_minus)
    filled = (size_plus > 0).to(region) + (size_minus > 0).to(region)
    return _ratio(_ratio(sum_plus, size_plus) + _ratio(sum_minus, size_minus), filled)


def _ratio(total: Tensor, size: Tensor) -> Tensor:
    """``total / size``, 0 for an empty region. The size never reaches 0 in the division: 0/0 would be NaN."""
    return total / torch.where(size > 0, size, torch.ones_like(size))


# --- anchors ------------------------------------------------------------------------------------------------------


def segmentation_anchor(logits: Tensor, target: Tensor, *, bce_weight: float = 1.0, dice_weight: float = 1.0,
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
        if not (_is_number(weight) and weight >= 0):
            raise ValueError(f'{name} {weight!r} must be a number of at least 0')
    if not any(weights.values()):
        raise ValueError('bce_weight, dice_weight and cldice_weight are all 0: the supervised term would be nothing')
    per_image = _real(logits)
    z = _per_pair(per_image, image_index)
    y = _mask(target, z, 'target')
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
    probability = _real(logits).sigmoid()
    predicted = _per_pair(soft_skeleton(probability, iterations), image_index)
    p = _per_pair(probability, image_index)
    y = _mask(target, p, 'target')
    true = _target_skeleton(y, iterations)
    precision = ((predicted * y).sum((-2, -1)) + eps) / (predicted.sum((-2, -1)) + eps)
    sensitivity = ((true * p).sum((-2, -1)) + eps) / (true.sum((-2, -1)) + eps)
    return 2 * precision * sensitivity / (precision + sensitivity)


def soft_skeleton(probability: Tensor, iterations: int) -> Tensor:
    """Soft skeleton of [N, H, W] in [0, 1] (algorithm 1 of arXiv 2003.07311), same shape.

    Each round adds what a morphological opening removes from the image eroded so far. Beyond the border the image
    is taken to go on, so a vessel that leaves the frame is not eroded from the frame's edge.
    """
    # Shifted views are five times faster than max pooling on a CPU; through autograd they keep every intermediate image.
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
    """:func:`soft_skeleton` of masks [N, H, W]; those that repeat, as a mask does that is chosen in several pairs, once."""
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
        # Beyond the border the image goes on: its own edge repeated changes no extremum over a window that holds the edge.
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


def kl_to_reference(logits: Tensor, reference_logits: Tensor, chosen: Tensor, rejected: Tensor, *,
                    image_index: Tensor | None = None) -> Tensor:
    """Mean Bernoulli KL(reference || policy) over the pixels on which the masks agree, [P].

    ``KL_i = p_ref (z_ref - z) + softplus(z) - softplus(z_ref)``, weighted by ``1 - |y_w - y_l|``. This direction is
    convex in z and its gradient, ``p - p_ref``, does not vanish when the policy saturates on the wrong side, which
    is the collapse it is there to stop; KL(policy || reference) would let go of exactly those pixels.

    Worked: z_ref = 0, z = log 3: p_ref 1/2, p 3/4; KL = log(4) - log(2) - log(3)/2 = 0.1438.

    Returns:
        [P], 0 where the masks disagree everywhere. No gradient flows into the reference.

    Raises:
        ValueError: shapes that differ, integer masks.
    """
    z, z_ref, y_w, y_l = _inputs(logits, reference_logits, chosen, rejected, image_index)
    kl = z_ref.sigmoid() * (z_ref - z) + F.softplus(z) - F.softplus(z_ref)
    outside = 1 - (y_w - y_l).abs()
    return _ratio((outside * _per_pair(kl, image_index)).sum((-2, -1)), outside.sum((-2, -1)))


# --- configuration and the whole objective ------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceConfig:
    """The objective of a preference run; the defaults are the guide's objective as written.

    Attributes:
        beta, label_smoothing, reduction, loss_type, clip: see :func:`preference_loss`.
        weight: of the preference term; 0 is the anchor-only twin of a run.
        sft_weight: of the supervised anchor on the chosen mask (:func:`segmentation_anchor`).
        sft_bce, sft_dice, sft_cldice: the anchor's own weights.
        cldice_iterations: see :func:`soft_cldice`.
        kl_weight: of :func:`kl_to_reference`; needs a reference.
        gap_weighting: weigh pairs by ``iou_gap`` normalised to mean 1 over the batch (no effect with one pair a
            batch).
        use_reference: the guide's full form, else its simplified form.

    Raises:
        ValueError: a value or a combination that has no meaning, naming ``preference.<field>`` settings.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    reduction: str = 'mean'
    loss_type: str = 'sigmoid'
    clip: float | None = None
    weight: float = 1.0
    sft_weight: float = 0.0
    sft_bce: float = 1.0
    sft_dice: float = 1.0
    sft_cldice: float = 0.0
    cldice_iterations: int = 10
    kl_weight: float = 0.0
    gap_weighting: bool = False
    use_reference: bool = True

    def __post_init__(self) -> None:
        for name in ('gap_weighting', 'use_reference'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'preference.{name} {getattr(self, name)!r} must be True or False')
        for name in ('weight', 'sft_weight', 'sft_bce', 'sft_dice', 'sft_cldice', 'kl_weight'):
            value = getattr(self, name)
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(f'preference.{name} {value!r} must be a number of at least 0')
        iterations = self.cldice_iterations
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f'preference.cldice_iterations {iterations!r} must be a whole number of at least 1')
        try:
            check_combination(loss_type=self.loss_type, reduction=self.reduction, beta=self.beta,
                              label_smoothing=self.label_smoothing, clip=self.clip, has_reference=self.use_reference)
        except ValueError as error:
            raise ValueError(f'preference: {error}') from None
        if self.kl_weight and not self.use_reference:
            raise ValueError('preference: kl_weight needs a reference to stay close to: set use_reference=True, '
                             'or kl_weight=0')
        if self.sft_weight and not (self.sft_bce or self.sft_dice or self.sft_cldice):
            raise ValueError('preference: sft_weight is set but sft_bce, sft_dice and sft_cldice are all 0')
        if not (self.weight or self.sft_weight or self.kl_weight):
            raise ValueError('preference: weight, sft_weight and kl_weight are all 0, there is nothing to train')

    @classmethod
    def from_dict(cls, settings: Mapping) -> 'PreferenceConfig':
        """From a config's ``preference=dict(...)``.

        ``type='guide'`` is the guide's objective as written (mean log-probability, sigmoid, beta 0.1, no anchor);
        beside it only the guide's own knobs ``beta``, ``label_smoothing`` and ``use_reference`` may be set.

        Raises:
            ValueError: an unknown field, an unknown type, or settings that contradict ``type='guide'``.
        """
        settings = dict(settings)
        kind = settings.pop('type', None)
        defaults = {field.name: field.default for field in fields(cls)}
        unknown = sorted(str(name) for name in set(settings) - set(defaults))
        if unknown:
            raise ValueError(f'preference: unknown field {", ".join(unknown)}: the fields are '
                             f'{", ".join(defaults)} and type')
        if kind not in (None, 'guide'):
            raise ValueError(f'preference.type {kind!r} must be "guide" or left out')
        if kind == 'guide':
            free = ('beta', 'label_smoothing', 'use_reference')
            other = [f'{name}={value!r}' for name, value in settings.items()
                     if name not in free and value != defaults[name]]
            if other:
                # A derived config is merged into its base, so these may come from there unseen.
                raise ValueError(f'preference: type="guide" is the guide\'s objective as written and contradicts '
                                 f'{", ".join(other)}: leave these out, or, if they come from the base config, write '
                                 f'preference=dict(_delete_=True, type="guide")')
        return cls(**settings)


def combined_loss(config: PreferenceConfig, logits: Tensor, reference_logits: Tensor | None, chosen: Tensor,
                  rejected: Tensor, gaps: Tensor | None = None, image_index: Tensor | None = None) -> dict[str, Tensor]:
    """The whole objective of a batch of pairs.

    Args:
        logits: [P, H, W], or [B, H, W] with ``image_index``.
        reference_logits: same shape; exactly when ``config.use_reference``.
        chosen, rejected: [P, H, W] in [0, 1].
        gaps: [P], ``iou_gap`` of each pair; needed for ``gap_weighting`` only.
        image_index: [P] int64.

    Returns:
        Scalars. To be summed (already weighted): ``dpo_loss``; ``sft_loss`` and ``kl_loss`` where their weights are
        above 0. To be logged (detached): ``preference_nll``, ``sft_nll`` and ``kl`` (the same terms before their
        weights), ``accuracy``, ``margin``, ``chosen_rewards``, ``rejected_rewards``, ``disagreement_pixels`` (mean
        |D|), ``saturation`` (share of pixels with ``|z| > 10``), ``drift_outside`` (mean ``|z - z_ref|`` where the
        masks agree; with a reference only).

    Raises:
        ValueError: a reference or gaps missing or superfluous, and as :func:`preference_loss`.
    """
    if config.use_reference and reference_logits is None:
        raise ValueError('preference: use_reference is True but no reference logits were given')
    if not config.use_reference and reference_logits is not None:
        raise ValueError('preference: use_reference is False, the reference logits given would be ignored')
    if config.gap_weighting and gaps is None:
        raise ValueError('preference: gap_weighting needs the iou_gap of each pair')

    weights = _gap_weights(gaps) if config.gap_weighting else None
    # The anchor-only twin logs the preference figures but must not pay for, or be touched by, their gradient.
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.weight > 0):
        preference = preference_loss(logits, chosen, rejected, reference_logits=reference_logits, beta=config.beta,
                                     label_smoothing=config.label_smoothing, reduction=config.reduction,
                                     loss_type=config.loss_type, clip=config.clip, pair_weights=weights,
                                     image_index=image_index)
    result = dict(dpo_loss=config.weight * preference.loss)
    logs = dict(preference_nll=preference.loss.detach(), accuracy=preference.accuracy, margin=preference.margin.mean(),
                chosen_rewards=preference.chosen_rewards.mean(), rejected_rewards=preference.rejected_rewards.mean())

    if config.sft_weight:
        anchor = segmentation_anchor(logits, chosen, bce_weight=config.sft_bce, dice_weight=config.sft_dice,
                                     cldice_weight=config.sft_cldice, cldice_iterations=config.cldice_iterations,
                                     image_index=image_index).mean()
        result['sft_loss'] = config.sft_weight * anchor
        logs['sft_nll'] = anchor.detach()
    if config.kl_weight:
        kl = kl_to_reference(logits, reference_logits, chosen, rejected, image_index=image_index).mean()
        result['kl_loss'] = config.kl_weight * kl
        logs['kl'] = kl.detach()

    with torch.no_grad():
        z, z_ref, y_w, y_l = _inputs(logits, reference_logits, chosen, rejected, image_index)
        distance = (y_w - y_l).abs()
        logs['disagreement_pixels'] = distance.sum((-2, -1)).mean()
        logs['saturation'] = (z.abs() > SATURATED_LOGIT).to(z).mean()
        if z_ref is not None:
            drift = _per_pair((z - z_ref).abs(), image_index)
            logs['drift_outside'] = _ratio(((1 - distance) * drift).sum((-2, -1)),
                                           (1 - distance).sum((-2, -1))).mean()
    return result | logs


def _gap_weights(gaps: Tensor) -> Tensor:
    gaps = gaps.detach().float().clamp_min(0)
    mean = gaps.mean()
    return torch.where(mean > 0, gaps / mean.clamp_min(torch.finfo(gaps.dtype).tiny), torch.ones_like(gaps))


# --- checks shared by everything above ----------------------------------------------------------------------------


def _real(logits: Tensor) -> Tensor:
    # bfloat16 has 8 bits of mantissa: a sum over a million pixels would stop growing after a few hundred.
    return logits if logits.dtype == torch.float64 else logits.float()


def _mask(mask: Tensor, like: Tensor, name: str) -> Tensor:
    if not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise ValueError(f'{name} has dtype {mask.dtype}: masks are bool, or floating point in [0, 1]')
    if mask.shape != like.shape:
        raise ValueError(f'{name} {tuple(mask.shape)} and logits {tuple(like.shape)} must have one shape')
    return mask.to(like.dtype)


def _inputs(logits: Tensor, reference_logits: Tensor | None, chosen: Tensor, rejected: Tensor,
            image_index: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Checked z, z_ref (detached) with a row per image (or pair), and y_w, y_l with a row per pair."""
    if logits.ndim != 3:
        raise ValueError(f'logits {tuple(logits.shape)} must be [P, H, W]')
    if chosen.shape[0] == 0:
        raise ValueError('no pairs: a loss needs at least one')
    z = _real(logits)
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
    return z, z_ref, _mask(chosen, like, 'chosen'), _mask(rejected, like, 'rejected')


def _per_pair(per_image: Tensor, image_index: Tensor | None) -> Tensor:
    return per_image if image_index is None else per_image.index_select(0, image_index)


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction {reduction!r} must be one of {", ".join(REDUCTIONS)}')


def _check_clip(clip: float | None, has_reference: bool) -> None:
    if clip is None:
        return
    if not (_is_number(clip) and math.isfinite(clip) and clip > 0):
        raise ValueError(f'clip {clip!r} must be a number above 0, or None')
    if not has_reference:
        raise ValueError('clip bounds the change of a logit against the reference: it needs a reference')


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
