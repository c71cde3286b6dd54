"""Pairs grouped by image, augmentation that keeps image and masks together, replay after a resume."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset, dpo_collate
from sa2va_dpo.datasets.draws import Draw, choose_in_turn
from sa2va_dpo.datasets.seg_dataset import VesselSegDataset, jitter, vessel_seg_collate

PROMPT = '<image>Please segment the blood vessels.'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Two images; the first has three pairs. The image is bright exactly where the chosen mask is."""
    root = tmp_path_factory.mktemp('data')
    records = []
    for k, count in ((0, 3), (1, 1)):
        mask = np.zeros((64, 96), np.uint8)
        mask[8:20, 10:40 + 20 * k] = 255
        cv2.imwrite(str(root / f'i{k}.png'), np.repeat(mask[..., None], 3, 2))
        cv2.imwrite(str(root / f'c{k}.png'), mask)
        for j in range(count):
            cv2.imwrite(str(root / f'r{k}{j}.png'), np.roll(mask, 3 + j, 0))
            records.append(
                dict(
                    image=f'i{k}.png',
                    chosen_mask=f'c{k}.png',
                    rejected_mask=f'r{k}{j}.png',
                    chosen_iou=1.0,
                    rejected_iou=round(0.9 - 0.3 * j, 2),
                    iou_gap=round(0.1 + 0.3 * j, 2),
                    prompt=PROMPT,
                )
            )
    (root / 'dpo_annotations.json').write_text(json.dumps(records))
    return root


def test_one_item_is_one_image_with_its_pairs(root, micro_checkpoint):
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, pairs_per_image=None)
    assert len(dataset) == 2 and dataset.num_pairs == 4
    item = dataset[0]
    assert item['chosen'].shape == item['rejected'].shape == (3, 64, 64)
    np.testing.assert_allclose(item['gaps'], [0.1, 0.4, 0.7], atol=1e-6)
    assert (item['chosen'] != item['rejected']).any((1, 2)).all()


def test_pairs_are_drawn_without_replacement_and_vary(root, micro_checkpoint):
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, pairs_per_image=2)
    draws = [tuple(dataset[Draw(0, number, visit)]['gaps'].round(2)) for visit, number in enumerate((4, 9, 11))]
    assert all(len(set(draw)) == 2 for draw in draws) and len(set(draws)) == 3
    assert sorted(sum(draws, ())) == pytest.approx([0.1, 0.1, 0.4, 0.4, 0.7, 0.7], abs=1e-6), 'each pair equally often'


def test_gap_filter_and_empty_result(root, micro_checkpoint):
    assert DPOVesselDataset(str(root), str(micro_checkpoint), min_iou_gap=0.3).num_pairs == 2
    with pytest.raises(InputError, match='no pair has iou_gap >= 0.9'):
        DPOVesselDataset(str(root), str(micro_checkpoint), min_iou_gap=0.9)


@pytest.mark.parametrize('gap, kept', [(0.05, True), (0.05 + 5e-7, False), (0.05 - 5e-7, True)])
def test_the_gap_is_compared_as_the_generator_compares_it(root, micro_checkpoint, tmp_path, gap, kept):
    """0.85 - 0.80 passes 0.05, and no more than that: nothing is rounded a second time."""
    for path in root.glob('*.png'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    records = [
        dict(
            image='i0.png',
            chosen_mask='c0.png',
            rejected_mask=f'r0{j}.png',
            chosen_iou=0.85,
            rejected_iou=worse,
            iou_gap=0.85 - worse,
            prompt=PROMPT,
        )
        for j, worse in enumerate((0.80, 0.5))
    ]
    (tmp_path / 'dpo_annotations.json').write_text(json.dumps(records))
    assert DPOVesselDataset(str(tmp_path), str(micro_checkpoint), min_iou_gap=gap).num_pairs == 1 + kept


@pytest.mark.parametrize('count, wanted', [(3, 2), (7, 4), (4, 4), (10, 1), (2, 5)])
def test_as_few_visits_as_possible_see_every_pair(count, wanted):
    visits = -(-count // wanted)
    for seed in range(5):
        picks = [choose_in_turn(count, wanted, seed, Draw(0, 17 + v, v), 'image') for v in range(visits)]
        assert set(sum(picks, [])) == set(range(count)) and all(
            len(set(p)) == len(p) == min(count, wanted) for p in picks
        )


def test_flips_move_image_and_masks_together(root, micro_checkpoint):
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=128, flip_prob=0.5)
    layouts = set()
    for number in range(12):
        item = dataset[Draw(0, number)]
        # The picture is white exactly on the chosen mask, so its SAM2 input must follow the mask's flip.
        white = item['sample']['sam_pixel_values'].mean(0) > 0
        mask = torch.from_numpy(item['chosen'][0] > 127)
        assert (white == mask).float().mean() > 0.97
        layouts.add(tuple(mask.nonzero().float().mean(0).round().tolist()))
    assert len(layouts) == 4


def test_an_item_is_a_function_of_seed_and_draw(root, micro_checkpoint):
    def flips(seed, numbers):
        dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, flip_prob=0.5, seed=seed)
        return [dataset[Draw(0, number)]['chosen'].tobytes() for number in numbers]

    forwards, backwards = flips(5, range(12)), flips(5, reversed(range(12)))
    assert forwards == backwards[::-1], 'whatever was read before'
    assert forwards != flips(6, range(12)) and len(set(forwards)) == 4
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, flip_prob=0.5, seed=5)
    assert len({dataset[0]['chosen'].tobytes() for _ in range(6)}) == 1, 'a plain index is always the same item'


