"""Distinct candidates, drawn in proportion to weights, computed only when drawn."""
from collections import Counter

import numpy as np
import pytest

from sa2va_dpo.evaluation.counts import mask_iou
from sa2va_dpo.preferences.candidates import Candidate, Context, Proposal, generator, pick_distinct

CONTEXT = Context(stem='a', size=(1, 64), seed=0)


def span(length):
    return np.arange(64)[None] < length


def test_mask_iou():
    assert mask_iou(span(3), span(4)) == 0.75
    assert mask_iou(span(0), span(0)) == 1 and mask_iou(span(0), span(1)) == 0


def proposals(name, lengths, log):
    def make(length):
        log.append(length)
        return span(length)

    return [Proposal(f'{name}:{length}', make=lambda length=length: make(length)) for length in lengths]


def test_near_duplicates_are_left_out_and_counted():
    log = []
    kept, duplicates = pick_distinct(proposals('first', [50, 49, 20], log), [], 5, 0.97, CONTEXT)
    assert [c.source for c in kept] == ['first:50', 'first:20'] and duplicates == 1  # 49/50 = 0.98


def test_only_as_many_as_needed_are_computed():
    log = []
    kept, _ = pick_distinct(
        proposals('first', [60], log), [(1, proposals('a', range(1, 40, 2), log))], 4, 0.99, CONTEXT
    )
    assert len(kept) == 4 and len(log) == 4 and kept[0].source == 'first:60'


def test_duplicates_are_replaced():
    log = []
    sources = [(1, proposals('a', [60] * 10, log)), (1, proposals('b', [5, 15, 30], log))]
    kept, duplicates = pick_distinct(proposals('first', [60], log), sources, 4, 0.98, CONTEXT)
    assert len(kept) == 4 and duplicates == len(log) - 4 > 0


def test_weights_are_shares():
    log = []
    sources = [(3, proposals('a', range(1, 40), log)), (1, proposals('b', range(1, 40), log))]
    for seed in range(5):
        kept, _ = pick_distinct([], sources, 8, 1.1, Context(stem='a', size=(1, 64), seed=seed))
        shares = Counter(c.source[0] for c in kept)
        assert shares['a'] in (5, 6, 7) and shares['a'] + shares['b'] == 8


def test_order_is_that_of_the_seed_and_the_image():
    def order(**changes):
        log = []
        return [c.source for c in pick_distinct([], [(1, proposals('a', range(0, 64, 4), log))], 10, 0.99,
                                                Context(**{**dict(stem='a', size=(1, 64), seed=0), **changes}))[0]]

    assert order() == order() and order() != order(seed=1) and order() != order(stem='b')


def test_streams_are_independent():
    assert generator(0, 'a', 'b').random() == generator(0, 'a', 'b').random()
    assert (
        len({generator(*labels).random() for labels in ((0, 'a', 'b'), (0, 'a', 'c'), (1, 'a', 'b'), (0, 'ab'))}) == 4
    )


def test_candidates_of_masks_have_no_predicted_iou():
    assert Candidate(span(1), 'x').predicted_iou is None
    with pytest.raises(AttributeError):
        Candidate(span(1), 'x').mask = None
