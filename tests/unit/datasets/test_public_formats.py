"""Data sets as they come: their own file names, in their own folders or in one, matched without a flag."""
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.field_of_view import find_field_of_view
from sa2va_dpo.datasets.ground_truth import MaskFolder, match_ground_truth
from sa2va_dpo.datasets.mask_io import list_images, read_mask
from sa2va_dpo.datasets.seg_dataset import FolderMasks

from .public_sets import SETS, SIZE, field, photograph, save, vessels, write


@pytest.mark.parametrize('one_folder', [False, True], ids=['folders', 'one folder'])
@pytest.mark.parametrize('name', [name for name in SETS if name != 'plain'])
def test_every_image_finds_its_own_mask(tmp_path, name, one_folder):
    if one_folder and name == 'FIVES':
        pytest.skip('two files of one name cannot lie in one folder')
    images, masks = write(tmp_path, name, one_folder)
    spec = SETS[name]
    dataset = FolderMasks(str(images), str(masks))
    assert [image.name for image, _ in dataset.matched] == [spec['image'].format(ident) for ident in spec['ids']]
    assert [mask.name for _, mask in dataset.matched] == [spec['mask'].format(ident) for ident in spec['ids']]
    assert not dataset.missing
    for k in range(len(dataset)):
        item = dataset[k]
        assert item['image'].shape == (*SIZE, 3) and np.array_equal(item['mask'], vessels(k))
        if 'field' in spec:
            assert np.array_equal(item['field_of_view'], field()), 'the field of view is found as well'
        else:
            assert 'field_of_view' not in item


def test_a_mark_in_a_name_is_no_mark_where_the_whole_name_fits(tmp_path):
    """'a_test' has a mask of its own; that of 'a' does not fit it."""
    dataset = FolderMasks(*map(str, write(tmp_path, 'plain')))
    assert [(image.stem, mask.stem) for image, mask in dataset.matched] == [
        ('a', 'a'),
        ('a_test', 'a_test'),
        ('b', 'b'),
    ]


def test_the_second_observer_serves_where_the_first_is_missing(tmp_path):
    images, masks = write(tmp_path, 'CHASE_DB1')
    (masks / 'Image_01L_1stHO.png').unlink()
    assert FolderMasks(str(images), str(masks)).matched[0][1].name == 'Image_01L_2ndHO.png'


def test_two_masks_of_one_observer_are_an_error(tmp_path):
    images, masks = write(tmp_path, 'DCA1')
    shutil.copy(masks / '1_gt.pgm', masks / '1_manual1.pgm')
    with pytest.raises(InputError, match='same image') as error:
        FolderMasks(str(images), str(masks))
    assert '1_gt.pgm' in str(error.value) and '1_manual1.pgm' in str(error.value)


def test_a_folder_of_masks_beside_another_is_no_field_of_view(tmp_path):
    """masks/ holds thick vessels under the names that fields of view have elsewhere."""
    for k, stem in enumerate('ab'):
        photograph(tmp_path / 'images' / f'{stem}.png', k)
        save(tmp_path / 'thin' / f'{stem}.png', vessels(k))
        save(tmp_path / 'masks' / f'{stem}_mask.png', vessels(k) | vessels(k + 9))
    for image, mask in FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'thin')).matched:
        assert find_field_of_view(image, mask) is None


def test_fields_of_view_by_stem_in_their_own_folder(tmp_path):
    photograph(tmp_path / 'images/a.png', 0)
    save(tmp_path / 'masks/a.png', vessels(0))
    save(tmp_path / 'fov/a.png', field())
    (image, mask), = FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'masks')).matched
    assert find_field_of_view(image, mask) == tmp_path / 'fov/a.png'


# -- outlines ---------------------------------------------------------------------------------------------------------

def run_lengths(mask):
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())


def square(y, x, side):
    mask = np.zeros(SIZE, bool)
    mask[y:y + side, x:x + side] = True
    return mask


