"""The stages in order, each once, whatever interrupts them; and what single stages decide."""
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sa2va_dpo.commands.job import main, mine, report, resize, train
from sa2va_dpo.commands.job.page import command_line
from sa2va_dpo.commands.job.state import JobState, Labelled
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.inference.grid_choice import Looks
from sa2va_dpo.models.checkpoint import copy_with_view, read_view
from sa2va_dpo.models.view_geometry import ViewGeometry

ORDER = ('split', 'resize', 'mine', 'train', 'select', 'report')
FIGURES = dict(dice=.5, iou=.4, precision=.3, recall=.2, cldice=.1, n_images=3)


@pytest.fixture
def settings(in_an_empty_folder, settings_of):
    (in_an_empty_folder / 'w').mkdir()
    return settings_of('--work-dir', 'w')


@pytest.fixture
def calls(monkeypatch):
    """Stages that note that they ran; the one in ``calls.stops`` is interrupted."""
    from importlib import import_module

    seen = SimpleNamespace(names=[], stops=None)

    def fake(name):
        def run(settings, state):
            seen.names.append(name)
            if seen.stops == name:
                raise KeyboardInterrupt
            if name == 'split':
                state.test, state.before, state.after = [Labelled('i', 'm')], FIGURES, FIGURES
            return state

        return run

    for name in ORDER:
        monkeypatch.setattr(import_module(f'sa2va_dpo.commands.job.{name}'), 'run', fake(name))
    return seen


@pytest.mark.parametrize('stops', ORDER)
def test_an_interrupted_job_goes_on_with_the_stage_it_stopped_in(settings, calls, stops):
    calls.stops = stops
    with pytest.raises(KeyboardInterrupt):
        main.run_stages(settings)
    assert not Path('w/summary.json').exists()
    first, calls.names, calls.stops = calls.names, [], None
    summary = main.run_stages(settings)
    assert first == list(ORDER[:ORDER.index(stops) + 1]) and calls.names == list(ORDER[ORDER.index(stops):])
    assert summary == json.loads(Path('w/summary.json').read_text()) and summary['before'] == FIGURES
    state = JobState.load(Path('w'))
    assert state.done == list(ORDER) and state.test == [Labelled('i', 'm')] and set(state.seconds) == set(ORDER)


def test_a_state_of_another_version_is_refused(tmp_path):
    (tmp_path / 'state.json').write_text('{"done": []}')
    with pytest.raises(InputError, match='state.json: written by another version.*remove it'):
        JobState.load(tmp_path)


def state_of(**changes):
    return replace(
        JobState(start='base', pairs='root', sam_size=dict(own=640, chosen=640), test=[Labelled('i', 'm')]), **changes
    )


def test_the_command_of_training(settings, settings_of):
    command = train.command_of(settings, state_of())
    assert command[1:5] == ['-m', 'sa2va_dpo.commands.train', settings.config, '--work-dir']
    assert command[command.index('--work-dir') + 1] == 'w/training', 'in a folder of its own'
    assert '--resume' not in command and '--cfg-options' not in command and 'torch.distributed.run' not in command
    Path('w/training').mkdir()
    Path('w/training/iter_4.pth').touch()
    Path('w/last_checkpoint').touch()
    options = ('--work-dir', 'w', '--gpus', '2', '--cfg-options', 'lr=1')
    command = train.command_of(settings_of(*options), state_of(sam_size=dict(own=640, chosen=1024)))
    assert (
        '--nproc_per_node=2' in command
        and command[command.index('--launcher') + 1] == 'pytorch'
        and '--resume' in command
    )
    given = command[command.index('--cfg-options') + 1:]
    assert given == ['score_size=512', 'lr=1']
    # The user has the last word.
    command = train.command_of(
        settings_of('--work-dir', 'w', '--cfg-options', 'score_size=256'), state_of(sam_size=dict(own=640, chosen=1024))
    )
    assert [part for part in command if 'score_size' in part] == ['score_size=256']


def test_a_checkpoint_of_another_run_beside_it_is_never_resumed(settings):
    Path('w/last_checkpoint').touch()
    assert '--resume' not in train.command_of(settings, state_of())


