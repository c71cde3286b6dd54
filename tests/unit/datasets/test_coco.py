"""COCO ground truth: polygons, run lengths, overlaps and holes."""
import json

import numpy as np
import pytest
from pycocotools import mask as rle

from sa2va_dpo.commands.coco_masks import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.coco import coco_to_masks, read_coco
from sa2va_dpo.datasets.mask_io import read_mask

RING = np.zeros((20, 30), bool)
RING[4:16, 4:26] = True
RING[8:12, 10:20] = False


def compressed(mask):
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())


def plain(mask):
    flat = np.concatenate([[False], mask.T.ravel(), [False]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return dict(size=list(mask.shape), counts=np.diff(np.concatenate([[0], edges, [mask.size]])).tolist())


def write(tmp_path, *segmentations, **changes):
    content = dict(images=[dict(id=1, file_name='a (1).jpg', height=20, width=30)],
                   annotations=[dict(id=i, image_id=1, category_id=1 + i % 2, segmentation=s)
                                for i, s in enumerate(segmentations)],
                   categories=[dict(id=1, name='vessel'), dict(id=2, name='disc')])
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps({**content, **changes}))
    return path


@pytest.mark.parametrize('encode', [compressed, plain])
def test_holes_survive_run_lengths(tmp_path, encode):
    assert np.array_equal(read_coco(write(tmp_path, encode(RING)))['a (1).jpg'], RING)


@pytest.mark.parametrize('seed', range(8))
def test_run_lengths_agree_with_pycocotools(tmp_path, seed):
    mask = np.random.default_rng(seed).random((20, 30)) > (seed + 1) / 10
    for encode in (compressed, plain):
        assert np.array_equal(read_coco(write(tmp_path, encode(mask)))['a (1).jpg'], mask)


def test_overlapping_polygons_are_joined_not_added(tmp_path):
    """Two overlapping squares in one annotation: the overlap is vessel, as every other pixel of them."""
    path = write(tmp_path, [[2, 2, 12, 2, 12, 12, 2, 12], [8, 8, 18, 8, 18, 18, 8, 18]])
    expected = np.zeros((20, 30), bool)
    expected[2:12, 2:12] = expected[8:18, 8:18] = True
    assert np.array_equal(read_coco(path)['a (1).jpg'], expected)


def test_annotations_are_joined_and_categories_picked(tmp_path):
    left, right = RING.copy(), RING.copy()
    left[:, 15:] = right[:, :15] = False
    path = write(tmp_path, compressed(left), compressed(right))
    assert np.array_equal(read_coco(path)['a (1).jpg'], RING)
    assert np.array_equal(read_coco(path, ('vessel',))['a (1).jpg'], left)


def test_command_writes_masks_by_stem(tmp_path, capsys):
    assert main(['--coco', str(write(tmp_path, plain(RING))), '--output_dir', str(tmp_path / 'gt')]) == 0
    assert np.array_equal(read_mask(tmp_path / 'gt' / 'a (1).png'), RING) and '1 masks' in capsys.readouterr().out


BAD = dict(size=[20, 30], counts=[600])
IMAGE = dict(id=1, file_name='a.png', height=20, width=30)


@pytest.mark.parametrize('segmentations, changes, message', [
    ([dict(BAD, counts=[601])], {}, 'add up to 600'),
    ([dict(BAD, counts=[-1, 601])], {}, 'add up to 600'),
    ([dict(BAD, counts='0')], {}, 'add up to'),
    ([dict(BAD, counts='~~~')], {}, 'not a run-length encoding'),
    ([dict(BAD, counts='o')], {}, 'cut short'),
    ([dict(BAD, counts=3)], {}, 'text or a list'),
    ([dict(BAD, size=[30, 20])], {}, 'size'),
    ([dict(size=[20, 30])], {}, 'run-length'),
    ([[[1, 2, 3, 4]]], {}, 'polygons'),
    ([[[1, 2, 3, 4, 5, 'x']]], {}, 'polygons'),
    ([None], {}, 'segmentation'),
    ([], dict(images=3), 'images must be a list'),
    ([], dict(annotations=[5]), 'annotations must be a list'),
    ([], dict(annotations=[dict(image_id=9)]), 'image_id 9'),
    ([], dict(images=[IMAGE, IMAGE]), 'stands twice'),
    ([], dict(images=[dict(IMAGE, height=0)]), 'height is 0'),
    ([], dict(images=[dict(IMAGE, file_name=None)]), 'file_name'),
    ([], dict(images=[IMAGE, dict(IMAGE, id=2, file_name='a.jpg')]), 'same stem'),
])
def test_defects(tmp_path, segmentations, changes, message):
    path = write(tmp_path, *segmentations, **changes)
    with pytest.raises(InputError, match=message) as error:
        coco_to_masks(path, tmp_path / 'gt')
    assert 'coco.json' in str(error.value) and not (tmp_path / 'gt').exists()


def test_unknown_category_and_file(tmp_path):
    with pytest.raises(InputError, match='no category bone'):
        read_coco(write(tmp_path), ('bone',))
    (tmp_path / 'x.json').write_text('[')
    for name in ('x.json', 'none.json'):
        with pytest.raises(InputError, match=name):
            read_coco(tmp_path / name)
