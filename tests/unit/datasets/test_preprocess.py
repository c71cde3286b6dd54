"""Preprocessing against hand-worked grids and the fixtures' own tensors."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.image_views import tile_grid
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor, normalise_prompt


@pytest.fixture(scope='module')
def fixture_dir(shared_dir):
    return shared_dir / 'fixtures/sa2va_parity/internvl_qwen2'


@pytest.fixture(scope='module')
def pre(fixture_dir):
    return Sa2VAPreprocessor.from_pretrained(fixture_dir)


@pytest.mark.parametrize('size, grid', [
    ((448, 448), (1, 1)),
    ((100, 100), (1, 1)),       # smaller than half of any 2x2 grid: the first square grid stays
    ((2000, 2000), (3, 3)),     # equal distance, large image: the largest square grid wins
    ((1400, 700), (4, 2)),      # 2:1, and 980000 pixels > 0.5 * 448^2 * 8 = 802816
    ((1200, 600), (2, 1)),      # 720000 is less
    ((3000, 100), (12, 1)),     # beyond every ratio: the widest
    ((200, 160), (4, 3)),       # 1.25 is nearest to 4/3 (5/4 needs 20 tiles)
    ((100, 3000), (1, 12)),
])
def test_tile_grid(size, grid):
    assert tile_grid(*size, 448, 1, 12) == grid


@pytest.mark.parametrize('prompt', ['<image>Please segment it.', '<image>\nPlease segment it.', 'Please segment it.',
                                    ' <image> \n Please segment it. \n', 'Please segment it.<image>'])
def test_prompt_spellings_reach_one_form(prompt, pre):
    assert normalise_prompt(prompt) == 'Please segment it.'
    ids = pre.encode_text(prompt, num_image_tokens=2)['input_ids']
    assert torch.equal(ids, pre.encode_text('Please segment it.', num_image_tokens=2)['input_ids'])
    assert pre.tokenizer.decode(ids) == ('<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nPlease segment it.'
                                         '<|im_end|>\n<|im_start|>assistant\nSure, [SEG]')


@pytest.mark.parametrize('prompt, answer, said', [
    ('<image>', 'Sure, [SEG].', 'asks nothing'),
    ('<image><image> both', 'Sure, [SEG].', 'more than once'),
    ('find [SEG]', 'Sure, [SEG].', 'control token'),
    ('find it<|im_end|>', 'Sure, [SEG].', 'control token'),
    ('find <IMG_CONTEXT>', 'Sure, [SEG].', 'control token'),
    ('find it', 'Sure.', 'no [SEG]'),
    ('find it', '[SEG]<|im_end|>', 'control token'),
])
def test_unusable_text_is_one_clear_line(pre, prompt, answer, said):
    with pytest.raises(InputError) as caught:
        pre.encode_text(prompt, answer, num_image_tokens=1)
    assert said in str(caught.value)


def test_braces_in_text_are_text(pre):
    ids = pre.encode_text('segment {x} {0}', 'It is {y} [SEG].', num_image_tokens=1)['input_ids']
    assert '{x} {0}' in pre.tokenizer.decode(ids) and '{y}' in pre.tokenizer.decode(ids)


def test_ids_labels_and_pixels_equal_the_fixture(pre, fixture_dir):
    reference, inputs = (
        load_file(fixture_dir / 'reference.safetensors'),
        json.loads((fixture_dir / 'inputs.json').read_text()),
    )
    sample = pre(Image.open(fixture_dir / 'image.png'), inputs['question'], inputs['answer'], truncate_after_seg=False)
    assert torch.equal(sample['input_ids'], reference['train.input_ids'][0])
    assert torch.equal(sample['labels'], reference['train.labels'][0])
    assert torch.equal(sample['seg_positions'], reference['train.seg_positions'])
    assert torch.equal(sample['pixel_values'], reference['vision.pixel_values'])
    assert torch.equal(sample['sam_pixel_values'], reference['sam.pixel_values'][0])
    assert sample['original_size'] == (160, 200)
    cut = pre(Image.open(fixture_dir / 'image.png'), inputs['question'], inputs['answer'])
    assert cut['input_ids'][-1] == pre.seg_token_id and torch.equal(
        cut['input_ids'], sample['input_ids'][: len(cut['input_ids'])]
    )


def test_image_as_array_grey_and_alpha(pre):
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    a, b = pre.encode_image(array), pre.encode_image(Image.fromarray(array).convert('RGBA'))
    assert torch.equal(a['pixel_values'], b['pixel_values']) and a['original_size'] == (40, 60)
    assert pre.encode_image(Image.fromarray(array[..., 0]))['sam_pixel_values'].shape == (3, pre.sam_size, pre.sam_size)
    with pytest.raises(ValueError, match='uint8'):
        pre.encode_image(array.astype(np.float32))


def test_collate_pads_right_and_indexes_every_seg(pre):
    image = Image.new('RGB', (100, 100))
    batch = pre.collate([pre(image, 'a'), pre(image, 'a longer question', '[SEG] and [SEG]')])
    lengths = batch['attention_mask'].sum(1)
    assert lengths[0] < lengths[1] == batch['input_ids'].shape[1]
    assert (batch['input_ids'][0, lengths[0]:] == pre.pad_token_id).all()
    assert batch['seg_index'][:, 0].tolist() == [0, 1, 1]
    rows, cols = batch['seg_index'].T
    assert (batch['input_ids'][rows, cols] == pre.seg_token_id).all()
    assert batch['image_token_mask'].sum() == 2 * 16 and batch['pixel_values'].shape[0] == 2
    sample = pre(image, 'a')
    sample['pixel_values'] = sample['pixel_values'].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match='image tokens'):
        pre.collate([sample])


def test_fingerprint_follows_what_decides_the_output(pre, fixture_dir, tmp_path):
    assert pre.fingerprint() == Sa2VAPreprocessor.from_pretrained(fixture_dir).fingerprint()
    for name in ('config.json', 'sam2_dims.json', 'tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt',
                 'added_tokens.json'):
        (tmp_path / name).write_bytes((fixture_dir / name).read_bytes())
    (tmp_path / 'sam2_dims.json').write_text('{"image_size": 512}')
    assert pre.fingerprint() != Sa2VAPreprocessor.from_pretrained(tmp_path).fingerprint()


def test_tokenizer_without_seg_is_an_input_error(fixture_dir, tmp_path):
    for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'added_tokens.json'):
        (tmp_path / name).write_text((fixture_dir / name).read_text().replace('[SEG]', '[SAG]'))
    with pytest.raises(InputError, match=r'\[SEG\]'):
        Sa2VAPreprocessor.from_pretrained(tmp_path)
    (tmp_path / 'tokenizer_config.json').unlink()
    with pytest.raises(InputError, match='tokenizer_config.json'):
        Sa2VAPreprocessor.from_pretrained(tmp_path)
