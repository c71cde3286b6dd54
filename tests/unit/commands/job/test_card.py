"""The model card of what a job hands back, before and after its test."""
import json
import shutil

import pytest

from sa2va_dpo.commands.job.card import write_card
from sa2va_dpo.commands.job.state import JobState, Labelled
from sa2va_dpo.engine.config import read_config, save
from sa2va_dpo.evaluation.report import write_report

ROWS = [dict(image_id=f'patient_{index}', dice=0.5 + index / 100, hd95=3.0) for index in range(12)]


@pytest.fixture
def job(in_an_empty_folder, settings_of, write_folders, micro_checkpoint, repo_root):
    """A job at the end of its selection: (settings, state, the card's text after writing)."""
    images, gt = write_folders(in_an_empty_folder / 'Dr. Bob', [f'patient_{index}' for index in range(4)])
    work_dir = in_an_empty_folder / 'w'
    (work_dir / 'training').mkdir(parents=True)
    config = read_config(str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py'),
                         [f'checkpoint={micro_checkpoint}', f'data_root={in_an_empty_folder}/pairs', 'max_iters=40'])
    save(config, work_dir / 'training/config.py')
    (work_dir / 'training/val_history.json').write_text(json.dumps([dict(iter=0, dice=0.5), dict(iter=20, dice=0.7)]))
    shutil.copytree(micro_checkpoint, work_dir / 'exported_hf')
    settings = settings_of('--work-dir', 'w', '--model', micro_checkpoint, '--images', images, '--gt', gt)
    one = Labelled('x', 'y')
    state = JobState(images=[one] * 3, validation=['z'], test=[one] * 12, exported_hf=str(work_dir / 'exported_hf'),
                     best_checkpoint=str(work_dir / 'training/best_dice_iter_20.pth'), exported_sam_size=128,
                     sam_size=dict(own=128, chosen=128), validation_dice=dict(start=0.5, best=0.7))

    def written(**changes):
        for name, value in changes.items():
            setattr(state, name, value)
        write_card(settings, state)
        return (work_dir / 'exported_hf/MODEL_CARD.md').read_text(encoding='utf-8')

    written.folder = work_dir
    return written


def write_tests(job):
    for name, shift in (('test_before', 0.0), ('test_after', 0.2), ('test_resized', 0.1)):
        write_report(job.folder / name, [dict(row, dice=row['dice'] + shift) for row in ROWS])
    return dict(dice=0.7)


def test_before_the_test_and_after_it(job, in_an_empty_folder):
    card = job()
    assert 'No test figures were measured' in card and 'step 20 of 40' in card and 'Dice 0.7000; the start: ' in card
    assert 'Images of `images`, masks of `gt`.' in card
    assert 'Split by patient: 3 images for training, 1 for validation, 12 for the test.' in card
    card = job(after=write_tests(job))
    assert 'Better on images it never saw: Dice 0.5550 to 0.7550' in card and '| metric | before | after |' in card
    assert 'It was tested on 12 images of `images` and on no other.' in card
    for word in ('patient_', 'Bob', str(in_an_empty_folder)):
        assert word not in card, word


def test_a_start_at_another_size(job):
    card = job(after=write_tests(job), resized=dict(dice=0.6), best_checkpoint=None, exported_sam_size=192,
               validation_dice=dict(start=0.7, best=0.65))
    assert 'only its SAM2 input has another size' in card and '| start, resized |' in card
    assert 'Nothing was trained here.' in card and 'Dice 0.7000; the best trained checkpoint: Dice 0.6500' in card


def test_neither_validated_nor_tested(job):
    card = job(validation_dice=None, test=[])
    assert 'No test figures were measured' in card and 'Look at its masks before you use it.' in card
