"""Labelled and unlabelled images in one data set; what the training will ask for before there are pairs."""
import json

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.datasets.draws import Draw
from sa2va_dpo.datasets.round_pairs import RoundPairs
from sa2va_dpo.engine.sampling import DrawSampler

PROMPT = '<image>Please segment the blood vessels.'


def write_root(root, names, gap, start=10):
    """One pair an image, of that gap."""
    root.mkdir()
    records = []
    for k, name in enumerate(names):
        mask = np.zeros((64, 96), np.uint8)
        mask[8:20, start:40 + 5 * k] = 255
        cv2.imwrite(str(root / f'{name}.png'), np.repeat(mask[..., None], 3, 2))
        cv2.imwrite(str(root / f'{name}_c.png'), mask)
        cv2.imwrite(str(root / f'{name}_r.png'), np.roll(mask, 3, 0))
        records.append(
            dict(
                image=f'{name}.png',
                chosen_mask=f'{name}_c.png',
                rejected_mask=f'{name}_r.png',
                chosen_iou=1.0,
                rejected_iou=round(1 - gap, 3),
                iou_gap=gap,
                prompt=PROMPT,
            )
        )
    (root / 'dpo_annotations.json').write_text(json.dumps(records))
    return root


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp('rounds')
    return write_root(root / 'labelled', ['a', 'b'], 0.01), write_root(
        root / 'unlabelled', ['c', 'd', 'e'], 0.2, start=4
    )


def make(roots, checkpoint, **more):
    labelled, unlabelled = roots
    return DATASETS.build(
        dict(
            type='RoundPairs',
            data_root=str(labelled),
            preprocessor=str(checkpoint),
            score_size=64,
            flip_prob=0.5,
            min_iou_gap=0.05,
            labelled_images=[str(labelled / f'{name}.png') for name in 'ab'],
            unlabelled_images=[str(unlabelled / f'{name}.png') for name in 'cde'],
            labelled_share=0.25,
            **more,
        )
    )


def test_before_the_first_round_it_knows_length_views_and_validation(roots, micro_checkpoint):
    data = make(roots, micro_checkpoint)
    assert isinstance(data, RoundPairs) and len(data) == 5 and data.parts is None and data.num_pairs == 0
    assert len(data.views()) == 5 * 4
    assert len(data.validation_pairs('dpo_annotations.json')) == 2 and data.validation_pairs('nothing.json') is None
    with_pairs = make(roots, micro_checkpoint, unlabelled=str(roots[1]))
    # What is computed for a view before there are pairs is found again.
    assert {view.key() for view in with_pairs.data_sets[0].views()} < {view.key() for view in data.views()}


def test_both_kinds_are_drawn_at_the_ratio(roots, micro_checkpoint):
    data = make(roots, micro_checkpoint, labelled=str(roots[0]), unlabelled=str(roots[1]))
    assert len(data) == 5 and data.parts == [(2, 0.25), (3, 0.75)], 'a labelled image stays however small the gap'
    names = [data[i]['image_id'] for i in range(5)]
    assert names == ['a', 'b', 'c', 'd', 'e']
    sampler = DrawSampler(data, seed=0)
    drawn = [data[sampler.draw(n)]['image_id'] for n in range(16)]
    assert sum(name in 'ab' for name in drawn) == 4


def test_a_draw_reaches_the_data_set_it_belongs_to(roots, micro_checkpoint):
    data = make(roots, micro_checkpoint, labelled=str(roots[0]), unlabelled=str(roots[1]))
    items = [data[Draw(3, number)] for number in range(12)]
    assert {item['image_id'] for item in items} == {'d'} and len({item['chosen'].tobytes() for item in items}) == 4
    assert np.array_equal(data[Draw(3, 5)]['chosen'], data.data_sets[1][Draw(1, 5)]['chosen'])


def test_one_kind_alone(roots, micro_checkpoint):
    data = make(roots, micro_checkpoint, unlabelled=str(roots[1]))
    assert len(data) == 3 and data.parts == [(3, 1.0)]
