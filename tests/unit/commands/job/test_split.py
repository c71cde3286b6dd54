"""Who is in the test: whole patients, and nobody that training or validation knows."""
import json

import pytest
from PIL import Image

from sa2va_dpo.commands.job import split
from sa2va_dpo.commands.job.images import pixel_hashes, shared_with
from sa2va_dpo.commands.job.state import JobState, Labelled
from sa2va_dpo.common.errors import InputError


@pytest.fixture
def split_of(tmp_path, in_an_empty_folder, write_folders, settings_of):
    def run(stems, *options):
        images, gt = write_folders(tmp_path / 'mine', stems)
        return split.run(settings_of('--images', images, '--gt', gt, *options), JobState())

    return run


def stems(items):
    return {path.rpartition('/')[2].removesuffix('.png') for path in (getattr(i, 'image', i) for i in items)}


@pytest.mark.parametrize('names, patients', [(('a_L', 'a_R', 'b_L', 'b_R'), 2), (('a_L', 'a_R', 'b_L', 'c_L'), 3)])
def test_too_few_patients_are_refused_before_any_work(split_of, names, patients):
    with pytest.raises(InputError, match=f'4 images with ground truth of {patients} patients.*--group_regex'):
        split_of(names)


def test_one_patient_is_refused(split_of):
    with pytest.raises(InputError, match='2 images of one patient cannot be split'):
        split_of(('a_L', 'a_R'))


def test_three_patients_are_enough_with_a_smaller_test(split_of):
    state = split_of(('a_L', 'b_L', 'c_L'), '--test_fraction', '0.3')
    assert (len(state.images), len(state.training), len(state.validation), len(state.test)) == (2, 1, 1, 1)


def test_the_split_keeps_patients_together(split_of):
    state = split_of(('a_L', 'a_R', 'b_L', 'b_R', 'c_L', 'c_R', 'd_L', 'd_R'))
    parts = [{name[0] for name in stems(part)} for part in (state.training, state.validation, state.test)]
    assert sum(map(len, parts)) == 4 == len(set.union(*parts))
    assert (len(state.training), len(state.validation), len(state.test)) == (2, 2, 4)


def test_validation_is_what_the_generator_holds_out(split_of, tmp_path):
    from sa2va_dpo.datasets.ground_truth import split_by_group

    state = split_of([f'case_{i}' for i in range(16)], '--seed', '3')
    _, expected = split_by_group([item.image for item in state.images], .25, 3, key=lambda path: path)
    assert state.validation == expected and not set(state.validation) & {item.image for item in state.training}


def test_a_copy_of_a_training_picture_is_kept_out_of_the_test(split_of, capsys):
    names = ['a', 'b', 'c', 'd', 'e', 'f']
    known = stems(split_of(names).test)
    picture = {name: index for index, name in enumerate(names)}
    trained, tested = sorted(set(names) - known)[0], sorted(known)[0]
    picture[tested] = picture[trained]
    state = split_of(list(picture.items()))
    assert tested not in stems(state.test) and len(state.test) == 2
    said = capsys.readouterr().out
    assert 'kept out of the test: 1 of 3 images' in said and f'{tested}.png (same picture as' in said


def test_pixels_count_not_the_file(tmp_path, write_folders):
    images, _ = write_folders(tmp_path, ['a', 'b'])
    with Image.open(images / 'a.png') as picture:
        picture.save(tmp_path / 'other.bmp')
    hashes = pixel_hashes([images / 'a.png', images / 'b.png', tmp_path / 'other.bmp'])
    assert len(set(hashes.values())) == 2 and hashes[str(images / 'a.png')] == hashes[str(tmp_path / 'other.bmp')]
    test = [Labelled(str(tmp_path / 'other.bmp'), ''), Labelled(str(images / 'b.png'), '')]
    assert list(shared_with(test, [images / 'a.png'], None)) == [str(tmp_path / 'other.bmp')]


def test_the_pairs_own_test_split_is_used(tmp_path, write_pairs, settings_of, in_an_empty_folder):
    root = write_pairs(tmp_path / 'pairs', ['a', 'b'], ['c'], ['d', 'e'])
    state = split.run(settings_of('--pairs', root), JobState())
    assert stems(state.test) == {'d', 'e'} and stems(state.training) == {'a', 'b'} and state.validation == []
    assert state.test_prompt == '<image>Please segment the vessels.'


