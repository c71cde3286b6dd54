"""What the main job decides before it starts and at its end."""
import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.commands.job import main as main_job
from sa2va_dpo.common.errors import InputError


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch, repo_root):
    """The guide's default paths are relative; only the bundled checkpoint is there."""
    assets = tmp_path / main_job.TINY_CHECKPOINT
    assets.parent.mkdir(parents=True)
    assets.symlink_to(repo_root / main_job.TINY_CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*options):
    return main_job.choose_inputs(main_job.parse_args(list(options))).config.rpartition('/')[2]


def test_the_config_follows_the_model_and_the_candidates(in_an_empty_folder):
    assert config_of() == 'sa2va_dpo_vessel_tiny.py'
    assert config_of('--no-gt-candidate') == 'sa2va_dpo_vessel_tiny_own.py'
    (in_an_empty_folder / 'models/sa2va_vessel_hf').mkdir(parents=True)
    assert config_of() == config_of('--no-gt-candidate') == 'sa2va_dpo_vessel.py'
    (in_an_empty_folder / 'mine.py').touch()
    assert config_of('--no-gt-candidate', '--config', 'mine.py') == 'mine.py'


@pytest.mark.parametrize('trained, start, handed_in, choice', [
    (.7, .6, .6, 'trained'), (.6, .6, .6, 'handed_in'), (None, .6, .6, 'handed_in'),
    (None, .7, .6, 'start'), (None, .6, .7, 'handed_in'), (.65, .6, .7, 'handed_in'), (.8, .6, .7, 'trained')])
def test_what_is_handed_back(trained, start, handed_in, choice):
    assert main_job.choose_export(trained, start, handed_in) == choice


def folders_of(root, stems):
    for name in ('images', 'gt'):
        (root / name).mkdir()
        for stem in stems:
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / name / f'{stem}.png')
    return ['--images', str(root / 'images'), '--gt', str(root / 'gt')]


@pytest.fixture
def split_of(tmp_path, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)

    def split(stems, *options):
        args = main_job.parse_args([*folders_of(tmp_path, stems), *options])
        return main_job.prepare_data(main_job.choose_inputs(args), tmp_path, args)

    return split


@pytest.mark.parametrize('stems, patients', [(('a_L', 'a_R', 'b_L', 'b_R'), 2), (('a_L', 'a_R', 'b_L', 'c_L'), 3)])
def test_too_few_patients_are_refused_before_any_work(split_of, stems, patients):
    with pytest.raises(InputError, match=f'4 images with ground truth of {patients} patients.*--group_regex'):
        split_of(stems)


def test_one_patient_is_refused(split_of):
    with pytest.raises(InputError, match='2 images of one patient cannot be split'):
        split_of(('a_L', 'a_R'))


def test_three_patients_are_enough_with_a_smaller_test(split_of):
    train, test, _ = split_of(('a_L', 'b_L', 'c_L'), '--test_fraction', '0.3')
    assert (len(train), len(test)) == (2, 1)


def test_the_split_keeps_patients_together(split_of):
    train, test, _ = split_of(('a_L', 'a_R', 'b_L', 'b_R', 'c_L', 'c_R', 'd_L', 'd_R'))
    assert len(train) == len(test) == 4
    assert not {image.stem[0] for image in train} & {image.stem[0] for image in test}


@pytest.mark.parametrize('flag', ['--test_fraction', '--val_fraction'])
@pytest.mark.parametrize('value', ['0', '1', '-0.1', 'nan'])
def test_nothing_is_left_out_of_test_and_validation(flag, value):
    with pytest.raises(InputError, match=flag):
        main_job.choose_inputs(main_job.parse_args([flag + '=' + value]))
