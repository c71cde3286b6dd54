"""The command line as checked settings: defaults, and what is refused before anything is done."""
import dataclasses
import subprocess
import sys
import time

import pytest

from sa2va_dpo.commands.job import settings
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.view_geometry import MOST


def test_the_config_follows_the_model_and_the_candidates(in_an_empty_folder, settings_of):
    def config_of(*options):
        return settings_of(*options).config.rpartition('/')[2]

    assert config_of() == 'sa2va_dpo_vessel_tiny.py'
    assert config_of('--no-gt-candidate') == 'sa2va_dpo_vessel_tiny_self.py'
    (in_an_empty_folder / 'models/sa2va_vessel_hf').mkdir(parents=True)
    assert config_of() == config_of('--no-gt-candidate') == 'sa2va_dpo_vessel.py'
    (in_an_empty_folder / 'mine.py').touch()
    assert config_of('--no-gt-candidate', '--config', 'mine.py') == 'mine.py'


def test_without_a_checkout_the_bundled_files_are_those_of_the_package(tmp_path, monkeypatch, settings_of):
    monkeypatch.chdir(tmp_path)
    settings = settings_of()
    assert settings.model.endswith('assets/tiny_sa2va') and settings.config.endswith('configs/sa2va_dpo_vessel_tiny.py')
    for path in (settings.model, settings.config):
        assert (tmp_path / path).exists()


def test_the_guides_folders_are_used_where_both_are_there(in_an_empty_folder, settings_of):
    (in_an_empty_folder / 'data/merged_vessel_data/images').mkdir(parents=True)
    assert settings_of().images is None
    (in_an_empty_folder / 'data/merged_vessel_data/masks').mkdir()
    settings = settings_of()
    assert (settings.images, settings.gt) == ('data/merged_vessel_data/images', 'data/merged_vessel_data/masks')
    assert settings.test_from == 'split'


def test_settings_are_frozen_and_say_what_they_are(in_an_empty_folder, settings_of):
    settings = settings_of('--cfg-options', 'a=1', 'b=2')
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    assert (settings.num_samples, settings.min_iou_gap, settings.max_pairs_per_image) == (5, .05, 10)
    assert (settings.test_fraction, settings.val_fraction, settings.gt_candidate, settings.judge) == (
        0.5,
        0.25,
        True,
        'iou',
    )
    identity = settings.identity()
    assert identity['cfg_options'] == ['a=1', 'b=2'] and not {'work_dir', 'overwrite'} & set(identity)
    assert settings_of('--work-dir', 'x', '--overwrite', '--cfg-options', 'a=1', 'b=2').identity() == identity
    assert settings_of('--cfg-options', 'a=1', 'b=3').identity() != identity


@pytest.fixture
def guide_pairs(in_an_empty_folder, write_pairs):
    return write_pairs(in_an_empty_folder / 'data/dpo_vessel', ['a', 'b'], ['c'], ['d'])


def test_pairs_at_the_guides_place_are_used_unless_images_are_named(guide_pairs, write_folders, settings_of, tmp_path):
    settings = settings_of()
    assert (settings.pairs, settings.test_from, settings.images) == ('data/dpo_vessel', 'annotations', None)
    images, gt = write_folders(tmp_path / 'mine', ['x', 'y'])
    assert settings_of('--images', images, '--gt', gt).pairs is None
    settings = settings_of('--images', images, '--gt', gt, '--pairs', guide_pairs)
    assert (settings.pairs, settings.test_from, settings.images) == (str(guide_pairs), 'named', str(images))


def test_without_test_annotations_the_guides_folder_serves_and_without_both_nothing_does(
    guide_pairs, settings_of, tmp_path
):
    (guide_pairs / 'test_annotations.json').unlink()
    with pytest.raises(InputError, match='data/dpo_vessel: no test_annotations.json there.*give --images and --gt'):
        settings_of()
    for name in ('images', 'masks'):
        (tmp_path / 'data/merged_vessel_data' / name).mkdir(parents=True)
    settings = settings_of()
    assert (settings.test_from, settings.images) == ('rest', 'data/merged_vessel_data/images')


