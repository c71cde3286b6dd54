"""The refinement: bilinear upsampling until it is trained, a part like any other, on every path."""
import pytest
import torch

from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.reference import build_reference
from sa2va_dpo.models.refinement import Refinement, new_refinement, shapes_wanted
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel
from sa2va_dpo.models.trainable import parameter_groups, set_trainable


@pytest.fixture()
def policy(micro_checkpoint):
    return load_checkpoint(micro_checkpoint)


@pytest.fixture()
def batch(policy):
    draw = torch.Generator().manual_seed(0)
    return dict(sam_pixel_values=torch.randn(2, 3, policy.sam_size, policy.sam_size, generator=draw),
                seg_states=torch.randn(2, policy.text_hidden_fcs[0].in_features, generator=draw),
                seg_index=torch.tensor([[0, 0], [1, 0]]))


def test_it_begins_as_bilinear_upsampling_and_learns_from_the_features(policy, batch):
    with torch.no_grad():
        plain = policy(batch)
        set_trainable(policy, dict(refinement='full'))
        refined = policy(batch)
    assert refined.low_res.shape == (2, policy.sam_size, policy.sam_size)
    torch.testing.assert_close(refined.low_res, upsample_logits(plain.low_res, policy.sam_size))
    torch.testing.assert_close(refined.hypotheses, plain.hypotheses)  # candidates stay what the decoder drew
    policy(batch).low_res.square().mean().backward()
    assert policy.refinement.body[-2].weight.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in policy.named_parameters() if not name.startswith('refinement.'))


def test_one_cell_is_drawn_by_hand():
    # One logit of 3 and an all-zero net but for the biases of the last layer: sub-pixel (i, j) of every cell is
    # 3 + bias of channel 4 i + j.
    net = Refinement(channels=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.body[-2].bias.copy_(torch.arange(16.0))
        found = net(torch.full((1, 2, 2), 3.0), torch.randn(1, 2, 2, 2))
    assert found.shape == (1, 8, 8)
    torch.testing.assert_close(found[0, 4:, :4], 3 + torch.arange(16.0).view(4, 4))


def test_the_same_weights_whatever_was_drawn_before_and_nothing_is_drawn_from(policy):
    torch.manual_seed(5)
    first, after = new_refinement(policy), torch.rand(1)
    torch.manual_seed(6)
    second = new_refinement(policy)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert {name: tuple(t.shape) for name, t in first.state_dict().items()} == dict(
        shapes_wanted(policy.sam2.mask_decoder.conv_s0.out_channels))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_logits_are_float32_in_every_precision(policy, batch, dtype):
    policy.to(dtype)
    set_trainable(policy, dict(refinement='full'))
    policy.autocast_dtype = torch.bfloat16
    with torch.no_grad():
        assert policy(batch).low_res.dtype == torch.float32


def test_its_learning_rate_is_its_own_and_all_does_not_make_one(policy):
    assert [g['lr_mult'] for g in parameter_groups(policy, set_trainable(policy, dict(refinement='full')))] == [10.0]
    own = set_trainable(policy, dict(refinement=dict(mode='full', lr_mult=2.0)))
    assert [g['lr_mult'] for g in parameter_groups(policy, own)] == [2.0]
    with pytest.raises(ValueError, match='train it with mode "full"'):
        set_trainable(policy, dict(refinement='lora'))


def test_from_scratch_there_is_none(policy, micro_checkpoint):
    set_trainable(policy, 'all')
    assert policy.refinement is None
    with pytest.raises(ValueError, match='trainable.refinement: it follows the selected hypothesis'):
        Sa2VASegModel.check(dict(checkpoint=str(micro_checkpoint), trainable=dict(refinement='full'),
                                 hypotheses='all'))


def test_the_reference_is_the_policy_without_it(policy, batch):
    with torch.no_grad():
        before = upsample_logits(policy(batch).low_res, policy.sam_size)
    set_trainable(policy, dict(refinement='full', mask_decoder='full'))
    reference = build_reference('initial', policy)
    with torch.no_grad():
        for parameter in policy.refinement.parameters():
            parameter.normal_()
        assert not torch.allclose(policy(batch).low_res, before)
    torch.testing.assert_close(reference(policy, batch).low_res, before)
