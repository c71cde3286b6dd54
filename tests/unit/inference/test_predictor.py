"""The public predict: teacher-forced and free generation against the fixtures."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.inference.predictor import Predictor


@pytest.fixture(scope='module')
def fixture_dir(shared_dir):
    return shared_dir / 'fixtures/sa2va_parity/internvl_qwen2'


@pytest.fixture(scope='module')
def predictor(fixture_dir):
    return Predictor.from_pretrained(fixture_dir, device='cpu')


@pytest.fixture(scope='module')
def image(fixture_dir):
    return Image.open(fixture_dir / 'image.png')


def question(fixture_dir):
    return json.loads((fixture_dir / 'inputs.json').read_text())['question']


@pytest.mark.parametrize('spelling', ['{}', '<image>{}', '<image>\n{}'])
@pytest.mark.parametrize('free', [False, True])
def test_every_spelling_and_both_ways_give_the_reference_mask(predictor, fixture_dir, image, spelling, free):
    reference = load_file(fixture_dir / 'reference.safetensors')['infer_newline.mask.final_logits']
    result = predictor.predict(image, spelling.format(question(fixture_dir)), free_generation=free)
    assert result.text == 'Sure, [SEG].'
    assert result.masks.shape == (1, 160, 200) and result.masks.dtype == bool
    np.testing.assert_allclose(result.logits, reference.numpy(), atol=1e-3)
    assert np.array_equal(result.masks, result.logits > 0) and result.iou_pred.shape == (1,)


def test_one_mask_per_seg_token(predictor, image):
    result = predictor.predict(np.asarray(image.convert('RGB')), 'Vessel and catheter?', '[SEG] and [SEG].')
    assert result.masks.shape == (2, 160, 200)
    assert not np.array_equal(result.logits[0], result.logits[1])


def test_generation_without_seg_gives_no_mask(predictor, image):
    result = predictor.predict(image, 'Vessel?', free_generation=True, max_new_tokens=1)
    assert result.masks.shape == (0, 160, 200) and result.iou_pred.shape == (0,) and '[SEG]' not in result.text


def test_vocabulary_head_is_read_on_first_generation_only(fixture_dir, image):
    predictor = Predictor.from_pretrained(fixture_dir, device='cpu')
    predictor.predict(image, 'Vessel?')
    assert predictor._vocabulary_head is None
    predictor.predict(image, 'Vessel?', free_generation=True, max_new_tokens=1)
    assert predictor._vocabulary_head is not None
    assert not any('lm_head' in name for name, _ in predictor.model.named_parameters())


def test_bad_prompt_is_an_input_error(predictor, image):
    with pytest.raises(InputError):
        predictor.predict(image, '<image>')


@pytest.fixture(scope='module')
def micro(micro_checkpoint):
    return Predictor.from_pretrained(micro_checkpoint, device='cpu')


def pictures(n):
    """Of several sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (60 + 10 * (k % 3), 90, 3), np.uint8) for k in range(n)]


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_many_are_what_each_alone_is_in_their_order(micro, batch_size):
    images = [Image.fromarray(picture) if k % 2 else picture for k, picture in enumerate(pictures(5))]
    found = list(micro.predict_many(images, 'Vessel?', batch_size=batch_size))
    assert len(found) == 5
    for image, one in zip(images, found):
        alone = micro.predict(image, 'Vessel?')
        assert one.text == alone.text and one.masks.shape == (1, *np.asarray(image).shape[:2])
        np.testing.assert_allclose(one.logits, alone.logits, atol=1e-4)
        np.testing.assert_allclose(one.iou_pred, alone.iou_pred, atol=1e-4)
        assert np.array_equal(one.masks, one.logits > 0)


def test_many_are_read_as_far_as_they_are_needed(micro):
    read = []

    def images():
        for k, picture in enumerate(pictures(7)):
            read.append(k)
            yield picture

    found = micro.predict_many(images(), 'Vessel?', batch_size=3)
    assert not read
    next(found)
    assert read == [0, 1, 2]
    assert torch.is_grad_enabled(), 'whoever takes them one by one may train meanwhile'
    assert len(list(found)) == 6 and len(read) == 7


def test_many_have_one_mask_per_seg_token_and_of_none_there_are_none(micro):
    [one, two] = micro.predict_many(pictures(2), 'Vessel and catheter?', '[SEG] and [SEG].', batch_size=2)
    assert one.masks.shape == (2, 60, 90) and two.masks.shape == (2, 70, 90)
    assert list(micro.predict_many([], 'Vessel?')) == []


def test_what_many_cannot_use_is_said(micro):
    with pytest.raises(ValueError, match='batch_size: 0'):
        next(micro.predict_many(pictures(1), 'Vessel?', batch_size=0))
    with pytest.raises(InputError, match='asks nothing'):
        next(micro.predict_many(pictures(1), '<image>'))


def test_bfloat16_weights_generate(fixture_dir, image):
    result = Predictor.from_pretrained(fixture_dir, dtype=torch.bfloat16, device='cpu').predict(
        image, question(fixture_dir), free_generation=True)
    assert result.logits.dtype == np.float32
