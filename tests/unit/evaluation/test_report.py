"""Reports on disk: content by hand, whole or not at all."""
from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.evaluation import report
from sa2va_dpo.evaluation.bootstrap import bootstrap_ci

ROWS = [dict(image_id='a (1)^ü.png', dice=0.5, cldice=1.), dict(image_id='b,"c"', dice=0.75, cldice=0.)]


def test_files_by_hand(tmp_path):
    summary = report.write_report(tmp_path / 'new' / 'dir', ROWS, seed=7, n_resamples=100)
    written = json.loads((tmp_path / 'new' / 'dir' / 'metrics.json').read_text())
    assert written == summary
    assert (written['n_images'], written['seed'], written['n_resamples'], written['level']) == (2, 7, 100, .95)
    low, high = bootstrap_ci([.5, .75], 100, 7)
    assert written['metrics']['dice'] == dict(mean=0.625, ci_low=low, ci_high=high)
    with open(tmp_path / 'new' / 'dir' / 'per_image.csv', newline='', encoding='utf-8') as file:
        assert list(csv.reader(file)) == [['image_id', 'dice', 'cldice'], ['a (1)^ü.png', '0.500000', '1.000000'],
                                          ['b,"c"', '0.750000', '0.000000']]
    assert sorted(os.listdir(tmp_path / 'new' / 'dir')) == ['metrics.json', 'per_image.csv']


def test_bad_rows_leave_the_old_report_alone(tmp_path):
    report.write_report(tmp_path, ROWS)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    for rows, words in (([], 'no images'), ([ROWS[0], dict(image_id='x', dice=1.)], 'every row'),
                        ([dict(dice=1.)], 'image_id'), ([dict(image_id='x', dice=float('nan'))], 'column dice')):
        with pytest.raises(ValueError, match=words):
            report.write_report(tmp_path, rows)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_png_round_trip(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    report.write_png(tmp_path / 'sub' / 'ü ^(1).png', picture)
    assert (np.array(Image.open(tmp_path / 'sub' / 'ü ^(1).png')) == picture).all()
    report.write_png(tmp_path / 'mask.png', picture[..., 0] > 100)
    assert (np.array(Image.open(tmp_path / 'mask.png')) == 255 * (picture[..., 0] > 100)).all()
    with pytest.raises(ValueError, match='uint8'):
        report.write_png(tmp_path / 'bad.png', picture.astype(float))


def test_summary_as_text():
    lines = report.format_summary(report.summarise(ROWS)).splitlines()
    assert lines[0] == '2 images, mean [95% bootstrap interval]'
    assert lines[1].split() == ['dice', '0.6250', '[0.5000,', '0.7500]']
