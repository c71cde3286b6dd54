"""Ground truth by stem, patients, and splits by patient."""
import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of, split_by_group


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / name)
    return [folder / name for name in names]


def test_every_suffix(tmp_path):
    images = touch(tmp_path / 'images', 'a.png', 'b.jpg', 'c (2).png', 'd^.png', 'é.png', 'alone.png')
    masks = touch(tmp_path / 'gt', 'a.tif', 'b_mask.png', 'c (2)_gt.png', 'd^_manual1.gif', 'é_1stHO.png', 'other.png')
    matched, missing = match_ground_truth(images, tmp_path / 'gt')
    assert matched == list(zip(images[:-1], masks)) and missing == [images[-1]]


def test_ambiguous_mask_names_both(tmp_path):
    images = touch(tmp_path / 'images', 'a.png')
    touch(tmp_path / 'gt', 'a_mask.png', 'a_gt.png')
    with pytest.raises(InputError, match='a_mask.png.*a_gt.png|a_gt.png.*a_mask.png'):
        match_ground_truth(images, tmp_path / 'gt')


def test_masks_of_other_images_may_be_ambiguous(tmp_path):
    images = touch(tmp_path / 'images', 'a.png')
    touch(tmp_path / 'gt', 'a_mask.png', 'b_mask.png', 'b_gt.png')
    assert len(match_ground_truth(images, tmp_path / 'gt')[0]) == 1


def test_two_images_of_one_stem(tmp_path):
    images = touch(tmp_path / 'images', 'a.png', 'a.tif')
    touch(tmp_path / 'gt', 'a.png')
    with pytest.raises(InputError, match='a.tif.*a.png'):
        match_ground_truth(images, tmp_path / 'gt')


@pytest.mark.parametrize(
    'stem, patient',
    [
        ('Image_01L', 'Image_01'),
        ('Image_01R', 'Image_01'),
        ('case-7_OD', 'case-7'),
        ('12OS', '12'),
        ('p_left', 'p'),
        ('0012right', '0012'),
        ('Müller^L', 'Müller'),
        ('blood', 'blood'),
        ('period', 'period'),
        ('L', 'L'),
        ('01_dr', '01_dr'),
        ('vessel', 'vessel'),
    ],
)
def test_patient_by_eye_marker(stem, patient):
    assert patient_of(stem) == patient


def test_patient_by_expression():
    assert patient_of('01_dr', r'^(\d+)_') == '01'
    assert patient_of('01_dr', r'^\d+') == '01'
    with pytest.raises(InputError, match='does not match'):
        patient_of('scan', r'^(\d+)_')
    with pytest.raises(InputError, match='not a regular expression'):
        patient_of('scan', '(')


def test_split_keeps_patients_whole_and_is_repeatable():
    stems = [f'{i:02}{eye}' for i in range(10) for eye in 'LR']
    rest, held = split_by_group(stems, 0.3, 5, patient_of)
    assert len(held) == 6 and sorted(rest + held) == stems
    assert not {patient_of(s) for s in rest} & {patient_of(s) for s in held}
    assert (rest, held) == split_by_group(stems, 0.3, 5, patient_of)
    assert held != split_by_group(stems, 0.3, 6, patient_of)[1]


@pytest.mark.parametrize('fraction', [0.01, 0.99])
def test_split_leaves_a_patient_on_each_side(fraction):
    rest, held = split_by_group(['1L', '1R', '2L'], fraction, 0, patient_of)
    assert rest and held


def test_split_refuses_what_cannot_be_split():
    assert split_by_group(['1L', '1R'], 0, 0, patient_of) == (['1L', '1R'], [])
    with pytest.raises(InputError, match='one patient'):
        split_by_group(['1L', '1R'], 0.5, 0, patient_of)
    with pytest.raises(InputError, match='fraction'):
        split_by_group(['1L', '2R'], 1.0, 0, patient_of)
