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


def test_bfloat16_weights_generate(fixture_dir, image):
    result = Predictor.from_pretrained(fixture_dir, dtype=torch.bfloat16, device='cpu').predict(
        image, question(fixture_dir), free_generation=True)
    assert result.logits.dtype == np.float32
