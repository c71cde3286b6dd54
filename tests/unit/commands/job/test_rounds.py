"""What a job with rounds hands to training."""
import pytest
from mmengine.config import Config

from sa2va_dpo.commands.job import mine
from sa2va_dpo.commands.job.flags import build_parser
from sa2va_dpo.commands.job.rounds import (
    PeopleWanted,
    ask_people,
    config_with_rounds,
    round_settings,
    rounds_of_config,
    rounds_table,
    steps_wanted,
)
from sa2va_dpo.commands.job.settings import settings_from
from sa2va_dpo.commands.job.state import JobState, Labelled
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_json
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.mining import round_seed
from sa2va_dpo.engine.round_settings import RoundSettings
from sa2va_dpo.preferences.earlier import _compared


@pytest.fixture
def job(tmp_path, repo_root, monkeypatch):
    """(flags) -> (settings, state) of a job with three labelled images, one held out, and four without masks."""
    monkeypatch.chdir(repo_root)
    (tmp_path / 'more').mkdir()

    def make(*flags):
        settings = settings_from(build_parser().parse_args([
            '--unlabelled', str(tmp_path / 'more'), '--work-dir', str(tmp_path / 'w'), *flags]))
        labelled = [Labelled(f'{name}.png', f'{name}_gt.png') for name in 'abc']
        return settings, JobState(images=labelled, validation=['c.png'], test_prompt='<image>Where?',
                                  unlabelled=[str(tmp_path / 'more' / f'{k}.png') for k in range(4)])

    return make


def test_every_image_is_drawn_alike_and_rounds_default_to_the_studys(job):
    values = round_settings(*job('--judge', 'consensus'))
    assert values['count'] == 4 and values['labelled_share'] == pytest.approx(2 / 6, abs=1e-6)
    assert RoundSettings.from_config(values).judge == 'consensus'
    assert values['labelled_first'] == 1, 'the masks come first'
    assert round_settings(*job('--judge', 'consensus', '--rounds', '1'))['labelled_first'] == 0
    assert round_settings(*job('--rounds', '3', '--judge', 'expert', '--clicks', '9'))['clicks'] == 9


def test_the_config_is_the_chosen_one_with_the_rounds(job):
    settings, state = job('--judge', 'consensus', '--min_iou_gap', '0.1')
    path = config_with_rounds(settings, state)
    raw, cfg = Config.fromfile(path), read_config(path)
    assert raw.rounds.to_dict() == round_settings(settings, state), 'nothing else than RoundSettings knows'
    assert cfg.rounds.min_iou_gap == 0.1 and cfg.model.preference.reduction == 'disagreement'
    assert (settings.work_dir / 'unlabelled.txt').read_text().split() == state.unlabelled


@pytest.mark.parametrize('images, flags, steps', [
    (18, (), []),  # 20 images, 2 of them with masks: 80 steps of 4 look at each 16 times
    (19, (), ['max_iters=84']),
    (46, (), ['max_iters=192']),
    (46, ('--gpus', '2'), ['max_iters=96']),
    (46, ('--judge', 'expert', '--clicks', '20'), ['max_iters=88']),
    (5000, (), ['max_iters=400']),
    (46, ('--cfg-options', 'batch_size=8'), ['max_iters=96']),
    (46, ('--cfg-options', 'max_iters=90'), []),
    (46, ('--cfg-options', 'train_cfg.max_iters=90'), []),
    (46, ('--cfg-options', 'max_epochs=3'), []),
    (46, ('--config', 'projects/sa2va/configs/sa2va_dpo_vessel.py'), []),  # counts epochs
])
def test_many_images_without_masks_are_worth_more_steps(job, images, flags, steps):
    settings, state = job('--judge', 'consensus', *flags)
    state.unlabelled = [f'{k}.png' for k in range(images)]
    assert steps_wanted(settings, state) == steps


