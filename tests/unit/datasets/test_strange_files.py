"""Names, sizes and levels that are not what they should be: matched where they can be, one line where they cannot."""
import json
import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs, read_segs, resolve
from sa2va_dpo.datasets.coco import read_coco
from sa2va_dpo.datasets.ground_truth import check_sizes, match_ground_truth, patient_of
from sa2va_dpo.datasets.mask_io import image_size, list_images, mask_levels, read_image_rgb, read_mask, read_probability
from sa2va_dpo.datasets.seg_dataset import AnnotatedMasks, FolderMasks

MASK = np.zeros((8, 10), bool)
MASK[2:5, 1:9] = True


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(path)
    return path


def one_line(error, *words):
    text = str(error.value)
    assert len(text.splitlines()) == 1 and all(word in text for word in words), text


# -- names ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('image_form, mask_form', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_in_two_normal_forms_match(tmp_path, image_form, mask_form):
    save(tmp_path / 'images' / unicodedata.normalize(image_form, 'Gefäß_é.png'), np.zeros((8, 10, 3), np.uint8))
    save(tmp_path / 'gt' / unicodedata.normalize(mask_form, 'Gefäß_é_mask.png'), MASK)
    dataset = FolderMasks(
        str(tmp_path / 'images'), str(tmp_path / 'gt'), stems=[unicodedata.normalize('NFD', 'Gefäß_é')]
    )
    assert np.array_equal(dataset[0]['mask'], MASK)
    assert patient_of(unicodedata.normalize('NFD', 'Gefäß 1_L')) == patient_of(
        unicodedata.normalize('NFC', 'Gefäß 1_R')
    )


def test_one_name_in_two_normal_forms_is_one_name_too_many(tmp_path):
    for form in ('NFC', 'NFD'):
        save(tmp_path / 'images' / unicodedata.normalize(form, 'ä.png'), np.zeros((8, 10, 3), np.uint8))
    save(tmp_path / 'gt/b.png', MASK)
    with pytest.raises(InputError, match='same stem'):
        match_ground_truth(list_images(tmp_path / 'images'), tmp_path / 'gt')


@pytest.mark.parametrize('stored, written', [('NFD', 'NFC'), ('NFC', 'NFD')])
def test_an_annotation_finds_a_file_whose_name_was_unpacked_in_another_form(tmp_path, stored, written):
    folder = unicodedata.normalize(stored, 'Bilder ä')
    name = unicodedata.normalize(stored, 'é.png')
    save(tmp_path / folder / name, MASK)
    asked = unicodedata.normalize(written, 'Bilder ä/é.png')
    assert resolve(tmp_path, asked).is_file() and resolve(tmp_path, asked) == tmp_path / folder / name
    path = tmp_path / 'val_annotations.json'
    path.write_text(json.dumps([dict(image=asked, mask=asked, prompt='p')]))
    assert len(read_segs(path, tmp_path)) == 1
    assert not resolve(tmp_path, 'none.png').exists()


def test_another_form_does_not_lead_out_of_the_data_root(tmp_path):
    save(tmp_path / 'outside.png', MASK)
    (tmp_path / 'root').mkdir()
    os.symlink(tmp_path / 'outside.png', tmp_path / 'root' / unicodedata.normalize('NFD', 'ä.png'))
    assert not resolve(tmp_path / 'root', unicodedata.normalize('NFC', 'ä.png')).exists()


def test_names_that_are_not_utf8_are_one_line(tmp_path):
    name = os.fsdecode(b'gef\xe4\xdf.png')
    try:
        (tmp_path / name).write_bytes(save(tmp_path / 'a.png', MASK).read_bytes())
    except OSError:
        pytest.skip('this file system takes no such name')
    with pytest.raises(InputError) as error:
        list_images(tmp_path)
    one_line(error, r'gef\xe4\xdf.png', 'not UTF-8', 'rename')
    str(error.value).encode('utf-8')


def test_unreadable_files_of_such_names_too(tmp_path):
    path = tmp_path / os.fsdecode(b'\xff.png')
    try:
        path.write_bytes(b'no image')
    except OSError:
        pytest.skip('this file system takes no such name')
    with pytest.raises(InputError) as error:
        read_mask(path)
    str(error.value).encode('utf-8')


# -- sizes ------------------------------------------------------------------------------------------------------------

