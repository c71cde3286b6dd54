"""TIFF and GIF files of several pages: every page is an image, and nobody takes the first one unasked."""
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError, InputProblems
from sa2va_dpo.datasets import pages
from sa2va_dpo.datasets.ground_truth import check_sizes, match_ground_truth
from sa2va_dpo.datasets.image_files import find_images
from sa2va_dpo.datasets.mask_io import image_size, list_images, mask_levels, read_image_rgb, read_mask, read_probability
from sa2va_dpo.datasets.precheck import check_root
from sa2va_dpo.datasets.seg_dataset import FolderMasks

SEVERAL = 'run.tif: holds 3 pictures where one is meant: save the one that is meant as a file of its own'


def picture(level, size=(16, 12), dtype=np.uint8):
    """Grey, one bright pixel in the corner."""
    values = np.full(size[::-1], level, dtype)
    values[0, 0] = 255
    return Image.fromarray(values)


def write(path, images, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], **more)
    return path


@pytest.fixture
def run(tmp_path):
    """Three pages of different levels, the last one wider."""
    return write(tmp_path / 'in/run.tif', [picture(10), picture(20), picture(30, (20, 12))])


def test_every_page_is_an_image(run):
    write(run.parent / 'single.tif', [picture(5)])
    expected = [run / f'run_000{k}.png' for k in (1, 2, 3)] + [run.parent / 'single.tif']
    assert list_images(run.parent) == expected
    found = find_images([str(run.parent)])
    assert [image.path for image in found] == expected
    assert [(image.name, image.label) for image in found[1:]] == [
        ('run_0002', 'run.tif/run_0002.png'), ('run_0003', 'run.tif/run_0003.png'), ('single', 'single.tif')]
    assert [image.path for image in find_images([str(run)])] == expected[:3], 'also of a file that is named itself'
    assert [image.name for image in find_images([str(run / 'run_0002.png')])] == ['run_0002']


def test_pages_have_their_own_pixels_and_sizes(run):
    second, third = run / 'run_0002.png', run / 'run_0003.png'
    assert read_image_rgb(second)[5, 5].tolist() == [20] * 3 and read_image_rgb(third)[5, 5].tolist() == [30] * 3
    assert image_size(second) == (16, 12) and image_size(third) == (20, 12)
    with pytest.raises(InputError, match='has no frame run_0009.png'):
        read_image_rgb(run / 'run_0009.png')


@pytest.mark.parametrize('read', [read_image_rgb, read_mask, read_probability, mask_levels, image_size])
def test_nobody_takes_the_first_page_unasked(run, read):
    with pytest.raises(InputError, match=SEVERAL):
        read(run)


def test_16_bit_pages_and_mask_pages_read_as_plain_files_do(tmp_path):
    values = np.arange(192, dtype=np.uint16).reshape(12, 16) * 300
    path = write(tmp_path / 'deep.tif', [Image.fromarray(values), Image.fromarray(values[::-1].copy())])
    plain = write(tmp_path / 'plain.tif', [Image.fromarray(values[::-1].copy())])
    assert np.array_equal(read_image_rgb(path / 'deep_0002.png'), read_image_rgb(plain))
    bits = write(tmp_path / 'mask.tif', [picture(0).convert('1'), picture(0).convert('1')], compression='group4')
    assert read_mask(bits / 'mask_0002.png').sum() == 1


def test_frames_of_a_gif(tmp_path):
    path = write(tmp_path / 'run.gif', [picture(10), picture(90)])
    assert [image.name for image in find_images([str(path)])] == ['run_0001', 'run_0002']
    assert read_image_rgb(path / 'run_0002.png')[5, 5].tolist() == [90] * 3
    single = write(tmp_path / 'one.gif', [picture(10)])
    assert read_image_rgb(single)[5, 5].tolist() == [10] * 3


def test_a_thumbnail_or_a_transparency_mask_beside_the_picture_is_no_page(tmp_path):
    images = [picture(10), picture(20, (4, 3)), picture(30), picture(40)]
    for image, kind in zip(images, (0, 1, 4, 2)):
        image.encoderinfo = dict(tiffinfo={254: kind})
    path = write(tmp_path / 'scan.tif', images)
    assert pages.pages(path) == (0, 3)
    assert read_image_rgb(path / 'scan_0002.png')[5, 5].tolist() == [40] * 3
    alone = write(tmp_path / 'alone.tif', images[:2])
    assert list_images(tmp_path) == [alone, path / 'scan_0001.png', path / 'scan_0002.png']
    assert read_image_rgb(alone)[5, 5].tolist() == [10] * 3 and image_size(alone) == (16, 12)


def test_pages_match_masks_by_number(run, tmp_path):
    mask = write(tmp_path / 'masks/run.tif', [picture(0), picture(0), picture(0, (20, 12))])
    matched, missing = match_ground_truth(list_images(run.parent), tmp_path / 'masks')
    assert matched == [(run / f'run_000{k}.png', mask / f'run_000{k}.png') for k in (1, 2, 3)] and not missing
    check_sizes(matched)
    item = FolderMasks(str(run.parent), str(tmp_path / 'masks'))[2]
    assert item['image_id'] == 'run_0003' and item['mask'].shape == (12, 20) and item['mask'].sum() == 1


def test_annotations_that_name_the_file_are_refused_before_any_work(run, tmp_path):
    write(tmp_path / 'in/mask.png', [picture(0)])
    record = dict(image='run.tif', mask='mask.png', prompt='<image>Vessel?')
    (tmp_path / 'in/val_annotations.json').write_text(json.dumps([record]))
    with pytest.raises(InputProblems, match=SEVERAL):
        check_root(tmp_path / 'in', segs=['val_annotations.json'])
    Image.open(run).save(tmp_path / 'in/one.png')
    (tmp_path / 'in/val_annotations.json').write_text(json.dumps([dict(record, image='one.png')]))
    check_root(tmp_path / 'in', segs=['val_annotations.json'])


def test_too_many_pages_and_damage_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv('SA2VA_DPO_MAX_FRAMES', '2')
    [image] = find_images([str(run)])
    assert 'holds 3 frames, the limit is 2' in image.problem
    monkeypatch.delenv('SA2VA_DPO_MAX_FRAMES')
    content = run.read_bytes()
    (tmp_path / 'cut.tif').write_bytes(content[:len(content) - 40])
    [*_, last] = find_images([str(tmp_path / 'cut.tif')])
    with pytest.raises(InputError, match='cut.tif: cannot be read as an image'):
        raise InputError(last.problem) if last.problem else read_image_rgb(last.path)
    (tmp_path / 'rubbish.tif').write_bytes(b'rubbish')
    with pytest.raises(InputError, match='rubbish.tif: cannot be read as an image'):
        read_image_rgb(tmp_path / 'rubbish.tif')
