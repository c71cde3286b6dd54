"""Pixels outside the camera's field do not count."""
import json

import numpy as np
import pytest

from sa2va_dpo.evaluation.report import format_summary
from sa2va_dpo.evaluation.scores import score_mask
from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric

# A 4 x 6 image whose left two columns are outside. Inside: 2 hits, 1 false, 1 missed, 12 right background.
FIELD = np.zeros((4, 6), bool)
FIELD[:, 2:] = True
TARGET, PRED = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
TARGET[0, 2:5] = True
PRED[0, 2:4] = PRED[2, 5] = True
PRED[1:4, 0] = True  # false, but outside


def test_counts_inside_by_hand():
    scores = score_mask(PRED, TARGET, FIELD)
    assert scores['dice'] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1)) and scores['precision'] == pytest.approx(2 / 3)
    assert scores['recall'] == pytest.approx(2 / 3)
    assert scores['specificity'] == pytest.approx(12 / 13), 'the eight pixels outside are no true negatives'
    assert scores['betti0_error'] == 1, 'the component outside is gone'
    assert score_mask(PRED, TARGET)['precision'] == pytest.approx(2 / 6)


def test_a_field_of_the_whole_image_changes_nothing():
    assert score_mask(PRED, TARGET, np.ones((4, 6), bool)) == score_mask(PRED, TARGET)


@pytest.mark.parametrize('field', [np.zeros((4, 6), bool), np.ones((6, 4), bool), np.ones((4, 6), np.uint8)])
def test_fields_that_cannot_be(field):
    with pytest.raises(ValueError):
        score_mask(PRED, TARGET, field)


def test_the_report_says_of_how_many_images(tmp_path):
    metric = VesselSegMetric(out_dir=str(tmp_path), n_resamples=20)
    sample = dict(pred_mask=PRED, gt_mask=TARGET)
    metric.process(None, [dict(sample, image_id='a', field_of_view=FIELD), dict(sample, image_id='b')])
    means = metric.evaluate(2)
    assert means['precision'] == pytest.approx((2 / 3 + 2 / 6) / 2) and 'field_of_view' not in means
    summary = json.loads((tmp_path / 'metrics.json').read_text())
    assert summary['fields_of_view'] == 1 and 'field_of_view' not in summary['metrics']
    assert "field of view: 1 of 2 images" in format_summary(summary)
    assert (tmp_path / 'per_image.csv').read_text().startswith('image_id,dice,')
    assert 'field_of_view' not in metric.per_image[0]
