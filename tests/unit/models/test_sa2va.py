"""Shape, gradient and batching behaviour of Sa2VAModel on a fixture-sized model."""
import copy

import pytest
import torch
from PIL import Image
from transformers import Sam2Model

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.sa2va import upsample_logits

FAMILIES = ('internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl')


@pytest.fixture(scope='module', params=FAMILIES)
def parts(request, shared_dir):
    directory = shared_dir / 'fixtures/sa2va_parity' / request.param
    model = load_checkpoint(directory)
    limits = {} if 'internvl' in request.param else dict(min_pixels=12000, max_pixels=40000)
    pre = Sa2VAPreprocessor.from_pretrained(directory, **limits)
    return model, pre, Image.open(directory / 'image.png')


def test_loaded_frozen_and_in_eval_mode(parts):
    model = parts[0]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])


def test_positions_that_nobody_reads_are_not_computed_and_change_nothing(parts):
    model, pre, image = parts
    pixels = pre.collate([pre(image, 'segment the vessel')])['sam_pixel_values']
    library = Sam2Model(model.sam2.config)
    assert library.state_dict().keys() == model.sam2.state_dict().keys()
    library.load_state_dict(model.sam2.state_dict())
    with torch.no_grad():
        ours, theirs = model.sam2.vision_encoder(pixels), library.eval().vision_encoder(pixels)
    assert [level.numel() for level in ours.fpn_position_encoding] == [0, 0, 0]
    assert all(map(torch.equal, ours.fpn_hidden_states, theirs.fpn_hidden_states))


def test_gradient_reaches_every_parameter_that_masks_depend_on(parts):
    model, pre, image = parts
    model = copy.deepcopy(model).requires_grad_(True)
    output = model(pre.collate([pre(image, 'segment the vessel')]))
    output.hypotheses.square().sum().backward()
    unused = set(model.unused_by_masks())
    assert unused
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        if name in unused:
            assert not reached, f'{name} is called unused but has a gradient'
        else:
            # Key biases cancel in the softmax: their gradient is zero up to rounding, but the graph must reach them.
            assert parameter.grad is not None, f'{name}: no gradient'
            if not name.endswith('k_proj.bias'):
                assert reached, f'{name}: gradient is zero'


def test_batch_of_different_images_and_lengths_equals_one_by_one(parts):
    model, pre, image = parts
    samples = [pre(image, '<image>Please segment the vessel.'),
               pre(image.crop((0, 0, 150, 60)), 'And the much longer question, where is the catheter tip?',
                   'Sure, [SEG] and [SEG].'),
               pre(image.transpose(Image.Transpose.ROTATE_90), 'Vessel?')]
    with torch.no_grad():
        together = model(pre.collate(samples))
        alone = [model(pre.collate([s])) for s in samples]
    assert [len(a.low_res) for a in alone] == [1, 2, 1]
    torch.testing.assert_close(together.low_res, torch.cat([a.low_res for a in alone]), atol=1e-3, rtol=0)
    torch.testing.assert_close(together.seg_embedding, torch.cat([a.seg_embedding for a in alone]), atol=1e-4, rtol=0)


def test_no_padding_is_computed_and_none_is_missed(parts, monkeypatch):
    model, pre, image = parts
    samples = [
        pre(image, 'Vessel?'),
        pre(image.crop((0, 0, 150, 60)), 'And where is the catheter tip?'),
        pre(image, 'Vessel?'),
    ]
    batch = pre.collate(samples)
    shapes = []
    handle = model.mllm.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs['inputs_embeds'].shape[:2])), with_kwargs=True)
    try:
        with torch.no_grad():
            grouped = model.seg_states(batch)
            lengths = sorted({len(sample['input_ids']) for sample in samples})
            assert len(lengths) == 2 and sorted(length for _, length in shapes) == lengths
            assert sum(rows * length for rows, length in shapes) == sum(len(sample['input_ids']) for sample in samples)
            monkeypatch.setattr('sa2va_dpo.models.sa2va._rows_of_equal_length', lambda mllm, b: [([0, 1, 2], b)])
            torch.testing.assert_close(grouped, model.seg_states(batch), atol=1e-4, rtol=1e-4)
    finally:
        handle.remove()


def test_truncation_after_seg_leaves_the_mask(parts):
    model, pre, image = parts
    with torch.no_grad():
        cut, full = (model(pre.collate([pre(image, 'Vessel?', truncate_after_seg=t)])) for t in (True, False))
    torch.testing.assert_close(cut.low_res, full.low_res, atol=5e-4, rtol=0)


def test_low_res_is_the_hypothesis_with_the_highest_predicted_iou(parts):
    model, pre, image = parts
    with torch.no_grad():
        output = model(pre.collate([pre(image, 'Vessel?')] * 2))
    for i, best in enumerate(output.iou_pred.argmax(dim=1)):
        assert torch.equal(output.low_res[i], output.hypotheses[i, best])


def test_decode_refuses_a_count_it_cannot_match(parts):
    model, pre, image = parts
    with torch.no_grad():
        features = model.encode_image(pre.encode_image(image)['sam_pixel_values'][None])
        with pytest.raises(ValueError, match='seg_sample_index'):
            model.decode(features, torch.zeros(2, features.image_embed.shape[1]))


def test_casting_keeps_frequencies_in_float32(parts):
    model = copy.deepcopy(parts[0])
    before = {n: b.clone() for n, b in model.named_buffers()}
    torch.nn.Sequential(model).bfloat16()  # as DeepSpeed does it, on the outermost module
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, before[name]), name
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize('cast', ['weights', 'autocast'])
def test_bfloat16_forward_and_backward(parts, cast):
    model, pre, image = parts
    batch = pre.collate([pre(image, 'Vessel?')])
    with torch.no_grad():
        exact = model(batch).low_res
    model = copy.deepcopy(model).requires_grad_(True)
    if cast == 'weights':
        output = model.bfloat16()(batch)
    else:
        with torch.autocast('cpu', torch.bfloat16):
            output = model(batch)
    assert output.low_res.dtype == torch.float32
    output.low_res.sum().backward()
    best = output.hypotheses[0] - exact  # whichever hypothesis won in float32 must still be there
    assert min(h.abs().mean() for h in best) < 0.35 * exact.std()


def test_checkpointed_gradients_equal_plain_ones(parts):
    model, pre, image = parts
    batch, grads = pre.collate([pre(image, 'Vessel?')]), []
    for checkpointing in (False, True):
        policy = copy.deepcopy(model).requires_grad_(True).train()
        if checkpointing:
            policy.gradient_checkpointing_enable()
        policy(batch).low_res.sum().backward()
        grads.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-3, rtol=1e-3)


def test_two_resizes_by_hand():
    low = torch.tensor([[[0., 4.], [8., 12.]]])
    # Half-pixel centres: 2 -> 4 gives weights 0, .25, .75, 1 along each axis.
    row = torch.tensor([0., 1., 3., 4.])
    expected = (row[None] + 2 * row[:, None])[None]
    torch.testing.assert_close(upsample_logits(low, 4), expected)
    # 4 -> 2 averages the two middle samples of each half: (0+1)/2 and (3+4)/2.
    row = torch.tensor([.5, 3.5])
    torch.testing.assert_close(upsample_logits(low, 4, (2, 2)), (row[None] + 2 * row[:, None])[None])
    assert not torch.allclose(upsample_logits(low, 4, (2, 2)), low)