def test_the_input_size_is_measured_on_training_images_only(settings, monkeypatch, micro_checkpoint):
    images = [Labelled(f'{name}.png', f'{name}_mask.png') for name in 'abcd']
    seen = []
    monkeypatch.setattr(resize, 'test', lambda *arguments: FIGURES)
    monkeypatch.setattr(
        resize, 'measure_sizes', lambda model, source, device: seen.extend(source.items) or {128: 0.5, 192: 0.51}
    )
    state = resize.run(
        replace(settings, model=str(micro_checkpoint), grid='keep'),
        state_of(images=images, validation=['b.png', 'd.png']),
    )
    assert [item.image for item in seen] == ['a.png', 'c.png']
    assert state.sam_size == dict(own=128, chosen=128, dice={'128': .5, '192': .51}) and state.resized is None
    assert state.start == str(micro_checkpoint)


def test_without_ground_truth_of_training_images_the_size_stays_and_that_is_said(
    settings, monkeypatch, micro_checkpoint, capsys
):
    monkeypatch.setattr(resize, 'test', lambda *arguments: FIGURES)
    state = resize.run(replace(settings, model=str(micro_checkpoint)), state_of(images=[]))
    assert (
        state.sam_size['chosen'] == 128
        and 'stays at 128 px, no ground truth of a training image is known' in capsys.readouterr().out
    )


@pytest.fixture
def labelled(monkeypatch):
    monkeypatch.setattr(resize, 'test', lambda *arguments: FIGURES)
    return state_of(images=[Labelled(f'{name}.png', f'{name}_mask.png') for name in ('p1', 'p2', 'p3', 'p4', 'v')],
                    validation=['v.png'])


def with_grid(settings, grid, micro_checkpoint):
    return replace(settings, model=str(micro_checkpoint), sam_size='keep', grid=grid)


def test_a_refinement_is_a_part_that_is_scored_at_the_full_input(settings_of, in_an_empty_folder):
    options = ('--work-dir', 'w', '--refine')
    state = state_of(sam_size=dict(own=640, chosen=1024))
    command = train.command_of(settings_of(*options), state)
    assert command[command.index('--cfg-options') + 1:] == ['model.trainable.refinement=full', 'score_size=1024']
    command = train.command_of(settings_of(*options, '--cfg-options', 'score_size=512'), state)
    assert [part for part in command if 'score_size' in part] == ['score_size=512']
    settings = settings_of(*options)
    assert '--refine' in command_line(json.loads(json.dumps(settings.identity()))).split()
    assert '--refine' not in command_line(settings_of('--work-dir', 'w').identity()).split()


def test_a_grid_that_is_asked_for_travels_with_the_start(settings, labelled, micro_checkpoint):
    state = resize.run(with_grid(settings, 3, micro_checkpoint), labelled)
    assert state.start == 'w/start_hf' and read_view(state.start) == ViewGeometry(grid=3)
    assert state.resized == FIGURES and state.view['chosen']['grid'] == 3 and state.view['own']['grid'] == 1
    for path in micro_checkpoint.iterdir():
        assert (Path(state.start) / path.name).read_bytes() == path.read_bytes()
    assert not (micro_checkpoint / 'sa2va_dpo.json').exists()
    assert 'score_size' not in ' '.join(train.command_of(settings, state))
    # What the model states is kept, and nothing is copied for it.
    again = resize.run(with_grid(settings, 'keep', Path(state.start)), labelled)
    assert again.start == state.start and again.view['chosen']['grid'] == 3
    assert resize.run(with_grid(settings, 'keep', micro_checkpoint), labelled).start == str(micro_checkpoint)


def test_the_grid_is_probed_on_training_images_only(settings, labelled, micro_checkpoint, monkeypatch, capsys):
    seen = []

    def probe(looks, fit, held, device, seed):
        seen.extend((sorted(i.image for i in fit.items), sorted(i.image for i in held.items), list(map(str, looks))))
        return Looks({'128 px, grid 1': .6, '128 px, grid 2': .7, '128 px, grid 3': .705}, 12.0)

    monkeypatch.setattr(resize, 'measure_looks', probe)
    state = resize.run(with_grid(settings, 'measure', micro_checkpoint), labelled)
    fit, held, looks = seen
    assert len(held) == 1 and sorted(fit + held) == ['p1.png', 'p2.png', 'p3.png', 'p4.png']
    assert looks == [f'128 px, grid {grid}' for grid in resize.GRIDS]
    assert state.view['chosen']['grid'] == 2 and state.view['dice']['128 px, grid 3'] == .705
    assert state.view['seconds'] == 12.0 and 'chosen: 128 px, grid 2, after 12 s' in capsys.readouterr().out
    assert read_view(state.start).grid == 2


