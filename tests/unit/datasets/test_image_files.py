"""Which images files, folders and patterns mean, and what their results are called."""
from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.image_files import find_images


def write(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    write(*(tmp_path / 'in' / name for name in ('image_10.png', 'image_2.PNG', 'b/x.tif', 'b/c/x.png', 'a/x.bmp')))
    (tmp_path / 'in/notes.txt').write_text('not an image')
    write(tmp_path / 'in/.hidden.png', tmp_path / 'in/.cache/y.png')
    return tmp_path / 'in'


def names(*inputs, **more):
    return [image.name for image in find_images([str(text) for text in inputs], **more)]


def test_a_folder_means_its_images_in_natural_order_and_keeps_sub_folders(tree):
    assert names(tree) == ['image_2', 'image_10', 'a/x', 'b/x', 'b/c/x']
    found = find_images([str(tree)])
    assert [image.label for image in found][:3] == ['image_2.PNG', 'image_10.png', 'a/x.bmp']
    assert found[2].path == tree / 'a/x.bmp' and found[2].problem is None


def test_results_inside_the_folder_are_no_input(tree):
    write(tree / 'out/masks/image_2.png')
    write(tree / 'output.png')  # begins like the folder, and is none of its files
    expected = ['image_2', 'image_10', 'output', 'a/x', 'b/x', 'b/c/x']
    assert names(tree, without=tree / 'out') == expected
    assert sorted(names(f'{tree}/**/*.*', without=tree / 'out')) == sorted(expected)
    assert 'out/masks/image_2' in names(tree)


def test_patterns_keep_what_is_below_their_fixed_part(tree):
    assert names(f'{tree}/*.png') == ['image_10']
    assert sorted(names(f'{tree}/b/**/*')) == ['c/x', 'x']
    assert names(f'{tree}/b*') == ['b/x', 'b/c/x'], 'a folder that fits means what is in it'
    assert names(f'{tree}/*/x.*') == ['a/x', 'b/x']


def test_files_have_their_own_names_and_may_be_given_twice(tree):
    assert names(tree / 'b/x.tif', tree / 'image_10.png', tree / 'image_10.png') == ['x', 'image_10']


def test_a_name_with_brackets_is_a_name(tmp_path):
    write(tmp_path / 'case[1].png', tmp_path / 'case1.png')
    assert names(tmp_path / 'case[1].png') == ['case[1]']
    assert names(f'{tmp_path}/case?.png') == ['case1']


@pytest.mark.parametrize('pair', [('a/x.bmp', 'b/x.tif'), ('image_10.png', 'image_10.tif')])
def test_two_images_of_one_name_are_refused_by_their_names(tree, pair):
    write(*(tree / name for name in pair))
    with pytest.raises(InputError, match='would have the name') as refused:
        names(*(tree / name for name in pair))
    assert all(name in str(refused.value) for name in pair)


def test_the_same_stem_with_two_suffixes_in_a_folder_is_refused(tree):
    write(tree / 'image_10.jpg')
    with pytest.raises(InputError, match=r'image_10\.(jpg|png).*image_10\.(jpg|png)'):
        names(tree)


@pytest.mark.parametrize('given, words', [
    ('nowhere', 'no such file or folder'), ('in/*.xyz', 'nothing fits'), ('empty', 'no image there'),
    ('in/*.txt', 'no image there')])
def test_nothing_to_do_is_said(tree, given, words):
    (tree.parent / 'empty').mkdir()
    with pytest.raises(InputError, match=words):
        names(tree.parent / given)


def test_links_in_a_circle_end(tree):
    os.symlink(tree, tree / 'b/c/again')
    assert names(tree).count('b/c/x') == 1 and len(names(tree)) == 5


def test_a_name_of_another_encoding_is_a_problem_of_that_image_alone(tree):
    raw = os.fsencode(tree) + b'/gef\xe4ss.png'
    try:
        with open(raw, 'wb') as file:
            file.write((tree / 'image_10.png').read_bytes())
    except OSError:
        pytest.skip('this file system takes UTF-8 names only')
    found = {image.name: image for image in find_images([str(tree)])}
    assert len(found) == 6 and 'not UTF-8' in found['gef\\xe4ss'].problem


def test_a_damaged_dicom_file_is_a_problem_of_that_file_alone(tree):
    pytest.importorskip('pydicom')
    (tree / 'run.dcm').write_bytes(b'\0' * 128 + b'DICM' + b'rubbish')
    found = {image.name: image for image in find_images([str(tree)])}
    assert len(found) == 6 and 'run.dcm' in found['run'].problem
