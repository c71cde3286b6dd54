"""``sa2va-dpo sheet`` on a job's folder, on pairs and on folders of masks; no model is loaded."""
from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.commands.job.state import JobState, Labelled
from sa2va_dpo.commands.sheet import main
from sa2va_dpo.common.errors import InputError

# Rows of a mask of 10 that a model found: before, after. The changes of Dice rise with the number.
FOUND = [(9, 2), (6, 5), (5, 5), (4, 6), (1, 10)]


def png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def job(tmp_path):
    root, tested = tmp_path / 'job', []
    for k, rows in enumerate(FOUND):
        truth = np.zeros((20, 30), np.uint8)
        truth[:10] = 255
        png(tmp_path / f'images/case_{k}.png', np.full((20, 30, 3), 90, np.uint8))
        png(tmp_path / f'gt/case_{k}.png', truth)
        tested.append(Labelled(str(tmp_path / f'images/case_{k}.png'), str(tmp_path / f'gt/case_{k}.png')))
        for folder, count in zip(('test_before', 'test_after'), rows):
            mask = np.zeros((20, 30), np.uint8)
            mask[:count] = 255
            png(root / folder / f'predictions/case_{k}.png', mask)
    (root / 'state.json').write_text(json.dumps(asdict(JobState(test=tested))))
    return root


def test_a_job_shows_the_worst_the_median_and_the_best(job, capsys, tmp_path):
    out = tmp_path / 'new/sheet.png'
    assert main([str(job), '--output', str(out)]) == 0
    assert 'case_0, case_2, case_4' in capsys.readouterr().out
    assert Image.open(out).format == 'PNG'
    main([str(job), '--output', str(tmp_path / 'sheet.jpg')])
    assert Image.open(tmp_path / 'sheet.jpg').format == 'JPEG'
    capsys.readouterr()
    assert main([str(job), '--output', str(out), '--rows', '9']) == 0
    assert 'case_0, case_1, case_2, case_3, case_4' in capsys.readouterr().out
    assert main([str(job), '--output', str(out), '--names', 'case_3']) == 0
    assert 'sheet.png: case_3\n' in capsys.readouterr().out


def test_folders_of_masks_show_the_same(job, capsys, tmp_path):
    out, other = tmp_path / 'a.png', tmp_path / 'b.png'
    main([str(job), '--output', str(out)])
    main(['--images', str(tmp_path / 'images'), '--gt', str(tmp_path / 'gt'), '--before',
          str(job / 'test_before/predictions'), '--after', str(job / 'test_after/predictions'), '--output', str(other)])
    assert out.read_bytes() == other.read_bytes()
    main(['--images', str(tmp_path / 'images'), '--gt', str(tmp_path / 'gt'), '--after',
          str(job / 'test_after/predictions'), '--output', str(other)])
    assert Image.open(other).width < Image.open(out).width
    # By Dice alone: two rows of ten are the worst, all ten the best, five and six lie between.
    assert 'case_0, case_2, case_4' in capsys.readouterr().out.splitlines()[-1]


def test_pairs_go_from_the_smallest_gap_to_the_largest(tmp_path, capsys):
    records = []
    for k, gap in enumerate((0.3, 0.1, 0.2)):
        png(tmp_path / f'images/p{k}.png', np.zeros((8, 8, 3), np.uint8))
        for side in ('chosen', 'rejected'):
            png(tmp_path / f'masks/p{k}_{side}.png', np.eye(8, dtype=np.uint8) * 255)
        records.append(dict(image=f'images/p{k}.png', chosen_mask=f'masks/p{k}_chosen.png',
                            rejected_mask=f'masks/p{k}_rejected.png', chosen_iou=0.5 + gap, rejected_iou=0.5,
                            iou_gap=gap, prompt='<image>Vessels?'))
    (tmp_path / 'dpo_annotations.json').write_text(json.dumps(records))
    assert main([str(tmp_path), '--output', str(tmp_path / 'sheet.png')]) == 0
    assert 'p1, p2, p0' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, words', [
    ([], 'give the folder'), (['JOB', '--images', 'x'], 'give the folder'), (['--images', 'x', '--gt', 'y'], '--after'),
    (['JOB', '--before', 'x'], '--before'), (['JOB', '--rows', '0'], '--rows 0'),
    (['JOB', '--names', 'nobody'], '--names nobody: no such image'), (['.'], 'holds neither a job'),
    (['JOB', '--output', 's.tif'], r'--output s\.tif')])
def test_bad_flags_are_one_line(job, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        main([str(job) if argument == 'JOB' else argument for argument in arguments])
    assert not (tmp_path / 'sheet.png').exists()


def test_masks_that_are_missing_or_of_another_size_are_named(job, tmp_path):
    png(job / 'test_after/predictions/case_2.png', np.zeros((30, 20), np.uint8))
    with pytest.raises(InputError, match=r'case_2\.png: is 20 x 30'):
        main([str(job), '--output', str(tmp_path / 's.png')])
    (job / 'test_after/predictions/case_2.png').unlink()
    with pytest.raises(InputError, match=r'holds no mask of case_2\.png'):
        main([str(job), '--output', str(tmp_path / 's.png')])
    (job / 'state.json').write_text(json.dumps(asdict(JobState())))
    with pytest.raises(InputError, match='no test images'):
        main([str(job), '--output', str(tmp_path / 's.png')])


def test_a_job_that_kept_no_masks_says_so(job, tmp_path):
    import shutil
    shutil.rmtree(job / 'test_after/predictions')
    with pytest.raises(InputError, match='kept no masks'):
        main([str(job), '--output', str(tmp_path / 's.png')])