@pytest.mark.parametrize('sides, stated, measured', [
    ((256, 256, 256, 100), 1, True), ((256, 255, 255, 900), 1, False), ((255, 255, 255, 255), 1, False),
    ((900, 900, 900, 900), 2, False)])
def test_auto_measures_where_most_images_are_twice_as_large_as_the_input(
        settings, labelled, micro_checkpoint, monkeypatch, sides, stated, measured):
    probes = []
    model = micro_checkpoint if stated == 1 else copy_with_view(micro_checkpoint, 'stated', ViewGeometry(grid=stated))
    monkeypatch.setattr(resize, '_probe', lambda *arguments: probes.append(arguments) or (128, 3))
    of_image = dict(zip(('p1.png', 'p2.png', 'p3.png', 'p4.png'), sides))
    monkeypatch.setattr(resize, 'image_size', lambda path: (of_image[path], 64))
    state = resize.run(with_grid(settings, 'auto', model), labelled)
    assert len(probes) == measured and state.view['chosen']['grid'] == (3 if measured else stated)


def test_auto_without_a_training_image_keeps_the_whole_image(settings, labelled, micro_checkpoint, capsys):
    state = resize.run(with_grid(settings, 'auto', micro_checkpoint), replace(labelled, images=labelled.images[4:]))
    assert state.view['chosen']['grid'] == 1 and 'grid' not in capsys.readouterr().out


def test_one_training_patient_is_too_few_to_probe(settings, labelled, micro_checkpoint, capsys):
    state = resize.run(with_grid(settings, 'measure', micro_checkpoint), replace(labelled, images=labelled.images[:1]))
    assert state.view['chosen']['grid'] == 1 and '1 training patients with ground truth are too few' in (
        capsys.readouterr().out)


def test_existing_pairs_are_counted_and_their_validation_is_looked_for(
    tmp_path, in_an_empty_folder, write_pairs, settings_of, capsys
):
    root = write_pairs(tmp_path / 'pairs', ['a', 'b'], ['c'], ['d'])
    state = mine.run(settings_of('--pairs', root), JobState())
    assert (state.pairs, state.train_pairs, state.train_images, state.validates) == (str(root), 2, 2, True)
    (root / 'val_annotations.json').unlink()
    state = mine.run(settings_of('--pairs', root), JobState())
    assert not state.validates and 'training runs without validation' in capsys.readouterr().out
    assert 'val_dataloader=None' in train.command_of(
        settings_of('--pairs', root), replace(state, start='x', sam_size=dict(own=1, chosen=1))
    )


def test_a_validation_split_that_is_not_the_jobs_is_refused(tmp_path, write_pairs):
    root = write_pairs(tmp_path / 'pairs', ['a', 'b'], ['c'])
    mine._check_validation(root, JobState(validation=['elsewhere/c.png']))
    with pytest.raises(InputError, match='val_annotations.json: holds out 1 images, the job 1 others'):
        mine._check_validation(root, JobState(validation=['elsewhere/b.png']))


@pytest.mark.parametrize('changes, code, words', [
    (dict(), 0, ()), (dict(best_checkpoint=None), 3, ('NOT BETTER', 'unchanged start')),
    (dict(best_checkpoint=None, exported_sam_size=1024), 3, ('NOT BETTER', 'only its SAM2 input is 1024 px')),
    (dict(best_checkpoint=None, exported_sam_size=640, view=dict(own=dict(grid=1), exported=dict(grid=3))), 3,
     ('NOT BETTER', 'only its SAM2 input is 640 px now, in tiles (grid 3)')),
    (dict(validation_dice=None), 0, ('NOT VALIDATED', 'last checkpoint', 'no promise'))])
def test_the_verdict(capsys, changes, code, words):
    summary = dict(
        before=FIGURES,
        after=dict(FIGURES, dice=0.6),
        sam_size=dict(own=640, chosen=1024),
        exported_sam_size=640,
        best_checkpoint='iter_20.pth',
        validation_dice=dict(start=0.5, best=0.6),
        exported_hf='out',
    )
    assert report.conclude({**summary, **changes}) == code
    said = capsys.readouterr().out
    assert (
        'dice            0.5000    0.6000   +0.1000' in said
        and 'test images: 3, never used for training or selection' in said
    )
    assert all(word in said for word in words) and ('NOT' in said) == bool(words)