@pytest.mark.parametrize('part', ['dpo_annotations.json', 'val_annotations.json'])
@pytest.mark.parametrize('how', ['patient', 'picture'])
def test_test_annotations_that_overlap_are_refused(tmp_path, write_pairs, settings_of, in_an_empty_folder, part, how):
    train, val = ['a_L', 'b_L'], ['c_L']
    known = 'a' if part.startswith('dpo') else 'c'
    if how == 'patient':
        root = write_pairs(tmp_path / 'pairs', train, val, [f'{known}_R', 'd_L'])
        named = f'{known}_R.png \\(same patient as .*{known}_L.png'
    else:
        twin = [(f'{known}_L', 7)]
        root = write_pairs(tmp_path / 'pairs', twin + ['b_L'] if known == 'a' else train, val if known == 'a' else twin,
                           [('x_L', 7), 'd_L'])
        named = f'x_L.png \\(same picture as .*{known}_L.png'
    with pytest.raises(InputError, match=f'test_annotations.json: 1 of 2 test images are in the pairs.*{named}'):
        split.run(settings_of('--pairs', root), JobState())


def test_named_test_images_are_refused_where_they_overlap_whatever_their_path(
    tmp_path, write_pairs, write_folders, settings_of, in_an_empty_folder
):
    root = write_pairs(tmp_path / 'pairs', [('a', 1), ('b', 2)], [('c', 3)])
    images, gt = write_folders(tmp_path / 'other', [('renamed', 2), ('new', 9)])
    with pytest.raises(InputError, match=r'--images .*: 1 of 2 test images.*renamed.png \(same picture as .*b.png\)'):
        split.run(settings_of('--pairs', root, '--images', images, '--gt', gt), JobState())
    (images / 'renamed.png').unlink()
    state = split.run(settings_of('--pairs', root, '--images', images, '--gt', gt), JobState())
    assert stems(state.test) == {'new'}


def test_of_the_guides_folder_the_rest_is_the_test(
    tmp_path, write_pairs, write_folders, settings_of, in_an_empty_folder, capsys
):
    write_pairs(tmp_path / 'data/dpo_vessel', [('a_L', 1), ('b_L', 2)], [('c_L', 3)])
    images, gt = write_folders(tmp_path / 'data/merged_vessel_data', [('a_L', 1), ('a_R', 4), ('d_L', 5), ('copy', 3)])
    gt.rename(gt.with_name('masks'))
    state = split.run(settings_of(), JobState())
    assert stems(state.test) == {'d_L'}
    assert 'kept out of the test: 3 of 4 images' in capsys.readouterr().out
    (images / 'd_L.png').unlink()
    with pytest.raises(InputError, match='no image is left for the test'):
        split.run(settings_of(), JobState())


def test_empty_validation_pairs_are_no_obstacle(tmp_path, write_pairs, settings_of, in_an_empty_folder):
    root = write_pairs(tmp_path / 'pairs', ['a', 'b'], ['c'], ['d'])
    (root / 'dpo_annotations_val.json').write_text(json.dumps([]))
    assert stems(split.run(settings_of('--pairs', root), JobState()).test) == {'d'}


def test_an_unlabelled_image_that_the_test_or_validation_knows_is_kept_out(
    tmp_path, write_folders, settings_of, in_an_empty_folder, capsys
):
    names = list('abcdefgh')
    images, gt = write_folders(tmp_path / 'mine', [(name, index) for index, name in enumerate(names)])
    flags = ('--images', images, '--gt', gt)
    state = split.run(settings_of(*flags), JobState())
    tested, validated, trained = (sorted(stems(part))[0] for part in (state.test, state.validation, state.training))
    # A copy of a test picture, the other eye of a validation patient, a copy of a training picture, a new one.
    more, _ = write_folders(
        tmp_path / 'more',
        [('copy', names.index(tested)), (f'{validated}_L', 90), ('known', names.index(trained)), ('new', 91)],
    )
    again = split.run(settings_of(*flags, '--unlabelled', more), JobState())
    assert stems(again.unlabelled) == {'known', 'new'} and again.test == state.test
    said = capsys.readouterr().out
    assert (
        'kept out of --unlabelled: 2 of 4' in said
        and 'copy.png (same picture as' in said
        and f'{validated}_L.png (same patient as' in said
    )
