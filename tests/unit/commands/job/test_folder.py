"""The work directory: one job's, refused to others by what differs, cleared only on request."""
import json
import subprocess
import sys

import pytest
from PIL import Image

from sa2va_dpo.commands.job.folder import own
from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError


@pytest.fixture
def job(in_an_empty_folder, write_folders, settings_of, tmp_path):
    """Claims ``w`` for a job on some images and leaves a trace of it there; options are added."""
    images, gt = write_folders(tmp_path / 'mine', ['a', 'b', 'c'])

    def run(*options):
        with own(settings_of('--work-dir', 'w', '--images', images, '--gt', gt, *options)) as finished:
            (tmp_path / 'w/training').mkdir(exist_ok=True)
            (tmp_path / 'w/training/iter_2.pth').touch()
        return finished

    return run


def test_the_same_job_goes_on_and_another_is_refused_by_what_differs(job, tmp_path):
    assert job() is None
    assert job() is None
    with pytest.raises(InputError, match='w: holds a job with other settings or files .settings.seed: was 0, is 7'):
        job('--seed', '7')
    assert (tmp_path / 'w/training/iter_2.pth').exists()


def test_a_finished_job_is_shown(job, tmp_path):
    job()
    (tmp_path / 'w/summary.json').write_text(json.dumps(dict(seed=0)))
    assert job() is None, 'a summary alone is no finished job'
    from sa2va_dpo.commands.job.state import JobState

    JobState(done=['report']).save(tmp_path / 'w')
    assert job() == dict(seed=0)


@pytest.mark.parametrize('name', ['images', 'gt'])
def test_files_that_changed_since_are_named(job, tmp_path, name):
    job()
    Image.new('L', (8, 8), 99).save(tmp_path / f'mine/{name}/b.png')
    with pytest.raises(InputError, match=f'content.{name}.b.png: its content has changed'):
        job()


def test_other_images_are_refused(job, tmp_path, write_folders, settings_of):
    job()
    images, gt = write_folders(tmp_path / 'others', ['a', 'b', 'x'])
    with pytest.raises(InputError, match='content.gt.c.png: was .*, is not there; content.gt.x.png: was not there'):
        job('--images', images, '--gt', gt)


def test_edited_annotations_are_refused(in_an_empty_folder, write_pairs, settings_of, tmp_path):
    root = write_pairs(tmp_path / 'pairs', ['a', 'b'], ['c'], ['d'])

    def run():
        with own(settings_of('--pairs', root, '--work-dir', 'w')):
            (tmp_path / 'w/training').mkdir(exist_ok=True)

    run()
    run()
    path = root / 'dpo_annotations.json'
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries[:1]))
    with pytest.raises(InputError, match='content.pairs.dpo_annotations.json: its content has changed'):
        run()
    path.write_text(json.dumps(entries))
    Image.new('L', (8, 8), 99).save(root / 'masks/full.png')
    with pytest.raises(InputError, match='content.pairs.masks/full.png: its content has changed'):
        run()


def test_overwrite_says_what_it_removes_and_leaves_the_rest(job, tmp_path, capsys):
    job()
    (tmp_path / 'w/notes.txt').write_text('mine')
    job('--seed', '7', '--overwrite')
    assert 'removing what an earlier job left there: training, job.json' in capsys.readouterr().out
    assert (tmp_path / 'w/notes.txt').read_text() == 'mine'
    assert json.loads((tmp_path / 'w/job.json').read_text())['settings']['seed'] == 7


def test_results_that_no_record_explains_are_refused(job, tmp_path):
    (tmp_path / 'w/exported_hf').mkdir(parents=True)
    with pytest.raises(InputError, match='w: holds exported_hf, which no job.json explains'):
        job()
    job('--overwrite')
    assert not (tmp_path / 'w/exported_hf').exists()


def test_a_job_that_made_nothing_yet_is_no_obstacle(in_an_empty_folder, write_folders, settings_of, tmp_path):
    images, gt = write_folders(tmp_path / 'mine', ['a', 'b', 'c'])
    for seed in (0, 1):
        with own(settings_of('--work-dir', 'w', '--images', images, '--gt', gt, '--seed', seed)):
            pass
    assert json.loads((tmp_path / 'w/job.json').read_text())['settings']['seed'] == 1


def test_a_training_run_in_the_same_folder_is_left_alone_unless_overwritten(job, tmp_path, capsys):
    ownership.claim(tmp_path / 'w', 'training', dict(config={}), ('iter_*.pth',)).release()
    (tmp_path / 'w/iter_4.pth').write_text('theirs')
    job()
    assert 'holds a run of kind training as well' in capsys.readouterr().out
    assert (tmp_path / 'w/iter_4.pth').read_text() == 'theirs'
    job('--overwrite')
    assert 'iter_4.pth' in capsys.readouterr().out and not (tmp_path / 'w/iter_4.pth').exists()


def test_two_jobs_at_once_are_refused(job, tmp_path):
    job()
    code = ("import sys, time; from sa2va_dpo.common import ownership\n"
            "held = ownership.lock(sys.argv[1], 'job'); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'w')], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(InputError, match=f'--work-dir w: is being written by process {other.pid}'):
            job()
    finally:
        other.kill()
        other.wait()
    job()


def test_voters_that_changed_since_are_named(in_an_empty_folder, write_folders, settings_of, tmp_path):
    images, votes = write_folders(tmp_path / 'others', ['a', 'b'])

    def run():
        with own(settings_of('--without-masks', '--unlabelled', images, '--judge', 'committee', '--members', votes,
                             '--work-dir', 'w')):
            (tmp_path / 'w/training').mkdir(exist_ok=True)

    run()
    run()
    Image.new('L', (8, 8), 99).save(votes / 'b.png')
    with pytest.raises(InputError, match='content.members.*b.png: its content has changed'):
        run()
