"""Strategies on four candidates whose scores are written down."""
import numpy as np
import pytest

from sa2va_dpo.preferences.pairing import (
    Adjacent,
    AllPairs,
    BestVsEach,
    BestVsWorst,
    HardNegatives,
    Scored,
    TopologyMatched,
    select_pairs,
)


def span(start, stop):
    x = np.arange(20)[None]
    return (x >= start) & (x < stop)


GT = span(0, 10)
SCORES = [0.5, 0.9, 0.6, 0.55]
SCORED = Scored(SCORES, [span(0, 5), span(0, 9), span(0, 16), span(0, 18)], GT)


@pytest.mark.parametrize('strategy, expected', [
    (AllPairs(), [(1, 0), (1, 3), (1, 2), (2, 0), (2, 3), (3, 0)]),
    (BestVsWorst(), [(1, 0)]),
    (BestVsEach(), [(1, 0), (1, 3), (1, 2)]),
    (Adjacent(), [(1, 2), (2, 3), (3, 0)])])
def test_strategies(strategy, expected):
    assert select_pairs(strategy, SCORED, 0) == (expected, 0)


@pytest.mark.parametrize('strategy', [AllPairs(), BestVsWorst(), BestVsEach(), Adjacent(), HardNegatives(),
                                      TopologyMatched()])
def test_one_candidate_or_none_makes_no_pair(strategy):
    for count in (0, 1):
        assert select_pairs(strategy, Scored(SCORES[:count], SCORED.masks[:count], GT), 0) == ([], 0)


def test_a_gap_of_exactly_the_minimum_is_kept():
    """0.85 - 0.80 is 0.04999999999999993 in floating point."""
    scored = Scored([0.85, 0.80], SCORED.masks[:2], GT)
    assert select_pairs(AllPairs(), scored, 0.05) == ([(0, 1)], 0)
    assert select_pairs(AllPairs(), scored, 0.06) == ([], 1)


@pytest.mark.parametrize('scores, gap, kept', [
    ((0.85, 0.80), 0.05, True), ((0.9, 0.8), 0.1, True), ((0.3, 0.2), 0.1, True),
    # One pixel of a million less than the gap: rounding to six digits would let half of it pass.
    ((0.85, 0.8000004), 0.05, False), ((0.85, 0.800001), 0.05, False), ((0.85, 0.7999996), 0.05, True)])
def test_the_gap_is_compared_unrounded(scores, gap, kept):
    assert len(select_pairs(AllPairs(), Scored(scores, SCORED.masks[:2], GT), gap)[0]) == kept


def test_ties_make_no_pair_even_without_a_gap():
    assert select_pairs(AllPairs(), Scored([0.1 + 0.2, 0.3], SCORED.masks[:2], GT), 0) == ([], 1)
    assert select_pairs(AllPairs(), Scored([0.7, 0.7, 0.7], SCORED.masks[:3], GT), 0) == ([], 3)


def test_limit_keeps_the_strategys_first():
    assert select_pairs(AllPairs(), SCORED, 0, limit=2)[0] == [(1, 0), (1, 3)]


def test_candidates_without_a_score_are_left_out():
    scored = Scored([0.5, float('nan'), 0.6, 0.55], SCORED.masks, GT)
    assert 1 not in {i for pair in select_pairs(AllPairs(), scored, 0)[0] for i in pair}


def test_balance_alternates_over_and_under_segmentation():
    """Rejected 0 misses pixels, 2 and 3 have too many: one of each kind is kept for every one of the other."""
    pairs, _ = select_pairs(BestVsEach(), SCORED, 0, balance=True)
    assert pairs == [(1, 3), (1, 0)]


def test_balance_changes_nothing_where_one_kind_is_missing():
    scored = Scored([0.9, 0.6, 0.5], [GT, span(0, 14), span(0, 18)], GT)
    assert select_pairs(AllPairs(), scored, 0, balance=True) == select_pairs(AllPairs(), scored, 0)


def test_hard_negatives_cut_vessels_with_few_pixels():
    gt = np.zeros((40, 60), bool)
    gt[18:23, 2:58] = True
    gap, thick = gt.copy(), np.zeros_like(gt)
    gap[18:23, 12:26] = False     # 70 pixels, a quarter of the centreline
    thick[14:27, 2:58] = True     # 448 pixels, the centreline stays
    scored = Scored([1.0, 0.75, 0.4], [gt, gap, thick], gt)
    assert select_pairs(HardNegatives(), scored, 0.1)[0][0] == (0, 1)
    assert select_pairs(AllPairs(), scored, 0.1)[0][0] == (0, 2)


def test_hard_negatives_rank_by_difference_per_pixel_of_disagreement():
    """The larger centreline difference at far more pixels comes second: each of them decides less."""
    gt = np.zeros((60, 100), bool)
    gt[28:31, 5:95] = True                # 3 x 90 = 270 pixels
    cut, blob = gt.copy(), gt.copy()
    cut[28:31, 40:54] = False             # 42 pixels
    blob[28:31] = False
    blob[:25] = True                      # 2500 + 270 pixels, none of the centreline
    scored = Scored([1.0, 0.8, 0.2], [gt, cut, blob], gt)
    small, large = (abs(scored.cldice[0] - scored.cldice[i]) for i in (1, 2))
    assert large > small > 0, 'without the division the larger difference would come first'
    assert small / 42 > large / 2770
    pairs = select_pairs(HardNegatives(), scored, 0.1)[0]
    assert pairs.index((0, 1)) < pairs.index((0, 2))


@pytest.mark.parametrize('stop, over', [(9, False), (10, False), (11, True)])
def test_a_mask_of_equal_size_does_not_over_segment(stop, over):
    assert Scored([0.9], [span(0, stop)], GT).over_segments(0) == over


def test_topology_matched_pairs_are_of_equal_dice_and_choose_the_whole_vessel():
    """Two masks of equal Dice, one of them cut; a third overlaps far better and is never compared with them."""
    gt = np.zeros((40, 60), bool)
    gt[18:23, 2:58] = True                # 5 x 56 = 280 pixels
    thick, cut = gt.copy(), gt.copy()
    thick[14:18, 2:58] = True             # 224 false pixels: Dice 560 / 784 = 0.714, centreline whole
    cut[18:23, 16:41] = False             # 125 missed pixels: Dice 310 / 435 = 0.713, a gap in the middle
    scored = Scored([0.55, 0.56, 1.0], [thick, cut, gt], gt)
    assert scored.dice[:2] == pytest.approx([560 / 784, 310 / 435])
    pairs, dropped = select_pairs(TopologyMatched(), scored, 0.02)
    assert pairs == [(0, 1)] and dropped == 0, 'the judge prefers 1, clDice 0'
    assert scored.pair_scores((0, 1)) == (scored.cldice[0], scored.cldice[1])
    assert select_pairs(TopologyMatched(dice_tolerance=0.001), Scored(scored.scores, scored.masks, gt), 0.02)[0] == []
    assert select_pairs(TopologyMatched(), scored, scored.gap((0, 1)) + 0.01) == ([], 1), 'the gap is one of clDice'
