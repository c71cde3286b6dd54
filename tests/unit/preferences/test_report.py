"""The report's figures, by hand."""
from types import SimpleNamespace

import pytest

from sa2va_dpo.datasets.splits import Split
from sa2va_dpo.preferences.report import format_report, source_kind, summarise_pairs

NONE = Split([], patients=dict(train=2, val=0, test=0))


def pair(image='images/a.png', gap=0.2, chosen='greedy', rejected='threshold:0.3', pixels=100, agreement=0.7, **more):
    return dict(image=image, iou_gap=gap, chosen_source=chosen, rejected_source=rejected, disagreement_pixels=pixels,
                pixels=1000, chosen_agreement=agreement, rejected_over_segments=True, **more)


def entry(name, records, candidates=((0.5, 'greedy'), (0.7, 'view:hflip')), **more):
    return dict(image=name, records=records, duplicates=2, dropped_gap=3, missing=[],
                candidates=[dict(source=s, iou=i, score=i) for i, s in candidates], **more)


def config(**changes):
    return SimpleNamespace(
        **{**dict(min_iou_gap=0.2, num_samples=2, mode='generate', gt_dir='gt', val_fraction=0.0), **changes}
    )


def test_figures():
    pairs = [pair(gap=0.1), pair(gap=0.3, pixels=300, agreement=0.9)]
    report = summarise_pairs(pairs, [pair()], [entry('a.png', pairs), entry('b.png', [])], config(), ['c.png'], NONE)
    assert (report['train_pairs'], report['val_pairs'], report['images'], report['train_images']) == (2, 1, 2, 1)
    assert report['images_without_pairs'] == ['b.png'] and report['pairs_by_image'] == {'a.png': 2, 'b.png': 0}
    assert report['duplicates_removed'] == 4 and report['pairs_dropped_for_gap'] == 6
    assert report['greedy_iou'] == 0.5 and report['best_candidate_iou'] == 0.7
    assert report['gap_histogram'] == {'0-0.05': 0, '0.05-0.1': 0, '0.1-0.2': 1, '0.2-0.3': 0, '0.3-0.5': 1, '0.5-1': 0}
    assert report['disagreement_pixels'] == {'min': 100, 'median': 200, 'max': 300}
    # (100 * 0.7 + 300 * 0.9) / 400
    assert report['chosen_agrees_with_ground_truth'] == pytest.approx(0.85)
    assert report['win_rates']['greedy'] == dict(wins=2, losses=0, win_rate=1.0)
    text = format_report(report)
    assert 'skipped, no ground truth (1): c.png' in text and '85.0%' in text


def warnings(pairs, **changes):
    return ' | '.join(summarise_pairs(pairs, [], [entry('a.png', pairs)], config(**changes), [], NONE)['warnings'])


def test_warnings():
    many = [pair() for _ in range(100)]
    assert 'greedy wins 100% of its pairs' in warnings(many) and 'threshold loses 100% of its pairs' in warnings(many)
    assert len(warnings(many).split(' | ')) == 2
    balanced = [pair(), pair(chosen='threshold:0.3', rejected='greedy')] * 50
    assert warnings(balanced) == ''
    assert '> 0.1 recommended' in warnings(balanced, min_iou_gap=0.1)
    assert '2 training pairs' in warnings(balanced[:2])
    assert 'fewer than 5 distinct candidates' in warnings(balanced, num_samples=5)
    assert 'no ground truth' in warnings(balanced, gt_dir=None)


def test_a_judge_that_disagrees_is_counted():
    pairs = [pair(gap=-0.1, judge='ClDice', chosen_score=0.8, rejected_score=0.4), pair()]
    report = summarise_pairs(pairs, [], [entry('a.png', pairs)], config(), [], NONE)
    assert report['judge_disagrees_with_iou'] == 1 and report['gap_mean'] == pytest.approx(0.3)
    assert any('lower or equal IoU in 1 of 2' in text for text in report['warnings'])


def test_no_pair_at_all():
    report = summarise_pairs([], [], [entry('a.png', [])], config(), [], NONE)
    assert report['gap_mean'] is None and '0 training pairs' in format_report(report)


def test_source_kinds():
    assert [source_kind(s) for s in ('greedy', 'seg_noise:0.3#1', 'prediction:unet', 'corruption:thin:1')] == [
        'greedy', 'seg_noise', 'prediction:unet', 'corruption']
