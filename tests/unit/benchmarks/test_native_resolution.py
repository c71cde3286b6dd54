"""The study of native resolution: rows stand against each other on common seeds, and one run belongs to one process."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.native_resolution import claimed
from benchmarks.study.native import ARMS, Pictures, refined_arms
from benchmarks.study.native_report import report
from benchmarks.study.refinement import SHAPES, attach
from benchmarks.study.unet import UNet, unet_logits
from sa2va_dpo.datasets.mask_io import write_mask, write_rgb
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.models.trainable import set_trainable


def test_differences_are_over_the_seeds_that_both_rows_have(tmp_path, capsys):
    (tmp_path / 'runs').mkdir()
    values = {('whole, 640 px', 0): .60, ('whole, 640 px', 1): .62, ('2 x 2', 1): .65, ('2 x 2', 2): .99}
    for number, ((arm, seed), dice) in enumerate(values.items()):
        (tmp_path / f'runs/{number}.json').write_text(json.dumps(dict(
            data='hrf', arm=arm, seed=seed, train=3, test=3, dice=dice, cldice=dice - .1)))
    report(tmp_path)
    said = capsys.readouterr().out
    assert '| 2 x 2 | 1 2 | 0.8200 | 0.7200 | +0.0300 (1 seeds) | +0.0300 (1 seeds) |' in said
    assert len((tmp_path / 'results.csv').read_text().splitlines()) == 5


def test_a_run_is_claimed_once(tmp_path):
    assert claimed(tmp_path / 'a.json') and not claimed(tmp_path / 'a.json') and claimed(tmp_path / 'b.json')


def test_every_arm_has_a_whole_image_to_stand_against():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        prefix = 'probe: ' if arm.probe else '' if arm.steps else 'start, '
        baseline = next(other for other in ARMS if other.name == f'{prefix}whole, 640 px')
        assert set(arm.data) <= set(baseline.data) and arm.steps == baseline.steps


def test_probes_never_see_the_test_half(tmp_path):
    for name in ('images', 'masks'):
        (tmp_path / name).mkdir()
    for index in range(12):
        write_rgb(tmp_path / f'images/p{index:02}.png', np.full((8, 8, 3), index, np.uint8))
        write_mask(tmp_path / f'masks/p{index:02}.png', np.eye(8, dtype=bool))
    pictures = Pictures(tmp_path, 0)
    fit, held = pictures.halves(probe=True)
    train, test = pictures.halves(probe=False)
    assert sorted(fit + held) == sorted(train) and not set(train) & set(test) and len(test) == 6 and held


@pytest.mark.parametrize('size', [(70, 100), (96, 81)])
def test_the_u_net_predicts_in_blocks_what_it_predicts_at_once(size, monkeypatch):
    torch.manual_seed(0)
    net = UNet(width=2, levels=3).eval()
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    # More than a logit depends on, with three levels: 2 + 4 + 8 + 4 + 2 pixels and what the poolings add.
    monkeypatch.setattr('benchmarks.study.unet.MARGIN', 32)
    whole = unet_logits(net, image, 'cpu')
    monkeypatch.setattr('benchmarks.study.unet.BLOCK', 48)
    assert whole.shape == size and whole.std() > 0
    torch.testing.assert_close(unet_logits(net, image, 'cpu'), whole, rtol=1e-3, atol=1e-4)


def test_refined_arms_stand_against_the_same_square_without_one():
    arms = [*ARMS, *refined_arms()]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in refined_arms():
        if arm.refined:
            twin = next(other for other in arms if other.data == arm.data and not other.refined
                        and other == replace(arm, refined=None, name=other.name))
            assert twin.score_size == 640 and twin.probe == arm.probe


def test_the_shape_that_was_chosen_is_the_one_that_the_product_trains(micro_checkpoint):
    ours, tried = (load_checkpoint(micro_checkpoint).eval() for _ in range(2))
    batch = dict(
        sam_pixel_values=torch.randn(2, 3, ours.sam_size, ours.sam_size, generator=torch.Generator().manual_seed(0)),
        seg_states=torch.randn(2, ours.text_hidden_fcs[0].in_features, generator=torch.Generator().manual_seed(1)),
        seg_index=torch.tensor([[0, 0], [1, 0]]))
    switches = set_trainable(ours, dict(refinement='full'))
    assert switches['refinement']['lr_mult'] == SHAPES['refined x 10'].lr_mult
    attach(tried, SHAPES['refined x 10'])
    with torch.no_grad():
        for parameter in ours.refinement.parameters():
            parameter.normal_()
        tried.get_submodule('tried').load_state_dict(ours.refinement.state_dict())
        torch.testing.assert_close(tried(batch).low_res, ours(batch).low_res)


@pytest.mark.parametrize('name', SHAPES)
def test_every_shape_begins_as_the_plain_logits(micro_checkpoint, name):
    policy = load_checkpoint(micro_checkpoint).eval()
    batch = dict(sam_pixel_values=torch.randn(1, 3, policy.sam_size, policy.sam_size),
                 seg_states=torch.randn(1, policy.text_hidden_fcs[0].in_features), seg_index=torch.tensor([[0, 0]]))
    with torch.no_grad():
        plain = policy(batch).low_res
        new = attach(policy, SHAPES[name])
        torch.testing.assert_close(policy(batch).low_res, upsample_logits(plain, policy.sam_size))
    policy(batch).low_res.square().mean().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in new)
