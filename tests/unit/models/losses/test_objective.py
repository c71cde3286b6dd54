"""Settings of a preference run and the weighted sum of its terms."""
from __future__ import annotations

import pytest
import torch

from sa2va_dpo.models.losses import (
    PreferenceConfig,
    combined_loss,
    kl_to_reference,
    mask_log_prob,
    preference_loss,
    supervised_term,
)

from .cases import image, random_case


def test_no_gradient_reaches_the_reference():
    logits, reference, win, lose = random_case(7)
    reference.requires_grad_()
    config = PreferenceConfig(reduction='balanced', clip=3., supervised_weight=1., kl_weight=1.)
    out = combined_loss(config, logits.requires_grad_(), reference, win, lose)
    sum(value for key, value in out.items() if 'loss' in key).backward()
    assert reference.grad is None and logits.grad is not None


def test_the_guide_switch_is_the_guides_formula():
    config = PreferenceConfig.from_dict(dict(type='guide'))
    assert config == PreferenceConfig()
    assert (config.beta, config.label_smoothing, config.reduction, config.loss_type) == (.1, 0., 'mean', 'sigmoid')
    assert config.use_reference and config.weight == 1 and config.supervised_weight == config.kl_weight == 0
    logits, reference, win, lose = random_case(15)
    out = combined_loss(config, logits, reference, win, lose)
    log_prob = mask_log_prob
    inside = (log_prob(logits, win) - log_prob(reference, win)) - (log_prob(logits, lose) - log_prob(reference, lose))
    torch.testing.assert_close(out['dpo_loss'], -torch.log(1 / (1 + torch.exp(-.1 * inside))).mean())
    assert [key for key in out if 'loss' in key] == ['dpo_loss']


def test_the_guides_simplified_form():
    config = PreferenceConfig.from_dict(dict(type='guide', use_reference=False, beta=.2))
    logits, _, win, lose = random_case(16)
    inside = mask_log_prob(logits, win) - mask_log_prob(logits, lose)
    torch.testing.assert_close(combined_loss(config, logits, None, win, lose)['dpo_loss'],
                               -torch.log(1 / (1 + torch.exp(-.2 * inside))).mean())


@pytest.mark.parametrize('settings, words', [
    (dict(betta=.1), 'unknown field betta'),
    (dict(type='guides'), 'preference.type'),
    (dict(type='guide', supervised_weight=1.), '_delete_=True'),
    (dict(type='guide', reduction='balanced'), "reduction='balanced'"),
    (dict(loss_type='robust'), 'flip rate'),
    (dict(clip=3., use_reference=False), 'needs a reference'),
    (dict(kl_weight=.1, use_reference=False), 'kl_weight needs a reference'),
    (dict(weight=0.), 'nothing to train'),
    (dict(weight=-1.), 'preference.weight'),
    (dict(supervised_weight='1'), 'preference.supervised_weight'),
    (dict(supervised_weight=1., supervised_bce=0., supervised_dice=0.), 'supervised_bce'),
    (dict(gap_weighting=1), 'gap_weighting'),
    (dict(sft_weight=1.), 'sft_weight is called supervised_weight now'),
    (dict(sft_bce=1., sft_dice=1., sft_cldice=1.), 'sft_cldice is called supervised_cldice now.*sft_dice is called'),
    (dict(cldice_iterations=0), 'cldice_iterations'),
])
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceConfig.from_dict(settings)


def test_settings_of_a_base_config_that_agree_with_the_guide_pass():
    assert PreferenceConfig.from_dict(dict(type='guide', supervised_weight=0., reduction='mean')) == PreferenceConfig()


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        PreferenceConfig().beta = 1.


def test_combined_terms_are_weighted_and_raw_values_are_logged():
    logits, reference, win, lose = random_case(17)
    config = PreferenceConfig(reduction='balanced', beta=1., weight=.2, supervised_weight=.5, supervised_bce=2.,
                              supervised_dice=.5, kl_weight=3.)
    out = combined_loss(config, logits.requires_grad_(), reference, win, lose)
    alone = preference_loss(logits, win, lose, reference_logits=reference, reduction='balanced', beta=1.)
    supervised = supervised_term(logits, win, bce_weight=2., dice_weight=.5).mean()
    kl = kl_to_reference(logits, reference, win, lose).mean()
    torch.testing.assert_close(out['dpo_loss'], .2 * alone.loss)
    torch.testing.assert_close(out['supervised_loss'], .5 * supervised)
    torch.testing.assert_close(out['kl_loss'], 3 * kl)
    torch.testing.assert_close(out['preference_nll'], alone.loss.detach())
    torch.testing.assert_close(out['margin'], alone.margin.mean())
    torch.testing.assert_close(out['chosen_rewards'], alone.chosen_rewards.mean())
    # mmengine sums every key that contains "loss": exactly these.
    assert sorted(key for key in out if 'loss' in key) == ['dpo_loss', 'kl_loss', 'supervised_loss']
    assert all(value.ndim == 0 for value in out.values())
    assert all(not value.requires_grad for key, value in out.items() if 'loss' not in key)


