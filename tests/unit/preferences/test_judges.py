"""Judges by hand on strips of pixels, and in the order that each is for."""
from types import SimpleNamespace

import numpy as np
import pytest

from sa2va_dpo.datasets.mask_io import write_mask
from sa2va_dpo.preferences import votes  # noqa: F401  (registers its judges)
from sa2va_dpo.preferences.candidates import Candidate, Context
from sa2va_dpo.preferences.judges import (
    JUDGES,
    Agreement,
    BettiError,
    BoundaryDistance,
    ClDice,
    Dice,
    Evidence,
    ExpectedIoU,
    IoU,
    Mixture,
    PredictedIoU,
)


def span(start, stop, predicted_iou=None):
    x = np.arange(20)[None]
    return Candidate((x >= start) & (x < stop), 'x', predicted_iou)


GT = span(0, 10).mask


def test_overlap_judges_by_hand():
    candidates = [span(0, 10), span(0, 5), span(5, 15), span(15, 20)]
    assert IoU().scores(candidates, Evidence(GT)).tolist() == [1, 0.5, pytest.approx(5 / 15), 0]
    assert Dice().scores(candidates, Evidence(GT)).tolist() == pytest.approx([1, 2 / 3, 0.5, 0])


def test_betti_error_by_hand():
    """Ground truth: one piece, no hole. Two pieces: e = 1 / (1 + 1), so 2/3."""
    two = Candidate(span(0, 3).mask | span(5, 9).mask, 'x')
    assert BettiError().scores([span(0, 9), two], Evidence(GT)).tolist() == [1, pytest.approx(2 / 3)]


def test_boundary_distance_prefers_the_nearer_mask():
    shapes = [np.roll(np.pad(np.ones((6, 6), bool), 10), shift, 1) for shift in (0, 1, 4)]
    scores = BoundaryDistance().scores([Candidate(s, 'x') for s in shapes], Evidence(shapes[0]))
    assert scores[0] == 1 > scores[1] > scores[2] > 0


def test_centreline_judge_disagrees_with_iou():
    """A thin connected vessel against a thick one with its branch missing: IoU and clDice prefer different masks."""
    gt = np.zeros((60, 60), bool)
    gt[20:31, 5:55] = True
    gt[31:58, 40:42] = True
    thin, cut = np.zeros_like(gt), gt.copy()
    thin[25:27, 5:55] = True
    thin[27:58, 40:42] = True
    cut[31:] = False
    candidates, evidence = [Candidate(thin, 'thin'), Candidate(cut, 'cut')], Evidence(gt)
    iou, centre = IoU().scores(candidates, evidence), ClDice().scores(candidates, evidence)
    assert iou[1] > iou[0] and centre[0] > centre[1]


def test_agreement_by_hand():
    """IoUs: a-b 0.5, a-c 0.5, b-c 0.25 (4 of 16)."""
    a, b, c = span(0, 8), span(0, 4), span(0, 16)
    assert Agreement().scores([a, b, c], Evidence(None)).tolist() == pytest.approx([0.5, 0.375, 0.375])
    assert np.isnan(Agreement().scores([a], Evidence(None))).all()


def test_predicted_iou_is_sam2s_and_unknown_without_a_policy():
    scores = PredictedIoU().scores([span(0, 1, 0.7), span(0, 1, 1.2), span(0, 1)], Evidence(None))
    assert scores[:2].tolist() == [0.7, 1.0] and np.isnan(scores[2])


def test_expected_iou_by_hand():
    """p = 0.8 on ten pixels, 0 elsewhere. All ten: 8 / 10. Five of them: 4 / (8 + 5 - 4)."""
    p = np.where(GT, 0.8, 0.0).astype(np.float32)
    scores = ExpectedIoU().scores([span(0, 10), span(0, 5), span(10, 20)], Evidence(None, lambda: p))
    assert scores.tolist() == pytest.approx([0.8, 4 / 9, 0])


def test_mixture_weights_are_normalised_and_named():
    mixture = Mixture([(3, IoU()), (1, Dice())])
    assert mixture.scores([span(0, 5)], Evidence(GT))[0] == pytest.approx(0.75 * 0.5 + 0.25 * 2 / 3)
    assert mixture.name == '0.75*IoU+0.25*Dice' and Mixture([(2, IoU())]).name == 'IoU'
    assert mixture.needs_ground_truth and not Mixture([(1, Agreement())]).needs_ground_truth


def test_reference_without_ground_truth_is_the_majority():
    candidates = [span(0, 10), span(0, 6), span(3, 8)]
    assert np.array_equal(Evidence(None).reference(candidates), span(0, 8).mask)
    assert np.array_equal(Evidence(GT).reference(candidates), GT)


@pytest.mark.parametrize('name', [name for name in JUDGES.module_dict])
def test_every_judge_stays_in_0_to_1(name, tmp_path):
    arguments = {}
    if name == 'Committee':
        write_mask(tmp_path / 'picture.png', np.eye(16, dtype=bool))
        arguments = dict(folders=[str(tmp_path)])
    rng = np.random.default_rng(0)
    candidates = [Candidate(rng.random((16, 16)) > p, 'x', 0.5) for p in (0.1, 0.5, 0.9, 2)]
    for gt in (rng.random((16, 16)) > 0.5, np.zeros((16, 16), bool)):
        sampler = SimpleNamespace(probability=lambda view: gt.astype(np.float32))
        evidence = Evidence(gt, lambda: gt.astype(np.float32), Context('picture', gt.shape, 0, gt, sampler))
        scores = JUDGES.module_dict[name](**arguments).scores(candidates, evidence)
        assert len(scores) == 4 and np.all((scores >= 0) & (scores <= 1))
