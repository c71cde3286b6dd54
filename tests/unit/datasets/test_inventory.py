"""What a folder holds: found by names, said with numbers that are worked out here."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.commands.check_data import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.inventory import find_data_sets, inspect

from .public_sets import SETS, field, photograph, save, vessels, write


@pytest.mark.parametrize('one_folder', [False, True], ids=['folders', 'one folder'])
@pytest.mark.parametrize('name', ['DRIVE', 'STARE', 'CHASE_DB1', 'HRF', 'DCA1', 'FIVES'])
def test_a_public_set_is_found_whole(tmp_path, name, one_folder):
    if one_folder and name == 'FIVES':
        pytest.skip('two files of one name cannot lie in one folder')
    images, masks = write(tmp_path, name, one_folder)
    (data,) = map(inspect, find_data_sets(tmp_path))
    assert (data.images, data.masks) == (images, masks)
    assert [mask.name for _, mask, _ in data.matched] == [
        SETS[name]['mask'].format(ident) for ident in SETS[name]['ids']
    ]
    assert all((found is not None) == ('field' in SETS[name]) for _, _, found in data.matched)
    assert not data.errors and not data.without_mask and not data.without_image
    assert data.sizes == {(30, 20): len(SETS[name]['ids'])}
    np.testing.assert_allclose(data.shares, [vessels(k).mean() for k in range(len(data.shares))])


def test_several_sets_each_with_its_own_masks(tmp_path):
    for part in ('train', 'test'):
        write(tmp_path / part, 'CHASE_DB1')
    found = find_data_sets(tmp_path)
    assert [(data.images.parent, data.masks.parent) for data in found] == [
        (tmp_path / part,) * 2 for part in ('test', 'train')
    ]


def test_outlines_are_found_too(tmp_path):
    photograph(tmp_path / 'images/1.png', 1)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/train.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='1.png', height=20, width=30)],
        annotations=[dict(image_id=1, segmentation=[[1, 1, 9, 1, 9, 9, 1, 9]])])))
    (tmp_path / 'annotations/settings.json').write_text('{"other": 1}')
    (data,) = find_data_sets(tmp_path)
    assert data.masks == tmp_path / 'annotations/train.json'


@pytest.fixture
def damaged(tmp_path):
    """Ten images, most of them with something wrong."""
    for k, stem in enumerate('abcdefghij'):
        photograph(tmp_path / f'images/{stem}.png', k)
        save(tmp_path / f'masks/{stem}.png', vessels(k))
    save(tmp_path / 'masks/a.png', np.zeros((20, 30), bool))                         # empty
    save(tmp_path / 'masks/b.png', ~vessels(1))                                      # inverted
    save(tmp_path / 'masks/c.png', np.zeros((30, 20), bool))                         # another size
    save(tmp_path / 'masks/d.png', vessels(3).astype(np.uint8) + vessels(4))         # classes
    (tmp_path / 'images/e.png').write_bytes(b'')                                     # no image
    shutil.copy(tmp_path / 'images/f.png', tmp_path / 'images/g.png')                # one picture twice
    (tmp_path / 'masks/h.png').unlink()                                              # no mask
    save(tmp_path / 'masks/z.png', vessels(9))  # no image of it
    ring = np.asarray(
        Image.fromarray(vessels(8).astype(np.uint8) * 255).resize((30, 20)).reduce(2).resize((30, 20), Image.BILINEAR)
    )
    save(tmp_path / 'masks/i.png', ring)                                             # grey edges
    save(tmp_path / 'masks/j.png', vessels(9))                                       # the mask of z as well
    return tmp_path


def test_everything_suspicious_is_named(damaged):
    (data,) = map(inspect, find_data_sets(damaged))
    said = '\n'.join(data.errors + data.warnings)
    assert [path.name for path in data.without_mask] == ['h.png'] and [path.name for path in data.without_image] == [
        'z.png'
    ]
    for words in ('c.png: is 20 x 30, its image 30 x 20', 'd.png: holds levels 0, 1, 2', 'e.png: cannot be read'):
        assert words in '\n'.join(data.errors)
    assert len(data.errors) == 3
    for words in ('a.png: is empty', 'b.png: is vessel on', 'i.png: has', 'f.png = g.png'):
        assert words in said
    assert {path.stem for path in data.suspicious} == set('abcdefgi')
    assert data.levels['0, 255'] >= 4 and data.levels['0, 1, 2'] == 1


def test_the_command(damaged, capsys, monkeypatch):
    monkeypatch.chdir(damaged)
    assert main([str(damaged)]) == 2
    said = capsys.readouterr().out
    assert '9 of 10 images have a mask' in said and 'images without a mask (1): h.png' in said and 'error: ' in said
    sheet = np.asarray(Image.open(damaged / 'check_data.png'))
    # Nine images in rows of three, each tile 480 x 258.
    assert sheet.shape == (3 * 258, 3 * 480, 3)
    orange = (np.abs(sheet.astype(int) - (255, 140, 0)).sum(-1) < 12)
    assert orange[:, 240:480].any(), 'outlines are drawn'


def test_good_data_ends_well_and_says_so(tmp_path, capsys):
    images, masks = write(tmp_path / 'set', 'HRF')
    assert main([str(images), '--gt_dir', str(masks), '--sheet', str(tmp_path / 'sheet.png')]) == 0
    said = capsys.readouterr().out
    assert '3 of 3 images have a mask' in said and '3 fields of view' in said and 'nothing suspicious' in said
    assert '01_dr.JPG -> 01_dr.tif, field of view 01_dr_mask.tif' in said
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png')).astype(int)
    assert (np.abs(sheet - (0, 190, 255)).sum(-1) < 12).any(), 'the field of view is drawn'
    assert field().any()


def test_no_sheet(tmp_path, monkeypatch, capsys):
    write(tmp_path / 'set', 'DCA1')
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path / 'set'), '--no_sheet']) == 0 and not (tmp_path / 'check_data.png').exists()
    capsys.readouterr()


@pytest.mark.parametrize('make, message', [
    (lambda root: None, 'no such folder'), (lambda root: root.mkdir(), 'no image with a mask'),
    (lambda root: photograph(root / 'images/a.png', 1), 'no image with a mask')])
def test_nothing_there(tmp_path, make, message):
    make(tmp_path / 'data')
    with pytest.raises(InputError, match=message):
        main([str(tmp_path / 'data')])
