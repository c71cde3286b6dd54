"""Three pairs of two small images, with masks on disk."""
import json

import cv2
import numpy as np
import pytest

from sa2va_dpo.datasets.annotations import PairRecord, write_pairs
from sa2va_dpo.review.journal import Journal
from sa2va_dpo.review.pairs import open_set


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / 'data'
    for name in ('images', 'masks'):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in ('a', 'b'):
        cv2.imwrite(str(root / f'images/{stem}.png'), rng.integers(0, 255, (8, 10, 3), dtype=np.uint8))
        for k in range(3):
            cv2.imwrite(str(root / f'masks/{stem}_{k}.png'), (rng.random((8, 10)) > 0.5).astype(np.uint8) * 255)
    records = [
        PairRecord(
            f'images/{stem}.png',
            f'masks/{stem}_{w}.png',
            f'masks/{stem}_{x}.png',
            0.8,
            low,
            round(0.8 - low, 6),
            '<image>Please segment the blood vessels.',
            'greedy',
            'threshold:0.9',
            extra=dict(chosen_dice=0.9, rejected_dice=0.6, chosen_agreement=0.75, rejected_over_segments=True),
        )
        for stem, w, x, low in (('a', 0, 1, 0.6), ('a', 0, 2, 0.5), ('b', 0, 1, 0.4))
    ]
    write_pairs(root / 'dpo_annotations.json', records)
    return root


@pytest.fixture
def review(data_root):
    return open_set(data_root, 'dpo_annotations.json')


@pytest.fixture
def decide():
    """(review set, reviewer, decisions in the order of the pairs, None for none) -> nothing; they are in the
    journal."""

    def write(review, reviewer, decisions):
        with Journal(review, reviewer) as journal:
            for pair, decision in zip(review.records, decisions):
                if decision:
                    journal.decide(pair, decision)

    return write


@pytest.fixture
def pick_root(tmp_path):
    """Three images with four, three and three candidates; the fourth of the first image repeats its second."""
    root = tmp_path / 'picks data'
    for name in ('images', 'candidates'):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(1)
    content = []
    for stem, count in (('a', 4), ('b', 3), ('c', 3)):
        cv2.imwrite(str(root / f'images/{stem}.png'), rng.integers(0, 255, (16, 20, 3), dtype=np.uint8))
        masks = rng.random((count, 16, 20)) > 0.5
        if count == 4:
            masks[3] = masks[1]
        for k, mask in enumerate(masks):
            cv2.imwrite(str(root / f'candidates/{stem}_{k}.png'), mask.astype(np.uint8) * 255)
        content.append(
            dict(
                image=f'images/{stem}.png',
                prompt='<image>Please segment the blood vessels.',
                candidates=[
                    dict(
                        mask=f'candidates/{stem}_{k}.png',
                        source=('greedy', 'flip', 'threshold:0.4', 'prompt')[k],
                        predicted_iou=0.8,
                    )
                    for k in range(count)
                ],
            )
        )
    content[0]['disagreement'] = 0.2
    (root / 'candidates.json').write_text(json.dumps(content))
    return root