def test_combined_monitoring_by_hand():
    """|z| = (12, 1, 11, 0): half saturated. D = pixels 0 and 1. Outside D |z - z_ref| = (1, 3): drift 2."""
    z, reference = image([12., 1., -11., 0.]), image([0., 0., -10., 3.])
    out = combined_loss(PreferenceConfig(), z, reference, image([1., 0., 1., 0.]), image([0., 1., 1., 0.]))
    assert out['saturation'] == .5 and out['disagreement_pixels'] == 2 and out['drift_outside'] == 2


def test_twin_without_preference_has_the_supervised_gradient_alone():
    logits, reference, win, lose = random_case(18)
    twin, supervised = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    out = combined_loss(PreferenceConfig(weight=0., supervised_weight=1.), twin, reference, win, lose)
    (out['dpo_loss'] + out['supervised_loss']).backward()
    supervised_term(supervised, win).mean().backward()
    assert torch.equal(twin.grad, supervised.grad)
    assert not out['dpo_loss'].requires_grad, 'the twin pays for a gradient that it does not use'
    assert out['dpo_loss'] == 0 and out['preference_nll'] > 0 and 0 <= out['accuracy'] <= 1


def test_gap_weighting_by_hand():
    """Gaps 0.1 and 0.3: weights 0.5 and 1.5. All gaps 0: weights 1."""
    logits, _, win, lose = random_case(19, pairs=2)
    config = PreferenceConfig(gap_weighting=True, use_reference=False)
    pair = preference_loss(logits, win, lose).per_pair_loss
    out = combined_loss(config, logits, None, win, lose, gaps=torch.tensor([.1, .3]))
    torch.testing.assert_close(out['dpo_loss'], (.5 * pair[0] + 1.5 * pair[1]) / 2)
    zero = combined_loss(config, logits, None, win, lose, gaps=torch.zeros(2))
    torch.testing.assert_close(zero['dpo_loss'], pair.mean())


def test_combined_with_image_index_equals_repeated_logits():
    logits, reference, win, lose = random_case(20)
    index = torch.tensor([0, 1, 1])
    config = PreferenceConfig(
        per_image=False, reduction='disagreement', supervised_weight=1.0, supervised_cldice=0.5, kl_weight=1.0, clip=3.0
    )
    one = combined_loss(config, logits[:2], reference[:2], win, lose, image_index=index)
    two = combined_loss(config, logits[:2][index], reference[:2][index], win, lose)
    for key in set(one) - {'saturation'}:  # counted once an image
        torch.testing.assert_close(one[key], two[key])


def test_combined_refuses_what_does_not_fit_the_config():
    logits, reference, win, lose = random_case(21)
    with pytest.raises(ValueError, match='no reference logits'):
        combined_loss(PreferenceConfig(), logits, None, win, lose)
    with pytest.raises(ValueError, match='would be ignored'):
        combined_loss(PreferenceConfig(use_reference=False), logits, reference, win, lose)
    with pytest.raises(ValueError, match='iou_gap'):
        combined_loss(PreferenceConfig(gap_weighting=True), logits, reference, win, lose)


@pytest.mark.parametrize(
    'settings', [dict(), dict(supervised_weight=1.0, kl_weight=0.5), dict(reduction='balanced', weight=0.2)]
)
def test_an_image_counts_the_same_however_many_pairs_it_has(settings):
    """Three pairs of one image and one of another: the mean of the two images' own losses, not of the four pairs'."""
    logits, reference, win, lose = random_case(21, pairs=4)
    index = torch.tensor([0, 0, 0, 1])
    z, z_ref = logits[[0, 3]], reference[[0, 3]]
    config = PreferenceConfig(**settings)
    both = combined_loss(config, z, z_ref, win, lose, image_index=index)
    first = combined_loss(config, z[:1], z_ref[:1], win[:3], lose[:3], image_index=index[:3])
    second = combined_loss(config, z[1:], z_ref[1:], win[3:], lose[3:], image_index=torch.tensor([0]))
    pairwise = combined_loss(PreferenceConfig(**settings, per_image=False), z, z_ref, win, lose, image_index=index)
    for name in (name for name in both if 'loss' in name):
        torch.testing.assert_close(both[name], (first[name] + second[name]) / 2)
        torch.testing.assert_close(pairwise[name], (3 * first[name] + second[name]) / 4)
        assert (both[name] - pairwise[name]).abs() > 1e-4


def test_with_equally_many_pairs_nothing_changes_and_gap_weights_stay():
    logits, reference, win, lose = random_case(22, pairs=4)
    index, gaps = torch.tensor([0, 0, 1, 1]), torch.tensor([.1, .2, .3, .4])
    z, z_ref = logits[[0, 2]], reference[[0, 2]]
    for gap_weighting in (False, True):
        one, other = (
            combined_loss(
                PreferenceConfig(per_image=per_image, gap_weighting=gap_weighting, supervised_weight=1.0),
                z,
                z_ref,
                win,
                lose,
                gaps=gaps,
                image_index=index,
            )
            for per_image in (True, False)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
