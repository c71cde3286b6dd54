"""The preference term: how likely a mask is under the policy, and the losses on the margin between two masks.

The policy gives one map of logits z for an image. A mask y (hard, or soft coverage in [0, 1]) has the per-pixel
Bernoulli log-likelihood ``y log p + (1 - y) log(1 - p)`` with ``p = sigmoid(z)``, so one map scores any mask. For a
chosen mask y_w and a rejected mask y_l with ``s = y_w - y_l`` the log-partition terms cancel:

    log pi(y_w) - log pi(y_l) = sum_i s_i z_i

Only pixels on which the masks disagree (the region D) carry signal. The losses use this identity rather than the
difference of two large sums, so pixels outside D contribute exactly nothing, in value and in gradient.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import checked_inputs, checked_mask, is_number, real, region_average, soft_dice, to_pairs

REDUCTIONS = ('mean', 'sum', 'disagreement', 'balanced')
LOSS_TYPES = ('sigmoid', 'robust', 'hinge', 'ipo', 'dice')


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
    z = real(logits)
    y = checked_mask(mask, z, 'mask')
    log_likelihood = y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)
    if not regional:
        total = log_likelihood.sum((-2, -1))
        return total if reduction == 'sum' else total / (z.shape[-2] * z.shape[-1])
    assert region is not None  # checked at the top
    return region_average(log_likelihood, log_likelihood, region.to(z), reduction)


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
    z, z_ref, y_w, y_l = checked_inputs(logits, reference_logits, chosen, rejected, image_index)
    change = _change(z, z_ref, clip)
    return _reduce_signed(to_pairs(change, image_index), y_w - y_l, reduction)


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
    z, z_ref, y_w, y_l = checked_inputs(logits, reference_logits, chosen, rejected, image_index)
    if pair_weights is not None and pair_weights.shape != y_w.shape[:1]:
        raise ValueError(f'pair_weights {tuple(pair_weights.shape)} must be [P] = ({y_w.shape[0]},)')

    change = _change(z, z_ref, clip)
    if clip is None:
        scored = z
    else:
        assert z_ref is not None  # check_combination: clip needs a reference
        scored = z_ref + change
    if loss_type == 'dice':
        h, chosen_log_ratio = _dice_log_ratios(scored, z_ref, y_w, y_l, image_index)
    else:
        signed = y_w - y_l
        h = _reduce_signed(to_pairs(change, image_index), signed, reduction)
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
    if not (is_number(beta) and math.isfinite(beta) and beta > 0):
        raise ValueError(f'beta {beta!r} must be a number above 0')
    if not (is_number(label_smoothing) and 0 <= label_smoothing < 0.5):
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


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction {reduction!r} must be one of {", ".join(REDUCTIONS)}')


def _check_clip(clip: float | None, has_reference: bool) -> None:
    if clip is None:
        return
    if not (is_number(clip) and math.isfinite(clip) and clip > 0):
        raise ValueError(f'clip {clip!r} must be a number above 0, or None')
    if not has_reference:
        raise ValueError('clip bounds the change of a logit against the reference: it needs a reference')


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
    z = to_pairs(z, image_index)
    log_w, log_l = soft_dice(z, y_w).log(), soft_dice(z, y_l).log()
    h, chosen = log_w - log_l, log_w.detach()
    if z_ref is not None:
        z_ref = to_pairs(z_ref, image_index)
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
    log_ratio = mask_log_prob(to_pairs(z, image_index), label, reduction, region)
    if z_ref is not None:
        log_ratio = log_ratio - mask_log_prob(to_pairs(z_ref, image_index), label, reduction, region)
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
    return region_average(change, -change, signed, reduction)