def test_collate_says_which_pair_is_whose(root, micro_checkpoint):
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, pairs_per_image=None)
    data = dpo_collate([dataset[1], dataset[0]], str(micro_checkpoint))
    assert data['image_index'].tolist() == [0, 1, 1, 1]
    assert data['chosen'].dtype == torch.uint8 and data['chosen'].shape == (4, 64, 64)
    assert data['batch']['sam_pixel_values'].shape[0] == 2


def test_grouped_loss_equals_pair_by_pair(root, micro_checkpoint):
    """One forward pass for all pairs of an image gives the mean of the losses that single pairs give."""
    model = MODELS.build(dict(
        type='Sa2VADPOModel', checkpoint=str(micro_checkpoint), trainable=dict(projector='full'), score_size=64,
        preference=dict(beta=0.1, supervised_weight=1.0))).eval()
    with torch.no_grad():
        model.policy.text_hidden_fcs[2].bias.add_(0.3)
    dataset = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, pairs_per_image=None)
    grouped = dataset[0]
    singles = [dict(grouped, chosen=grouped['chosen'][i:i + 1], rejected=grouped['rejected'][i:i + 1],
                    gaps=grouped['gaps'][i:i + 1]) for i in range(3)]
    with torch.no_grad():
        together = model(**dpo_collate([grouped], str(micro_checkpoint)), mode='loss')
        apart = [model(**dpo_collate([single], str(micro_checkpoint)), mode='loss') for single in singles]
    for name in ('dpo_loss', 'supervised_loss', 'margin'):
        assert together[name].item() == pytest.approx(sum(a[name].item() for a in apart) / 3, abs=1e-5)
    assert abs(together['margin'].item()) > 0


def test_validation_items_keep_full_size_ground_truth(root, micro_checkpoint):
    (root / 'val_annotations.json').write_text(json.dumps([dict(image='i0.png', mask='c0.png', prompt=PROMPT)]))
    dataset = VesselSegDataset(dict(type='AnnotatedMasks', data_root=str(root)), str(micro_checkpoint))
    data = vessel_seg_collate([dataset[0]], str(micro_checkpoint))
    assert data['gt_mask'][0].shape == (64, 96) and data['gt_mask'][0].dtype == bool
    assert data['batch']['original_sizes'] == [(64, 96)] and data['image_id'] == ['i0']


def test_jitter_changes_colour_only():
    image = np.full((4, 4, 3), 100, np.uint8)
    image[0, 0] = 0
    changed = jitter(image, 0.3, np.random.default_rng(0))
    assert changed.dtype == np.uint8 and (changed[0, 0] == 0).all() and (changed[1, 1] != 100).any()
    assert jitter(image, 0.0, np.random.default_rng(0)) is image


def test_registered_with_mmengine():
    assert DATASETS.get('DPOVesselDataset') is DPOVesselDataset


def test_registered_with_xtuner():
    builder = pytest.importorskip(
        'xtuner.registry', reason='xtuner is not locked: it is registered with where it is installed'
    )
    BUILDER = builder.BUILDER
    assert BUILDER.get('Sa2VADPOModel') is MODELS.get('Sa2VADPOModel')
    assert BUILDER.get('DPOVesselDataset') is DATASETS.get('DPOVesselDataset') is DPOVesselDataset
