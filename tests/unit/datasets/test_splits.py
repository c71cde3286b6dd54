"""Whole patients are held out, at least one of each part, and none where there are too few."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.ground_truth import patient_of, split_by_group
from sa2va_dpo.datasets.splits import split_patients


@pytest.fixture
def images(tmp_path):
    def make(stems, content=None):
        paths = []
        for i, stem in enumerate(stems):
            path = tmp_path / f'{stem}.png'
            Image.fromarray(np.full((4, 4), (content or {}).get(stem, i), np.uint8)).save(path)
            paths.append(path)
        return paths
    return make


def names(split):
    return {part: {path.stem for path in getattr(split, part)} for part in ('train', 'val', 'test')}


@pytest.mark.parametrize('patients, val, test, expected', [
    (10, 0.1, 0.2, (7, 1, 2)), (20, 0.1, 0.2, (14, 2, 4)), (3, 0.1, 0.2, (1, 1, 1)), (4, 0.1, 0.2, (2, 1, 1)),
    (5, 0.0, 0.2, (4, 0, 1)), (5, 0.1, 0.0, (4, 1, 0)), (2, 0.1, 0.0, (1, 1, 0)), (10, 0.45, 0.5, (1, 4, 5)),
    (4, 0.49, 0.49, (1, 2, 1)), (7, 0.0, 0.0, (7, 0, 0))])
def test_sizes(images, patients, val, test, expected):
    """At least one patient each; never all: 4 x 0.49 rounds to 2 and 2, and one goes back to training."""
    split = split_patients(images([f'p{i}' for i in range(patients)]), val, test, seed=0)
    assert tuple(len(getattr(split, part)) for part in ('train', 'val', 'test')) == expected
    assert split.sizes() == {part: dict(patients=n, images=n) for part, n in zip(('train', 'val', 'test'), expected)}
    assert split.note is None


@pytest.mark.parametrize('seed', range(6))
def test_two_eyes_of_a_patient_stay_together(images, seed):
    split = split_patients(images([f'p{i}_{eye}' for i in range(6) for eye in 'LR']), 0.1, 0.2, seed)
    patients = [{patient_of(stem) for stem in part} for part in names(split).values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6
    assert split.sizes()['test'] == dict(patients=1, images=2)


@pytest.mark.parametrize('seed', range(6))
def test_a_copy_under_another_name_is_the_same_patient(images, seed):
    """b is a copy of a, and c of b's fellow eye: all three patients are one."""
    split = split_patients(
        images(['a_L', 'b_L', 'b_R', 'c', 'd', 'e', 'f'], dict(a_L=1, b_L=1, b_R=2, c=2, d=3, e=4, f=5)), 0.3, 0.3, seed
    )
    holder = [part for part, stems in names(split).items() if stems & {'a_L', 'b_L', 'b_R', 'c'}]
    assert len(holder) == 1 and names(split)[holder[0]] >= {'a_L', 'b_L', 'b_R', 'c'}
    assert split.joined == ['a_L.png = b_L.png', 'b_R.png = c.png']


@pytest.mark.parametrize('count, val, test, needed', [(2, 0.1, 0.2, 3), (1, 0.1, 0.2, 3), (1, 0.5, 0.0, 2)])
def test_too_few_patients_are_all_trained_on(images, count, val, test, needed):
    split = split_patients(images([f'p{i}_{eye}' for i in range(count) for eye in 'LR']), val, test, 0)
    assert len(split.train) == 2 * count and not split.val and not split.test
    assert f'at least {needed} patients' in split.note and '--group_regex' in split.note


def test_the_test_does_not_depend_on_the_validation(images):
    paths = images([f'p{i}' for i in range(20)])
    assert {tuple(split_patients(paths, val, 0.2, 3).test) for val in (0.0, 0.1, 0.5)} == {
        tuple(split_patients(paths, 0.1, 0.2, 3).test)}
    assert split_patients(paths, 0.1, 0.2, 3).test != split_patients(paths, 0.1, 0.2, 4).test


def test_validation_alone_is_what_split_by_group_draws(images):
    """The main job tells the generator's validation patients beforehand with it."""
    paths = images([f'p{i}' for i in range(11)])
    for seed in range(4):
        assert split_patients(paths, 0.25, 0.0, seed).val == split_by_group(paths, 0.25, seed, key=lambda p: p.stem)[1]


def test_group_regex(images):
    split = split_patients(images(['7_a', '7_b', '8_a', '9_a']), 0.1, 0.2, 0, r'^(\d+)_')
    assert {len(part) for part in names(split).values()} <= {1, 2} and sum(split.patients.values()) == 3
    with pytest.raises(InputError, match='does not match'):
        split_patients([Path('x')], 0.1, 0.2, 0, r'^(\d+)_')
