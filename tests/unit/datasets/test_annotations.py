"""The annotation schema: what is written is read back, and every defect has one clear line."""
import json
import os

import numpy as np
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import (
    PairRecord,
    SegRecord,
    read_pairs,
    read_segs,
    resolve,
    write_pairs,
    write_segs,
)
from sa2va_dpo.datasets.mask_io import write_mask

GOOD = dict(image='images/ä 1.png', chosen_mask='masks/c.png', rejected_mask='masks/r.png', chosen_iou=0.85,
            rejected_iou=0.62, iou_gap=0.23, prompt='<image>Please segment the blood vessels.')


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'root'
    for name in ('images/ä 1.png', 'masks/c.png', 'masks/r.png', 'gt/1.png'):
        write_mask(root / name, np.eye(4, dtype=bool))
    write_mask(tmp_path / 'outside.png', np.eye(4, dtype=bool))
    return root


def write(root, content):
    path = root / 'dpo_annotations.json'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


def test_the_guides_example_reads(root):
    (record,) = read_pairs(write(root, [GOOD]), root)
    assert record == PairRecord(**GOOD) and record.preference_gap == 0.23


def test_round_trip_keeps_unknown_fields(root):
    pair = PairRecord(**GOOD, chosen_source='greedy', gt_mask='gt/1.png', extra={'chosen_agreement': 0.9})
    write_pairs(root / 'p.json', [pair])
    assert read_pairs(root / 'p.json', root) == [pair]
    seg = SegRecord('images/ä 1.png', 'gt/1.png', 'x')
    write_segs(root / 's.json', [seg])
    assert read_segs(root / 's.json', root) == [seg]
    assert not list(root.glob('*.tmp'))


def test_another_judge_may_disagree_with_iou(root):
    entry = dict(
        GOOD, chosen_iou=0.6, rejected_iou=0.7, iou_gap=-0.1, judge='cldice', chosen_score=0.9, rejected_score=0.5
    )
    (record,) = read_pairs(write(root, [entry]), root)
    assert record.preference_gap == pytest.approx(0.4)


DEFECTS = {
    'missing file': (None, 'no such file: make it with'),
    'empty file': ('', 'not valid JSON'),
    'cut short': (json.dumps([GOOD])[:-9], 'not valid JSON'),
    'not UTF-8': (b'[{"image": "\xff\xfe"}]', 'not UTF-8'),
    'not a list': ({'pairs': []}, 'must be a list'),
    'empty list': ([], 'empty list'),
    'record is text': (['x'], 'must be an object'),
    'record is null': ([None], 'must be an object'),
    'NaN': (json.dumps([dict(GOOD, iou_gap=float('nan'))]), 'NaN'),
    'Infinity': (json.dumps([dict(GOOD, iou_gap=float('inf'))]), 'Infinity'),
    '1e999': (json.dumps([GOOD]).replace('0.85', '1e999'), '1e999 is larger than any number'),
    'duplicate key': (json.dumps([GOOD])[:-2] + ', "image": "images/b.png"}]', "'image' stands twice"),
    'deeply nested': ('[' * 100000, 'not valid JSON'),
    **{f'no {name}': ([{k: v for k, v in GOOD.items() if k != name}], f'{name} is missing') for name in GOOD},
    'bool as number': ([dict(GOOD, chosen_iou=True)], 'chosen_iou is True'),
    'text as number': ([dict(GOOD, rejected_iou='0.62')], "rejected_iou is '0.62'"),
    'number as path': ([dict(GOOD, image=7)], 'image is 7'),
    'list as path': ([dict(GOOD, chosen_mask=['masks/c.png'])], 'chosen_mask is'),
    'blank prompt': ([dict(GOOD, prompt='  ')], 'prompt is'),
    'iou above 1': ([dict(GOOD, chosen_iou=85)], r'chosen_iou is 85.0, must be in \[0, 1\]'),
    'iou below 0': ([dict(GOOD, rejected_iou=-0.1)], 'rejected_iou is -0.1'),
    'swapped': ([dict(GOOD, chosen_iou=0.62, rejected_iou=0.85)], 'swap the two masks'),
    'tie': ([dict(GOOD, rejected_iou=0.85, iou_gap=0)], 'must be above'),
    'gap does not fit': ([dict(GOOD, iou_gap=0.3)], 'iou_gap is 0.3'),
    'judge disagrees with itself': (
        [dict(GOOD, judge='cldice', chosen_score=0.4, rejected_score=0.5)],
        'chosen_score 0.4',
    ),
    'judge without scores': ([dict(GOOD, judge='cldice')], 'chosen_score is missing'),
    'dot dot': ([dict(GOOD, image='../outside.png')], 'leaves the data root'),
    'dot dot inside': ([dict(GOOD, image='images/../../outside.png')], 'leaves the data root'),
    'backslashes': ([dict(GOOD, image='..\\outside.png')], 'leaves the data root'),
    'absolute': ([dict(GOOD, chosen_mask='/etc/passwd')], 'leaves the data root'),
    'link out': ([dict(GOOD, image='images/link.png')], 'link that leaves'),
    'null byte': ([dict(GOOD, image='images/a\0.png')], 'image'),
    'name too long': ([dict(GOOD, image='images/' + 'a' * 5000 + '.png')], 'image'),
    'no such image': ([dict(GOOD, image='images/none.png')], 'no such file'),
    'folder as mask': ([dict(GOOD, rejected_mask='masks')], 'no such file'),
    'bad gt_mask': ([dict(GOOD, gt_mask='gt/none.png')], 'gt_mask.*no such file'),
}


@pytest.mark.parametrize('name', DEFECTS)
def test_defects(root, name):
    content, message = DEFECTS[name]
    os.symlink(root.parent / 'outside.png', root / 'images' / 'link.png')
    path = root / 'dpo_annotations.json' if content is None else write(root, content)
    with pytest.raises(InputError, match=message) as error:
        read_pairs(path, root)
    assert 'dpo_annotations.json' in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_resolve(root):
    assert resolve(root, 'masks/c.png') == root / 'masks' / 'c.png'
    assert resolve(root, 'masks\\c.png') == root / 'masks' / 'c.png'
    for bad in ('/c.png', '../c.png', 'C:/c.png'):
        with pytest.raises(InputError):
            resolve(root, bad)