def bomb(path, width, height):
    """A PNG of a few bytes whose header promises any number of pixels."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b'')
    )
    return path


@pytest.mark.parametrize('width, height', [(12000, 12000), (8193, 8192), (100000, 100000), (1 << 30, 1)])
def test_pictures_above_the_limit_are_refused_by_their_header(tmp_path, width, height):
    path = bomb(tmp_path / 'bomb.png', width, height)
    for look in (image_size, read_image_rgb, read_mask, read_probability):
        with pytest.raises(InputError) as error:
            look(path)
        one_line(error, 'bomb.png', 'limit', 'SA2VA_DPO_MAX_IMAGE_PIXELS')


def test_the_limit_can_be_set(tmp_path, monkeypatch):
    path = save(tmp_path / 'a.png', MASK)
    monkeypatch.setenv('SA2VA_DPO_MAX_IMAGE_PIXELS', '79')
    with pytest.raises(InputError, match='10 x 8 px, the limit is 79'):
        read_mask(path)
    monkeypatch.setenv('SA2VA_DPO_MAX_IMAGE_PIXELS', '80')
    assert read_mask(path).shape == (8, 10)


def sized(tmp_path, *sizes):
    for k, (width, height) in enumerate(sizes):
        save(tmp_path / f'images/{k}.png', np.zeros((8, 10, 3), np.uint8))
        save(tmp_path / f'gt/{k}.png', np.zeros((height, width), bool))


def test_masks_of_another_size_are_found_before_any_work(tmp_path):
    """Five are wrong: three are named, two are counted."""
    sized(tmp_path, (10, 8), (8, 10), (9, 8), (10, 8), (10, 9), (1, 1), (20, 16))
    with pytest.raises(InputError) as error:
        FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'gt'))
    one_line(
        error,
        '1.png: is 8 x 10, its image 1.png is 10 x 8',
        'rows and columns are exchanged',
        '2.png: is 9 x 8',
        'and 2 more',
    )
    assert '3.png' not in str(error.value)


def test_also_those_of_an_annotation_file(tmp_path):
    sized(tmp_path, (10, 8), (9, 8))
    (tmp_path / 'val_annotations.json').write_text(
        json.dumps([dict(image=f'images/{k}.png', mask=f'gt/{k}.png', prompt='p') for k in range(2)])
    )
    with pytest.raises(InputError, match='1.png: is 9 x 8'):
        AnnotatedMasks(str(tmp_path))


def test_unreadable_headers_are_among_them(tmp_path):
    sized(tmp_path, (10, 8), (10, 8))
    (tmp_path / 'images/0.png').write_bytes(b'')
    bomb(tmp_path / 'gt/1.png', 50000, 50000)
    with pytest.raises(InputError) as error:
        check_sizes([(tmp_path / f'images/{k}.png', tmp_path / f'gt/{k}.png') for k in range(2)])
    one_line(error, '0.png: cannot be read', '1.png')


# -- levels -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('level', [1, 2, 7, 76, 100, 128, 200, 255])
def test_of_two_levels_the_one_above_zero_is_vessel(tmp_path, level):
    assert np.array_equal(read_mask(save(tmp_path / 'm.png', MASK.astype(np.uint8) * np.uint8(level))), MASK)


def test_a_coloured_mask_of_one_colour(tmp_path):
    """Red has grey level 76: below one half of the range, but the only level there is."""
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[MASK] = (255, 0, 0)
    assert np.array_equal(read_mask(save(tmp_path / 'm.png', pixels)), MASK)


def test_sixteen_bits_with_a_small_level(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / 'm.tif', MASK.astype(np.uint16) * 1000)), MASK)


@pytest.mark.parametrize(
    'levels, words',
    [
        ((0, 1, 2), ('levels 0, 1, 2', 'number classes')),
        ((0, 1, 2, 3, 4, 5, 6, 7), ('0, 1, 2, 3, 4, 5, ...', 'number classes')),
        ((1, 2), ('levels 1, 2', 'number classes')),
        ((40, 60), ('levels 40 and 60', 'which is vessel')),
    ],
)
def test_numbered_classes_are_no_mask(tmp_path, levels, words):
    pixels = np.array(levels, np.uint8)[np.arange(80).reshape(8, 10) % len(levels)]
    with pytest.raises(InputError) as error:
        read_mask(save(tmp_path / 'classes.png', pixels))
    one_line(error, 'classes.png', *words)


def test_a_photograph_is_no_mask(tmp_path):
    with pytest.raises(InputError) as error:
        read_mask(save(tmp_path / 'photo.png', np.random.default_rng(0).integers(40, 200, (8, 10), np.uint8)))
    one_line(error, 'photo.png', 'is no mask', 'exchanged')


def test_grey_edges_and_jpeg_noise_are_a_mask_all_the_same(tmp_path):
    big = np.kron(MASK, np.ones((16, 16), bool))
    half = np.asarray(Image.fromarray(big.astype(np.uint8) * 255).resize((77, 61), Image.BILINEAR))
    assert (read_mask(save(tmp_path / 'm.png', half)) == (half > 127)).all()
    Image.fromarray(big.astype(np.uint8) * 255).save(tmp_path / 'm.jpg', quality=60)
    assert (read_mask(tmp_path / 'm.jpg') != big).mean() < 0.01


def test_nan_counts_as_background(tmp_path):
    pixels = MASK.astype(np.float32)
    pixels[0, 0] = np.nan
    Image.fromarray(pixels).save(tmp_path / 'm.tif')
    assert np.array_equal(read_mask(tmp_path / 'm.tif'), MASK)
    assert read_image_rgb(tmp_path / 'm.tif').shape == (8, 10, 3)


def test_levels_for_a_report(tmp_path):
    assert mask_levels(save(tmp_path / 'm.png', MASK)) == {0: 56, 255: 24}


# -- COCO -------------------------------------------------------------------------------------------------------------

IMAGE = dict(id=1, file_name='a.png', height=8, width=10)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(images=[dict(IMAGE, id=[1])]), 'images[0]: id is [1]'),
        (dict(images=[dict(IMAGE, id=None)]), 'images[0]: id is None'),
        (dict(images=[dict(IMAGE, id={})]), 'images[0]: id is {}'),
        (dict(images=[dict(IMAGE, id=True)]), 'images[0]: id is True'),
        (dict(images=[dict(IMAGE, id=1.5)]), 'images[0]: id is 1.5'),
        (dict(annotations=[dict(image_id=[1], category_id=1, segmentation=[])]), 'annotations[0]: image_id is [1]'),
        (dict(annotations=[dict(image_id=None, category_id=1, segmentation=[])]), 'annotations[0]: image_id is None'),
        (dict(annotations=[dict(image_id=1, category_id={}, segmentation=[])]), 'annotations[0]: category_id is {}'),
        (dict(categories=[dict(id=[], name='v')]), 'categories[0]: id is []'),
        (dict(categories=[dict(id=1, name=['v'])]), "categories[0]: name is ['v']"),
        (dict(images=[dict(IMAGE, height=60000, width=60000)]), 'images[0] a.png: is 60000 x 60000 px, the limit'),
        (dict(annotations=[dict(image_id=1, category_id=1, segmentation=[[1, 2, 3, 4, 5, 1e300]])]), 'polygons'),
        (dict(annotations=[dict(image_id=1, category_id=1, segmentation=[[1, 2, 3, 4, 5, 10**30]])]), 'polygons'),
        (dict(annotations=[dict(image_id=1, category_id=1, segmentation=dict(size=8, counts=[80]))]), 'size is 8'),
    ],
)
def test_strange_coco(tmp_path, changes, words):
    content = dict(images=[IMAGE], annotations=[], categories=[dict(id=1, name='v')])
    (tmp_path / 'coco.json').write_text(json.dumps({**content, **changes}))
    with pytest.raises(InputError) as error:
        read_coco(tmp_path / 'coco.json', ('v',))
    one_line(error, 'coco.json', words)


@pytest.mark.parametrize('text', ['{"images": [{"id": NaN}]}', '{"images": [], "images": []}', '"\\ud800"', '[' * 5000])
def test_strange_json(tmp_path, text):
    (tmp_path / 'coco.json').write_text(text)
    with pytest.raises(InputError) as error:
        read_coco(tmp_path / 'coco.json')
    one_line(error, 'coco.json')


def test_pairs_of_names_in_another_form(tmp_path):
    """The whole way: annotations written as NFC, files unpacked as NFD."""
    for name in ('ä.png', 'ä_c.png', 'ä_r.png'):
        save(tmp_path / unicodedata.normalize('NFD', name), MASK)
    names = [unicodedata.normalize('NFC', name) for name in ('ä.png', 'ä_c.png', 'ä_r.png')]
    record = dict(
        zip(('image', 'chosen_mask', 'rejected_mask'), names), chosen_iou=0.9, rejected_iou=0.5, iou_gap=0.4, prompt='p'
    )
    (tmp_path / 'dpo_annotations.json').write_text(json.dumps([record], ensure_ascii=False), encoding='utf-8')
    assert len(read_pairs(tmp_path / 'dpo_annotations.json', tmp_path)) == 1
