"""``sa2va_dpo.predict_folder`` from Python; the command, kills and strange files: tests/integration/test_predict.py."""
from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo import Predictor, predict_folder
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'in/deep').mkdir(parents=True)
    for name, shape in (('a.png', (40, 60, 3)), ('deep/b.png', (50, 30, 3))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / 'in' / name)
    return tmp_path / 'in'


def test_a_folder_of_masks_and_a_table(micro_checkpoint, images, tmp_path):
    done = predict_folder(micro_checkpoint, images, tmp_path / 'out', device='cpu', overlays=True, progress=False)
    assert (done.masks, done.problems) == (2, []) and done.seconds > 0
    predictor = Predictor.from_pretrained(micro_checkpoint, device='cpu')
    for name in ('a', 'deep/b'):
        alone = predictor.predict(Image.open(images / f'{name}.png'), DEFAULT_PROMPT)
        assert np.array_equal(read_mask(tmp_path / f'out/masks/{name}.png'), alone.masks[0])
        assert (tmp_path / f'out/overlays/{name}.png').is_file()
    rows = list(csv.DictReader((tmp_path / 'out/predictions.csv').read_text().splitlines()))
    assert [(row['image'], row['width'], row['height']) for row in rows] == [
        ('a.png', '60', '40'), ('deep/b.png', '30', '50')]
    again = predict_folder(micro_checkpoint, str(images), tmp_path / 'out', device='cpu', progress=False)
    assert (again.masks, again.seconds) == (2, 0), 'the same images, and nothing to do'


def test_several_inputs_and_what_cannot_be_read(micro_checkpoint, images, tmp_path):
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'rubbish')
    said = []
    done = predict_folder(micro_checkpoint, [images / 'a.png', broken], tmp_path / 'out', device='cpu', progress=False,
                          report=said.append)
    assert done.masks == 1 and len(done.problems) == 1 and 'broken.png' in done.problems[0]
    assert said == [f'left out: {done.problems[0]}']


@pytest.mark.parametrize('wrong, words', [
    (dict(threshold=1), '--threshold 1: must be above 0'), (dict(batch_size=0), '--batch-size 0'),
    (dict(prompt='<image>'), 'asks nothing'), (dict(grid=0), '--grid')])
def test_what_cannot_be_used_is_said_before_anything_is_written(micro_checkpoint, images, tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        predict_folder(micro_checkpoint, images, tmp_path / 'out', device='cpu', **wrong)
    assert not (tmp_path / 'out').exists()
