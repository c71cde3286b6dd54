"""Overlap metrics by hand and against torchmetrics."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
    binary_specificity,
)

from sa2va_dpo.evaluation import counts as c

METRICS = {c.dice: binary_f1_score, c.iou: binary_jaccard_index, c.precision: binary_precision,
           c.recall: binary_recall, c.specificity: binary_specificity}
EMPTY, FULL = np.zeros((3, 4), bool), np.ones((3, 4), bool)
DOT = EMPTY.copy()
DOT[1, 1] = True


def test_counts_by_hand():
    """pred 1100 / target 1010: one each."""
    pred, target = np.array([[1, 1, 0, 0, 0]], bool), np.array([[1, 0, 1, 0, 0]], bool)
    counts = c.confusion_counts(pred, target)
    assert counts == c.Counts(tp=1, fp=1, fn=1, tn=2)
    assert c.dice(counts) == 0.5
    assert c.iou(counts) == pytest.approx(1 / 3)
    assert c.precision(counts) == c.recall(counts) == 0.5
    assert c.specificity(counts) == pytest.approx(2 / 3)


def test_counts_of_two_images_add_up():
    assert c.Counts(1, 2, 3, 4) + c.Counts(10, 20, 30, 40) == c.Counts(11, 22, 33, 44)


@pytest.mark.parametrize('seed', range(20))
def test_equals_torchmetrics(seed):
    generator = np.random.default_rng(seed)
    pred, target = (generator.random((9, 7)) < generator.random() for _ in range(2))
    counts = c.confusion_counts(pred, target)
    assert sum((counts.tp, counts.fp, counts.fn, counts.tn)) == pred.size
    for ours, theirs in METRICS.items():
        assert ours(counts) == pytest.approx(theirs(torch.tensor(pred), torch.tensor(target)).item(), abs=1e-6)


@pytest.mark.parametrize('pred, target', [(EMPTY, DOT), (DOT, EMPTY), (EMPTY, FULL), (FULL, EMPTY), (FULL, DOT),
                                          (DOT, FULL)])
def test_empty_and_full_masks_equal_torchmetrics(pred, target):
    counts = c.confusion_counts(pred, target)
    for ours, theirs in METRICS.items():
        assert ours(counts) == pytest.approx(theirs(torch.tensor(pred), torch.tensor(target)).item())


@pytest.mark.parametrize('mask', [EMPTY, FULL, DOT], ids=['empty', 'full', 'dot'])
def test_identical_masks_score_one_in_every_metric(mask):
    """0/0 here is 1: torchmetrics with zero_division=1 where it has that argument."""
    counts = c.confusion_counts(mask, mask)
    assert [ours(counts) for ours in METRICS] == [1.0] * 5
    pair = torch.tensor(mask), torch.tensor(mask)
    for theirs in (binary_f1_score, binary_jaccard_index, binary_precision, binary_recall):
        assert theirs(*pair, zero_division=1).item() == 1


@pytest.mark.parametrize('pred, target, words', [
    (EMPTY.astype(np.uint8), EMPTY, 'bool'), (EMPTY, EMPTY.astype(float), 'bool'), (EMPTY, EMPTY[:2], 'one shape'),
    (EMPTY[None], EMPTY[None], 'bool array'), ([[True]], EMPTY, 'list'), (EMPTY[:0], EMPTY[:0], r'\(0, 4\)')])
def test_bad_masks_are_refused(pred, target, words):
    with pytest.raises(ValueError, match=words):
        c.confusion_counts(pred, target)