def polygon(y, x, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def arcade(tmp_path):
    """ARCADE: images/ and annotations/train.json, several segments an image."""
    for k in (1, 2):
        photograph(tmp_path / f'syntax/train/images/{k}.png', k, 'L')
    content = dict(images=[dict(id=k, file_name=f'{k}.png', height=SIZE[0], width=SIZE[1]) for k in (1, 2)],
                   categories=[dict(id=1, name='1'), dict(id=2, name='5')],
                   annotations=[dict(id=1, image_id=1, category_id=1, segmentation=[polygon(2, 3, 6)]),
                                dict(id=2, image_id=1, category_id=2, segmentation=run_lengths(square(10, 20, 5))),
                                dict(id=3, image_id=2, category_id=2, segmentation=[polygon(1, 1, 4)])])
    path = tmp_path / 'syntax/train/annotations/train.json'
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize('named', ['file', 'folder'])
def test_arcade(arcade, named):
    dataset = FolderMasks(str(arcade.parents[1] / 'images'), str(arcade if named == 'file' else arcade.parent))
    assert [image.name for image, _ in dataset.matched] == ['1.png', '2.png']
    assert np.array_equal(dataset[0]['mask'], square(2, 3, 6) | square(10, 20, 5))
    assert np.array_equal(dataset[1]['mask'], square(1, 1, 4))


def test_a_corrected_file_is_read_again(arcade):
    before = MaskFolder(arcade).masks
    content = json.loads(arcade.read_text())
    content['images'].pop()
    content['annotations'].pop()
    arcade.write_text(json.dumps(content))
    os.utime(arcade, (1, 1))
    assert MaskFolder(arcade).masks == before[:1]


def test_outlines_of_another_size_than_the_image(arcade):
    photograph(arcade.parents[1] / 'images/2.png', 0)
    Image.new('L', (7, 7)).save(arcade.parents[1] / 'images/2.png')
    with pytest.raises(InputError, match=r'2.png: is 30 x 20, its image 2.png is 7 x 7'):
        FolderMasks(str(arcade.parents[1] / 'images'), str(arcade))


@pytest.mark.parametrize('named', ['file', 'folder'])
def test_upstreams_fine_tuning_annotations(tmp_path, named):
    """One mask a text: polygons, run lengths, or a bare polygon; two records of one image are joined."""
    for name in ('a.jpg', 'b.jpg'):
        photograph(tmp_path / 'my_data/images' / name, 1)
    (tmp_path / 'my_data/annotations.json').write_text(
        json.dumps(
            [
                dict(
                    image='a.jpg',
                    mask=[[polygon(2, 3, 6), polygon(12, 12, 3)], [polygon(1, 20, 4)]],
                    text=['left vessel', 'right vessel'],
                ),
                dict(image='b.jpg', mask=[run_lengths(square(4, 4, 9))], text=['vessel']),
                dict(image='b.jpg', mask=[polygon(15, 20, 3)], text=['branch']),
            ]
        )
    )
    gt = tmp_path / 'my_data/annotations.json' if named == 'file' else tmp_path / 'my_data'
    dataset = FolderMasks(str(tmp_path / 'my_data/images'), str(gt))
    assert [item[0].name for item in dataset.matched] == ['a.jpg', 'b.jpg']
    assert np.array_equal(dataset[0]['mask'], square(2, 3, 6) | square(12, 12, 3) | square(1, 20, 4))
    assert np.array_equal(dataset[1]['mask'], square(4, 4, 9) | square(15, 20, 3))


@pytest.mark.parametrize(
    'record, message',
    [
        (dict(image='../a.jpg', mask=[], text=[]), 'image is'),
        (dict(image=None, mask=[], text=[]), 'image is None'),
        (dict(image='a.jpg', mask={}, text=[]), 'mask is a dict'),
        (dict(image='a.jpg', mask=[[[1, 2, 3]]], text=['x']), 'polygons'),
        (dict(image='a.jpg', mask=[[[1, 2, 3, 4, 5, 1e9]]], text=['x']), 'polygons'),
        (dict(image='none.jpg', mask=[[[1, 2, 3, 4, 5, 6]]], text=['x']), 'not in images/'),
    ],
)
def test_bad_fine_tuning_annotations(tmp_path, record, message):
    photograph(tmp_path / 'images/a.jpg', 1)
    (tmp_path / 'annotations.json').write_text(json.dumps([record]))
    with pytest.raises(InputError, match=message) as error:
        for mask in MaskFolder(tmp_path / 'annotations.json').masks:
            read_mask(mask)
    assert 'annotations.json' in str(error.value) and len(str(error.value).splitlines()) == 1


def test_images_without_a_mask_are_listed_in_one_folder_as_well(tmp_path):
    images, _ = write(tmp_path, 'DCA1')
    photograph(images / '200.pgm', 3, 'L')
    matched, missing = match_ground_truth(list_images(images), images)
    assert len(matched) == 3 and missing == [images / '200.pgm']
