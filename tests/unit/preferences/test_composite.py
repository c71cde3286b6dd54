"""Masks put together from parts, by hand."""
import numpy as np
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs, resolve
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.topology import cldice
from sa2va_dpo.preferences.composite import cell_composite, component_pairs
from sa2va_dpo.preferences.config import GenerateConfig
from sa2va_dpo.preferences.generate import generate_pairs


def grid(*rows):
    return np.array([[c == '#' for c in row] for row in rows])


def test_each_cell_takes_who_is_right_there():
    truth = grid('##..', '##..', '..##', '..##')
    left = grid('##..', '##..', '#...', '....')    # right in the upper half
    right = grid('....', '....', '..##', '..##')   # right in the lower half
    assert np.array_equal(cell_composite([left, right], truth.astype(float), 2), truth)
    # One cell: left is right on 11 pixels of 16, right on 12.
    assert np.array_equal(cell_composite([left, right], truth.astype(float), 1), right)


def test_a_composite_is_never_less_right_than_any_candidate():
    rng = np.random.default_rng(0)
    belief = rng.random((37, 23))
    masks = [rng.random((37, 23)) > t for t in (0.3, 0.5, 0.7)]

    def right(mask):
        return np.where(mask, belief, 1 - belief).mean()

    values = [right(cell_composite(masks, belief, cells)) for cells in (1, 2, 8, 100)]
    assert values[0] == pytest.approx(max(right(mask) for mask in masks)) and values == sorted(values)
    assert values[-1] > values[0]


def test_picks_go_cell_by_cell():
    masks = [np.zeros((4, 4), bool), np.ones((4, 4), bool)]
    labels = []

    def pick(values, label):
        labels.append(label)
        assert values == [1.0, 0.0]
        return int(label.endswith('1'))

    out = cell_composite(masks, np.zeros((4, 4)), 2, pick)
    assert np.array_equal(out, grid('..##', '..##', '..##', '..##')) and len(set(labels)) == 4


def test_every_component_is_a_pair_of_its_own():
    best = grid('###......', '###......', '.........', '......###')
    second = grid('.........', '.........', '.........', '......###')
    second = second | grid('.....##..', '.....##..', '.........', '.........')
    belief = grid('###......', '###......', '.........', '......###').astype(float)
    belief[0:2, 5:7] = [[0.9, 0.9], [0.9, 0.1]]    # second has this one right: 2.8 of 4
    first, other = component_pairs(best, second, belief, smallest=4)
    assert (first.pixels, first.best_is_right, first.agreement) == (6, True, 1.0)
    assert (other.pixels, other.best_is_right, other.agreement) == (4, False, pytest.approx(0.7))
    assert np.array_equal(first.other, grid('.........', '.........', '.........', '......###'))
    assert np.array_equal(other.other, best | second)
    assert [pair.pixels for pair in component_pairs(best, second, belief, largest=1)] == []
    assert [pair.pixels for pair in component_pairs(best, second, belief, largest=1, smallest=5)] == [6]
    assert component_pairs(best, second, np.full(best.shape, 0.5), smallest=1) == [], 'nothing is preferred'


def config(folders, **more):
    return GenerateConfig(
        mode='generate',
        val_fraction=0.0,
        test_fraction=0.0,
        images_dir=folders.images,
        gt_dir=folders.gt,
        output_dir=folders.out,
        model_path=folders.images,
        min_iou_gap=0.0,
        **more,
    )


def test_mining_by_cells_puts_the_composite_against_every_candidate(folders, policy, preprocessor):
    report = generate_pairs(config(folders, cells=4), policy, preprocessor)
    records = read_pairs(f'{folders.out}/dpo_annotations.json', folders.out)
    composed = [record for record in records if record.chosen_source == 'composite:4']
    assert len(composed) > len(records) / 2 and report['best_candidate_iou'] is not None
    by_image = {}
    for record in composed:
        by_image.setdefault(record.image, []).append(record)
    for image, group in by_image.items():
        assert len({record.chosen_iou for record in group}) == 1
        assert group[0].chosen_iou > max(record.rejected_iou for record in group)
        assert len({record.rejected_source for record in group}) == len(group)


def test_mining_components_makes_masks_that_differ_in_one_place(folders, policy, preprocessor):
    from scipy import ndimage

    generate_pairs(config(folders, pairing='Components'), policy, preprocessor)
    records = read_pairs(f'{folders.out}/dpo_annotations.json', folders.out)
    assert len(records) > 8
    for record in records:
        masks = [read_mask(resolve(folders.out, name)) for name in (record.chosen_mask, record.rejected_mask)]
        gt = read_mask(resolve(folders.out, record.gt_mask))
        differ = masks[0] != masks[1]
        assert ndimage.label(differ, np.ones((3, 3)))[1] == 1
        assert record.extra['judge'] == 'Components' and record.preference_gap > 0
        share = (masks[0] == gt)[differ].mean()
        assert record.extra['chosen_score'] == pytest.approx(share, abs=1e-5) and share > 0.5


@pytest.mark.parametrize('more, words', [
    (dict(cells=0), '--cells 0: must be a whole number'), (dict(cells=4, judge=('PredictedIoU',)), 'parts of an image'),
    (dict(pairing='Components', judge=('PredictedIoU',)), '--pairing Components: needs a judge'),
    (dict(cells=4, pairing='TopologyMatched'), '--cells 4: puts one mask together'),
    (dict(pairing='TopologyMatched', dice_tolerance=1.5), '--dice_tolerance 1.5')])
def test_impossible_settings(folders, more, words):
    with pytest.raises(InputError, match=words):
        config(folders, **more)


def test_picks_by_cell_and_their_errors(folders, policy, preprocessor):
    generate_pairs(config(folders, cells=4, judge=(dict(type='Pick', wrong=0.0),)), policy, preprocessor)
    right = read_pairs(f'{folders.out}/dpo_annotations.json', folders.out)
    assert all(record.extra['chosen_score'] == 1 and record.extra['rejected_score'] == 0 for record in right)
    generate_pairs(
        config(folders, cells=4, judge=(dict(type='Pick', wrong=0.5),)), policy, preprocessor, overwrite=True
    )
    wrong = read_pairs(f'{folders.out}/dpo_annotations.json', folders.out)
    assert np.mean([r.chosen_iou for r in wrong]) < np.mean([r.chosen_iou for r in right]) - 0.01


def test_mining_topology_matched_pairs(folders, policy, preprocessor):
    """Every pair that is written: Dice within the tolerance, the better clDice chosen, its scores beside it."""
    generate_pairs(config(folders, pairing='TopologyMatched', dice_tolerance=0.2), policy, preprocessor)
    records = read_pairs(f'{folders.out}/dpo_annotations.json', folders.out)
    assert len(records) > 4
    for record in records:
        chosen, rejected, gt = (read_mask(resolve(folders.out, name))
                                for name in (record.chosen_mask, record.rejected_mask, record.gt_mask))
        assert abs(dice(confusion_counts(chosen, gt)) - dice(confusion_counts(rejected, gt))) <= 0.2
        assert record.extra['judge'] == 'TopologyMatched'
        assert record.extra['chosen_score'] == pytest.approx(cldice(chosen, gt))
        assert cldice(chosen, gt) > cldice(rejected, gt)
        assert record.preference_gap == pytest.approx(cldice(chosen, gt) - cldice(rejected, gt))
