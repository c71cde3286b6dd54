"""The percentile bootstrap: determinism, coverage, hand-checkable cases."""
from __future__ import annotations

import numpy as np
import pytest

from sa2va_dpo.evaluation import bootstrap
from sa2va_dpo.evaluation.bootstrap import bootstrap_ci


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(20)
    assert bootstrap_ci(values, seed=3) == bootstrap_ci(list(values), seed=3)
    assert bootstrap_ci(values, seed=3) != bootstrap_ci(values, seed=4)


def test_constant_and_single_values_have_no_width():
    assert bootstrap_ci([0.7] * 5) == pytest.approx((0.7, 0.7))
    assert bootstrap_ci([0.25]) == (0.25, 0.25)


def test_two_values_by_hand():
    """Means of 0 and 1 drawn twice are 0, 0.5, 1 with chances 1/4, 1/2, 1/4: the 95 % interval is all of it,
    the 40 % interval is the middle value."""
    assert bootstrap_ci([0., 1.]) == (0., 1.)
    assert bootstrap_ci([0., 1.], level=0.4) == (0.5, 0.5)


def test_width_is_that_of_the_normal_theory():
    """400 values: half-width 1.96 * std / 20 to within 6 %."""
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_ci(values, n_resamples=5000)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    assert low < values.mean() < high


def test_it_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    intervals = [bootstrap_ci(generator.normal(size=40), n_resamples=500, seed=i, level=.9) for i in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.84 < covered < 0.94


def test_blocks_do_not_change_the_number_of_resamples(monkeypatch):
    """Drawn in blocks of one resample: the same draws in the same order."""
    values = np.random.default_rng(3).random(10)
    expected = bootstrap_ci(values, n_resamples=64)
    monkeypatch.setattr(bootstrap, '_BLOCK', 10)
    assert bootstrap_ci(values, n_resamples=64) == pytest.approx(expected)


@pytest.mark.parametrize('values, settings', [([], {}), ([1., float('nan')], {}), ([1., float('inf')], {}),
                                              ([[1.]], {}), ([1.], dict(level=1)), ([1.], dict(n_resamples=0))])
def test_bad_input_is_refused(values, settings):
    with pytest.raises(ValueError):
        bootstrap_ci(values, **settings)
