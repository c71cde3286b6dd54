"""The paired comparison against numbers worked by hand and against another implementation's test."""
import numpy as np
import pytest
from scipy.stats import ttest_rel

from sa2va_dpo.evaluation.paired import paired_change


def test_by_hand():
    # Of the 16 assignments of signs two are as extreme as all positive: itself and all negative.
    found = paired_change([.1, .2, .3, .4], [.2, .4, .6, .5])
    assert found.mean == pytest.approx(.175) and found.p_value == pytest.approx(2 / 16)
    assert (found.higher, found.lower, found.same) == (4, 0, 0) and .09 < found.low < .175 < found.high < .31
    # +3 and -1: sums of the four assignments are +2, +4, -4, -2; all are at least as extreme as 2.
    assert paired_change([0, 1], [3, 0]).p_value == pytest.approx(1)


def test_no_change_and_one_image():
    found = paired_change([.5, .6, .7], [.5, .6, .7 + 1e-8])
    assert (found.mean, found.p_value, found.same) == (0, 1, 3)
    assert paired_change([.5], [.6]).p_value is None


def test_many_images_agree_with_the_t_test():
    generator = np.random.default_rng(0)
    before = generator.normal(size=200)
    after = before + generator.normal(0.12, 1, size=200)
    found = paired_change(before, after)
    assert found.p_value == pytest.approx(ttest_rel(after, before).pvalue, abs=0.02)
    assert paired_change(before, after) == found, 'the same seed gives the same figures'


def test_chance_alone_is_rarely_called_a_change():
    generator = np.random.default_rng(1)
    called = sum(paired_change(np.zeros(12), generator.normal(size=12)).p_value < 0.05 for _ in range(200))
    assert called / 200 < 0.1


@pytest.mark.parametrize('before, after', [([1.0], [1.0, 2.0]), ([], []), ([1.0, float('nan')], [1.0, 2.0])])
def test_bad_lists_are_refused(before, after):
    with pytest.raises(ValueError):
        paired_change(before, after)