@pytest.mark.parametrize(
    'options',
    [
        ('--num_samples', '3'),
        ('--min_iou_gap', '0.05'),
        ('--val_fraction', '0.25'),
        ('--test_fraction', '0.5'),
        ('--max_pairs_per_image', '10'),
        ('--no-gt-candidate',),
    ],
)
def test_a_flag_that_existing_pairs_would_ignore_is_refused(guide_pairs, settings_of, options):
    with pytest.raises(
        InputError, match=f'{options[0]}: makes or splits pairs, but those of data/dpo_vessel exist.*--images'
    ):
        settings_of(*options)
    with pytest.raises(InputError, match=f'{options[0]}.*leave out --pairs'):
        settings_of('--pairs', 'data/dpo_vessel', *options)


@pytest.mark.parametrize('options, words', [
    (('--images', '.'), '--images and --gt: give both'),
    (('--model', 'nowhere'), '--model nowhere: does not exist'),
    (('--pairs', 'nowhere'), '--pairs nowhere: does not exist'),
    (('--pairs', '.'), '--pairs .: holds no dpo_annotations.json'),
    (('--unlabelled', 'nowhere'), '--unlabelled nowhere: does not exist'),
    *[((f'{flag}={value}',), f'{flag} .*must be above 0 and below 1') for flag in ('--test_fraction', '--val_fraction')
      for value in ('0', '1', '-0.1', 'nan')],
    (('--sam_size', 'large'), '--sam_size large: must be auto, keep or a number'),
    (('--sam_size', '700'), '--sam_size: 700 is no multiple of 64'),
    (('--sam_size', '0'), '--sam_size: 0 is no multiple of 64'),
    *[(('--grid', value), f'--grid {value}: must be auto, keep, measure or a number of tiles along each axis, 1 to')
      for value in ('0', '9', 'all', '2.0')],
    (('--gpus', '0'), '--gpus 0: must be a whole number of at least 1'),
    (('--seed', '-1'), '--seed -1: must be a whole number of at least 0'),
    (('--num_samples', '1'), '--num_samples 1: must be a whole number of at least 2'),
    (('--min_iou_gap', 'nan'), '--min_iou_gap nan: must be at least 0'),
    (('--group_regex', '('), r"--group_regex '\(': not a regular expression"),
    (('--prompt', ' '), '--prompt: is empty'),
    (('--cfg-options', 'lr'), '--cfg-options lr: must be KEY=VALUE'),
    (('--rounds', '0'), '--rounds 0: must be'),
    (('--judge', 'consensus'), '--judge consensus: is for images without masks: name their folder with --unlabelled'),
    (('--unlabelled', '.', '--judge', 'iou'), '--judge iou: needs ground truth'),
    (('--unlabelled', '.', '--clicks', '3'), "--clicks 3: are an expert's"),
])
def test_bad_flags(in_an_empty_folder, settings_of, options, words):
    with pytest.raises(InputError, match=words):
        settings_of(*options)


def test_the_grid_has_the_bound_of_the_geometry(in_an_empty_folder, settings_of):
    assert settings.MOST_TILES == MOST
    assert [settings_of('--grid', value).grid for value in ('keep', 'auto', 'measure', '1', '8')] == [
        'keep', 'auto', 'measure', 1, 8]
    assert settings_of().grid == 'auto'


def test_unlabelled_images_and_their_judge(in_an_empty_folder, settings_of):
    (in_an_empty_folder / 'more').mkdir()
    settings = settings_of('--unlabelled', 'more', '--rounds', '4')
    assert (settings.unlabelled, settings.judge, settings.rounds, settings.clicks) == ('more', 'consensus', 4, None)
    settings = settings_of('--unlabelled', 'more', '--judge', 'expert', '--clicks', '3')
    assert (settings.judge, settings.clicks) == ('expert', 3)


def test_new_pairs_and_existing_ones_do_not_go_together(guide_pairs, settings_of):
    with pytest.raises(InputError, match='--rounds: makes new pairs, but those of data/dpo_vessel are used'):
        settings_of('--rounds', '2')


def test_help_and_a_mistyped_flag_answer_at_once(repo_root):
    for option, code in (('--help', 0), ('--no-such-flag', 2)):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, '-X', 'importtime', '-m', 'sa2va_dpo', 'job', option], cwd=repo_root,
                              capture_output=True, text=True)
        assert done.returncode == code and time.perf_counter() - begun < 5
        assert '| torch\n' not in done.stderr and 'numpy' not in done.stderr
