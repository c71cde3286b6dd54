"""The whole objective of a preference run: its settings, and the weighted sum of its terms."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Mapping

import torch
from torch import Tensor

from .kl import kl_to_reference
from .preference import check_combination, preference_loss
from .supervised import supervised_term
from .tensors import checked_inputs, is_number, ratio, to_pairs

# |z| above which a pixel counts as saturated: sigmoid(10) is within 5e-5 of 1, its gradient is as small.
SATURATED_LOGIT = 10.0

# Former field -> its name now: configs written for earlier versions get told.
RENAMED_FIELDS = dict(sft_weight='supervised_weight', sft_bce='supervised_bce', sft_dice='supervised_dice',
                      sft_cldice='supervised_cldice')


@dataclass(frozen=True)
class PreferenceConfig:
    """The objective of a preference run; the defaults are the guide's objective as written.

    Attributes:
        beta, label_smoothing, reduction, loss_type, clip: see :func:`preference_loss`.
        weight: of the preference term; 0 is a run's twin that has the supervised term alone.
        supervised_weight: of the supervised term on the chosen mask (:func:`supervised_term`).
        supervised_bce, supervised_dice, supervised_cldice: weights inside the supervised term.
        cldice_iterations: see :func:`soft_cldice`.
        kl_weight: of :func:`kl_to_reference`; needs a reference.
        gap_weighting: weigh pairs by ``iou_gap`` normalised to mean 1 over the batch (no effect with one pair a
            batch).
        per_image: every image of a batch counts the same, however many pairs it has; False: every pair does.
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
    supervised_weight: float = 0.0
    supervised_bce: float = 1.0
    supervised_dice: float = 1.0
    supervised_cldice: float = 0.0
    cldice_iterations: int = 10
    kl_weight: float = 0.0
    gap_weighting: bool = False
    per_image: bool = True
    use_reference: bool = True

    def __post_init__(self) -> None:
        for name in ('gap_weighting', 'per_image', 'use_reference'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'preference.{name} {getattr(self, name)!r} must be True or False')
        for name in ('weight', 'supervised_weight', 'supervised_bce', 'supervised_dice', 'supervised_cldice',
                     'kl_weight'):
            value = getattr(self, name)
            if not (is_number(value) and math.isfinite(value) and value >= 0):
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
        if self.supervised_weight and not (self.supervised_bce or self.supervised_dice or self.supervised_cldice):
            raise ValueError('preference: supervised_weight is set but supervised_bce, supervised_dice and '
                             'supervised_cldice are all 0')
        if not (self.weight or self.supervised_weight or self.kl_weight):
            raise ValueError('preference: weight, supervised_weight and kl_weight are all 0, there is nothing to train')

    @classmethod
    def from_dict(cls, settings: Mapping) -> 'PreferenceConfig':
        """From a config's ``preference=dict(...)``.

        ``type='guide'`` is the guide's objective as written (mean log-probability, sigmoid, beta 0.1, no supervised
        term);
        beside it only the guide's own knobs ``beta``, ``label_smoothing`` and ``use_reference``, and ``per_image``,
        may be set.

        Raises:
            ValueError: an unknown field, one under its former name, an unknown type, or settings that contradict
                ``type='guide'``.
        """
        settings = dict(settings)
        kind = settings.pop('type', None)
        defaults = {field.name: field.default for field in fields(cls)}
        renamed = sorted(name for name in settings if name in RENAMED_FIELDS)
        if renamed:
            raise ValueError('preference: ' + ', '.join(f'{name} is called {RENAMED_FIELDS[name]} now'
                                                        for name in renamed) + ': rename it in the config')
        unknown = sorted(str(name) for name in set(settings) - set(defaults))
        if unknown:
            raise ValueError(f'preference: unknown field {", ".join(unknown)}: the fields are '
                             f'{", ".join(defaults)} and type')
        if kind not in (None, 'guide'):
            raise ValueError(f'preference.type {kind!r} must be "guide" or left out')
        if kind == 'guide':
            free = ('beta', 'label_smoothing', 'per_image', 'use_reference')
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
        Scalars. To be summed (already weighted): ``dpo_loss``; ``supervised_loss`` and ``kl_loss`` where their weights
        are above 0. To be logged (detached): ``preference_nll``, ``supervised_nll`` and ``kl`` (the same terms before
        their weights), ``accuracy``, ``margin``, ``chosen_rewards``, ``rejected_rewards``, ``disagreement_pixels``
        (mean |D|), ``saturation`` (share of pixels with ``|z| > 10``), ``drift_outside`` (mean ``|z - z_ref|`` where
        the masks agree; with a reference only).

    Raises:
        ValueError: a reference or gaps missing or superfluous, and as :func:`preference_loss`.
    """
    if config.use_reference and reference_logits is None:
        raise ValueError('preference: use_reference is True but no reference logits were given')
    if not config.use_reference and reference_logits is not None:
        raise ValueError('preference: use_reference is False, the reference logits given would be ignored')
    if config.gap_weighting and gaps is None:
        raise ValueError('preference: gap_weighting needs the iou_gap of each pair')

    image_weights = _image_weights(image_index) if config.per_image and image_index is not None else None
    weights = _gap_weights(gaps) if config.gap_weighting and gaps is not None else None
    if image_weights is not None:
        weights = image_weights if weights is None else weights * image_weights
    # The twin without the preference term logs its figures but must not pay for, or be touched by, their gradient.
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.weight > 0):
        preference = preference_loss(logits, chosen, rejected, reference_logits=reference_logits, beta=config.beta,
                                     label_smoothing=config.label_smoothing, reduction=config.reduction,
                                     loss_type=config.loss_type, clip=config.clip, pair_weights=weights,
                                     image_index=image_index)
    result = dict(dpo_loss=config.weight * preference.loss)
    logs = dict(preference_nll=preference.loss.detach(), accuracy=preference.accuracy, margin=preference.margin.mean(),
                chosen_rewards=preference.chosen_rewards.mean(), rejected_rewards=preference.rejected_rewards.mean())

    if config.supervised_weight:
        supervised = supervised_term(
            logits, chosen, bce_weight=config.supervised_bce, dice_weight=config.supervised_dice,
            cldice_weight=config.supervised_cldice, cldice_iterations=config.cldice_iterations,
            image_index=image_index)
        supervised = _mean(supervised, image_weights)
        result['supervised_loss'] = config.supervised_weight * supervised
        logs['supervised_nll'] = supervised.detach()
    if config.kl_weight and reference_logits is not None:  # PreferenceConfig refuses the one without the other
        kl = _mean(kl_to_reference(logits, reference_logits, chosen, rejected, image_index=image_index), image_weights)
        result['kl_loss'] = config.kl_weight * kl
        logs['kl'] = kl.detach()

    with torch.no_grad():
        z, z_ref, y_w, y_l = checked_inputs(logits, reference_logits, chosen, rejected, image_index)
        distance = (y_w - y_l).abs()
        logs['disagreement_pixels'] = distance.sum((-2, -1)).mean()
        logs['saturation'] = (z.abs() > SATURATED_LOGIT).to(z).mean()
        if z_ref is not None:
            drift = to_pairs((z - z_ref).abs(), image_index)
            logs['drift_outside'] = ratio(((1 - distance) * drift).sum((-2, -1)),
                                           (1 - distance).sum((-2, -1))).mean()
    return result | logs


def _image_weights(image_index: Tensor) -> Tensor:
    """[P], mean 1: each pair's share of its image, the same for every image that has pairs."""
    pairs = torch.bincount(image_index)
    return len(image_index) / (pairs > 0).sum() / pairs[image_index]


def _mean(per_pair: Tensor, weights: Tensor | None) -> Tensor:
    return per_pair.mean() if weights is None else (per_pair * weights.to(per_pair)).mean()


def _gap_weights(gaps: Tensor) -> Tensor:
    gaps = gaps.detach().float().clamp_min(0)
    mean = gaps.mean()
    return torch.where(mean > 0, gaps / mean.clamp_min(torch.finfo(gaps.dtype).tiny), torch.ones_like(gaps))