def test_without_waiting_it_says_what_to_do(job):
    settings, _ = job('--judge', 'expert', '--no-wait', '--reviewer', 'anna')
    folder = settings.work_dir / 'training'
    (folder / 'rounds').mkdir(parents=True)
    write_json(folder / 'rounds' / 'waiting.json', dict(round=1, root='some/root', decided=2, wanted=5))
    with pytest.raises(
        PeopleWanted, match=r'round 1 waits for picks \(2 of 5.*--pick --data_root some/root --reviewer anna'
    ):
        ask_people(settings, folder)


@pytest.mark.parametrize('flags, words', [
    (['--judge', 'iou'], '--judge iou: needs ground truth.*--unlabelled-gt'),
    (['--judge', 'consensus', '--unlabelled-gt', '.'], '--unlabelled-gt: masks that pick'),
    (['--judge', 'committee', '--members', 'nowhere'], '--members nowhere: no such folder'),
    (['--judge', 'committee'], '--members: missing'),
    (['--judge', 'consensus', '--predictions', '.'], '--predictions: belongs to --judge predictions'),
    (['--clicks', '3'], '--clicks 3'), (['--without-masks', '--images', '.', '--gt', '.'], '--without-masks')])
def test_flags_that_do_not_go_together(job, flags, words):
    with pytest.raises(InputError, match=words):
        job(*flags)


def test_masks_that_stand_in_for_an_expert(job, tmp_path):
    values = round_settings(*job('--judge', 'iou', '--unlabelled-gt', str(tmp_path)))
    assert (values['judge'], values['unlabelled_gt']) == ('iou', str(tmp_path))
    assert RoundSettings.from_config(values).unlabelled_gt == str(tmp_path)


def test_no_masks_at_all(job):
    settings, _ = job('--without-masks', '--judge', 'expert')
    assert settings.test_from == 'none' and settings.images is None
    values = round_settings(settings, JobState(unlabelled=['x.png'], test_prompt='?'))
    assert not {'labelled_share', 'labelled_first'} & set(values)


def test_a_line_a_round():
    text = rounds_table(dict(ended='it ends here', rounds=[
        dict(round=0, iteration=0, unlabelled=dict(pairs=9, images=3), metric=0.5, metric_after=0.6, decision='kept')]))
    assert text.splitlines() == [
        'round 0 from iteration 0, 9 pairs of 3 unlabelled images, validation 0.5000 to 0.6000: kept', 'it ends here']


@pytest.mark.parametrize('flags', [
    (), ('--seed', '3'), ('--num_samples', '7', '--min_iou_gap', '0.1', '--prompt', '<image>Where?'),
    ('--no-gt-candidate',), ('--cfg-options', 'rounds.seed=9', 'rounds.pairing=Components'),
], ids=lambda flags: flags[0] if flags else 'plain')
def test_the_jobs_pairs_are_its_first_rounds(job, tmp_path, flags):
    """All that decides what an image's pairs are is the same; the split stays the job's own."""
    settings, state = job('--judge', 'consensus', *flags)
    state.start, state.gt_dir = 'start', 'gt'
    pairs = mine._what(settings, state, tmp_path / 'pairs')
    rounds = rounds_of_config(settings, state)
    seed = settings.seed if rounds.seed is None else rounds.seed
    first = rounds.labelled_config(images_dir='i', gt_dir='g', output_dir='o', model_path='m', seed=round_seed(seed, 0))
    assert _compared(pairs.made_with()) == _compared(first.made_with())
    assert pairs.split_seed == settings.seed and pairs.val_fraction == settings.val_fraction
    assert (pairs.test_fraction, pairs.link, pairs.policy_digest) == (0.0, False, None)


def test_other_pairs_where_others_masks_take_part_or_there_are_no_rounds(job, tmp_path):
    (tmp_path / 'votes/one').mkdir(parents=True)
    settings, state = job('--judge', 'predictions', '--predictions', str(tmp_path / 'votes'), '--seed', '3')
    state.start, state.gt_dir = 'start', 'gt'
    plain = settings_from(build_parser().parse_args(['--work-dir', str(tmp_path / 'w'), '--seed', '3']))
    for given in (settings, plain):
        pairs = mine._what(given, state, tmp_path / 'pairs')
        assert (pairs.seed, pairs.pairing, pairs.min_iou_gap, pairs.compared) == (3, 'AllPairs', 0.05, ())
