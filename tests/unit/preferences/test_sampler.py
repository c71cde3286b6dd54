"""Many masks for few encoder runs, and the plain request is the policy's answer."""
import numpy as np
import pytest
import torch

from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.preferences.candidates import Request
from sa2va_dpo.preferences.sampler import Policies, PolicySampler


@pytest.fixture
def sampler(policy, preprocessor, drawing):
    return PolicySampler(Policies(None, 'cpu', policy, preprocessor), drawing[0], 'stem', 'question', 7)


def test_plain_request_is_the_policys_answer(sampler, policy, preprocessor, drawing):
    batch = preprocessor.collate([preprocessor(drawing[0], 'question')])
    output = policy.decode(policy.encode_image(batch['sam_pixel_values']), policy.encode_prompt(batch))
    logits = upsample_logits(output.low_res, policy.sam_size, drawing[0].shape[:2])[0]
    (mask, predicted_iou), = sampler.masks([Request()])
    assert np.array_equal(mask, (logits > 0).numpy()) and predicted_iou == pytest.approx(0.9)
    np.testing.assert_allclose(sampler.probability(), logits.sigmoid().numpy(), rtol=1e-6)


def test_encoder_once_per_view_and_decoder_once_per_batch(sampler, policy):
    sampler.masks([Request(), Request(threshold=0.3), Request(rank=1), Request(seg_noise=0.5),
                   Request(dropout=0.3), Request(view='hflip'), Request(view='hflip', threshold=0.7)])
    assert policy.encoded_images == 2 and policy.decoder_calls == 2
    sampler.masks([Request(seg_noise=1.0, draw=3)])
    assert policy.encoded_images == 2
    sampler.masks([Request(view='tiles2')])
    assert policy.encoded_images == 6


def test_a_plain_answer_is_decoded_once(sampler, policy):
    """As a candidate, again at another threshold, and as evidence for the judges."""
    first = sampler.masks([Request(view='hflip')])[0][0]
    again, higher = sampler.masks([Request(view='hflip'), Request(view='hflip', threshold=0.9)])
    belief = sampler.probability('hflip')
    assert policy.decoder_calls == 1 and np.array_equal(first, again[0]) and np.array_equal(first, belief > 0.5)
    assert higher[0].sum() < first.sum()
    sampler.masks([Request(view='vflip'), Request(view='hflip', seg_noise=0.5)])
    assert policy.decoder_calls == 3


def test_draws_depend_on_the_request_only(policy, preprocessor, drawing):
    def answer(requests):
        sampler = PolicySampler(Policies(None, 'cpu', policy, preprocessor), drawing[0], 'stem', 'question', 7)
        return [mask for mask, _ in sampler.masks(requests)]

    noisy = [Request(dropout=0.5), Request(dropout=0.5, draw=1), Request(seg_noise=2.0), Request(seg_noise=2.0, draw=1)]
    forward, backward = answer(noisy), answer(noisy[::-1])[::-1]
    for a, b, alone in zip(forward, backward, noisy):
        assert np.array_equal(a, b) and np.array_equal(a, answer([alone])[0])
    assert not np.array_equal(forward[0], forward[1]) and not np.array_equal(forward[2], forward[3])


def test_thresholds_nest_and_hypotheses_are_ranked(sampler):
    low, middle, high = (mask for mask, _ in sampler.masks([Request(threshold=p) for p in (0.2, 0.5, 0.8)]))
    assert not (high & ~middle).any() and not (middle & ~low).any() and high.sum() < low.sum()
    ious = [iou for _, iou in sampler.masks([Request(rank=rank) for rank in range(3)])]
    assert ious == pytest.approx([0.9, 0.8, 0.6])
    second, third = (mask for mask, _ in sampler.masks([Request(rank=1), Request(rank=2)]))
    assert second.sum() < third.sum()  # the fake's third hypothesis adds 2 to every logit, its second subtracts 2


def test_flipped_view_of_a_symmetric_policy_is_the_same_mask(sampler):
    """The fake policy has no handedness, so undoing the flip must give the plain mask (up to rounding of the
    resize)."""
    plain, flipped, turned = (
        mask for mask, _ in sampler.masks([Request(), Request(view='hflip'), Request(view='rot180')])
    )
    assert (plain != flipped).mean() < 0.02 and (plain != turned).mean() < 0.02
    assert (plain != np.fliplr(plain)).mean() > 0.1


def test_other_prompt(sampler, policy):
    sampler.masks([Request(), Request(prompt='a longer question')])
    assert policy.encoded_images == 1  # the image is not encoded again
    assert torch.is_grad_enabled()


def test_mirrored_views_come_from_what_is_cached(policy, preprocessor, drawing):
    """What the sample of a mirrored view holds is used as it is; other views, questions and checkpoints are
    computed."""
    image, _ = drawing
    asked = []

    def frozen(horizontal, vertical):
        asked.append((horizontal, vertical))
        picture = image[:, ::-1] if horizontal else image
        return preprocessor(np.ascontiguousarray(picture[::-1] if vertical else picture), 'q')

    plain = PolicySampler(Policies(None, 'cpu', policy, preprocessor), image, 'x', 'q', 0)
    cached = PolicySampler(Policies(None, 'cpu', policy, preprocessor), image, 'x', 'q', 0, frozen)
    requests = [Request(view=view) for view in ('identity', 'hflip', 'vflip', 'rot180', 'rot90')] + [
        Request(prompt='other')
    ]
    for (mask, iou), (expected, expected_iou) in zip(cached.masks(requests), plain.masks(requests), strict=True):
        assert np.array_equal(mask, expected) and iou == expected_iou
    assert asked == [(False, False), (True, False), (False, True), (True, True)]
    nothing = PolicySampler(Policies(None, 'cpu', policy, preprocessor), image, 'x', 'q', 0, lambda *_: None)
    assert np.array_equal(nothing.masks([Request()])[0][0], plain.masks([Request()])[0][0])
