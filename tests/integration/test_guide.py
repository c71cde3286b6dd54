"""The guide's steps to the letter: its commands at its paths, on a copy of the bundled checkpoint and drawn images."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from sa2va_dpo.datasets.annotations import read_pairs, read_segs
from sa2va_dpo.datasets.ground_truth import patient_of
from sa2va_dpo.datasets.mask_io import read_mask, write_mask
from sa2va_dpo.drawn import write_dataset
from sa2va_dpo.models.checkpoint import copy_with_sam_size

pytestmark = pytest.mark.integration

STEP_1A = '''python scripts/generate_dpo_dataset.py --mode generate \
    --images_dir data/merged_vessel_data/images --gt_dir data/merged_vessel_data/masks \
    --output_dir data/dpo_vessel --model_path models/sa2va_vessel_hf \
    --num_samples 5 --min_iou_gap 0.05'''
# The guide's /path/to/... are relative here.
STEP_1B = '''python scripts/generate_dpo_dataset.py --mode from_predictions \
    --images_dir path/to/predictions_dir --gt_dir path/to/gt_masks \
    --output_dir data/dpo_vessel --min_iou_gap 0.05'''
STEP_2 = '''python tools/train.py projects/sa2va/configs/sa2va_dpo_vessel.py --work-dir work_dirs/dpo_vessel_training'''
# ``bash train_dpo_vessel.sh`` is this after the set-up of the environment, which the tests have.
STEP_2_BASH = 'python -m sa2va_dpo job'
STEP_2_TORCHRUN = '''python -m torch.distributed.run --nproc_per_node=2 --standalone tools/train.py \
    projects/sa2va/configs/sa2va_dpo_vessel.py --work-dir work_dirs/dpo_vessel_training --launcher pytorch'''
STEP_3 = '''python tools/test.py projects/sa2va/configs/sa2va_dpo_vessel.py \
    work_dirs/dpo_vessel_training/iter_XXX.pth --work-dir work_dirs/dpo_vessel_eval'''


class Folder:
    """A working folder in which the guide's paths exist, and its commands run."""

    def __init__(self, root: Path, checkout: Path) -> None:
        self.root, self.checkout = root, checkout
        for name in ('projects', 'tools', 'scripts', 'train_dpo_vessel.sh'):
            (root / name).symlink_to(checkout / name)
        # At its own 640 px every step takes six times as long.
        copy_with_sam_size(checkout / 'projects/sa2va/assets/tiny_sa2va', root / 'models/sa2va_vessel_hf', 256)
        write_dataset(root / 'data/merged_vessel_data', style='demo', seed=5, n=10, size=160)

    def run(self, command: str, *more: str, codes: tuple[int, ...] = (0,)) -> str:
        words = command.split()
        assert words[0] == 'python'
        done = subprocess.run(
            [sys.executable, *words[1:], *more],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=900,
            env={
                **os.environ,
                'OMP_NUM_THREADS': '2',
                'CUDA_VISIBLE_DEVICES': '',
                'PYTHONPATH': str(self.checkout / 'projects/checkout'),
            },
        )
        assert done.returncode in codes, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
        return done.stdout + done.stderr


@pytest.fixture(scope='module')
def generated(tmp_path_factory, repo_root):
    folder = Folder(tmp_path_factory.mktemp('guide_a'), repo_root)
    folder.said = folder.run(STEP_1A)
    return folder


@pytest.fixture(scope='module')
def from_predictions(tmp_path_factory, repo_root):
    folder = Folder(tmp_path_factory.mktemp('guide_b'), repo_root)
    data = folder.root / 'data/merged_vessel_data'
    (folder.root / 'path/to').mkdir(parents=True)
    shutil.copytree(data / 'masks', folder.root / 'path/to/gt_masks')
    shutil.copytree(data / 'images', folder.root / 'path/to/images')
    for path in (data / 'masks').iterdir():
        mask = read_mask(path).astype('uint8')
        for method, change in (('unet', cv2.dilate), ('frangi', cv2.erode)):
            write_mask(folder.root / 'path/to/predictions_dir' / method / path.name,
                       change(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > 0)
    folder.said = folder.run(STEP_1B)
    return folder


@pytest.fixture(params=['generated', 'from_predictions'])
def folder(request):
    return request.getfixturevalue(request.param)


def test_step_1_writes_what_steps_2_and_3_read(folder):
    root = folder.root / 'data/dpo_vessel'
    pairs, val_pairs = (
        read_pairs(root / 'dpo_annotations.json', root),
        json.loads((root / 'dpo_annotations_val.json').read_text()),
    )
    val, test = (read_segs(root / f'{part}_annotations.json', root) for part in ('val', 'test'))
    assert pairs and len(val) == 1 and len(test) == 2
    images = [{record.image for record in pairs}, {record.image for record in val}, {record.image for record in test}]
    patients = [{patient_of(Path(image).stem) for image in part} for part in images]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    assert {record['image'] for record in val_pairs} <= images[1]
    assert all(record.iou_gap >= 0.05 - 1e-9 for record in pairs)
    report = json.loads((root / 'generation_report.json').read_text())
    assert report['split'] == dict(
        train=dict(patients=7, images=7), val=dict(patients=1, images=1), test=dict(patients=2, images=2)
    )
    assert '2 images of 2 patients for the test' in folder.said and '--val_fraction 0 --test_fraction 0' in folder.said


def test_steps_2_and_3(generated):
    folder = generated
    folder.run(STEP_2, '--cfg-options', 'train_cfg.max_epochs=1')
    run = folder.root / 'work_dirs/dpo_vessel_training'
    last = (run / 'last_checkpoint').read_text().strip()
    step = Path(last).stem.removeprefix('iter_')
    assert (run / f'iter_{step}.pth').exists() and (run / 'config.py').is_file() and list(run.glob('*/vis_data'))
    said = folder.run(STEP_3.replace('XXX', step))
    metrics = json.loads((folder.root / 'work_dirs/dpo_vessel_eval/metrics.json').read_text())
    assert 0 < metrics['metrics']['dice']['mean'] < 1 and 'dice' in said


SHORT = ('--cfg-options', 'max_iters=2')


def step_3(folder) -> dict:
    folder.run(STEP_3.replace('XXX', '2'))
    return json.loads((folder.root / 'work_dirs/dpo_vessel_eval/metrics.json').read_text())


def test_the_forms_of_step_2_share_a_folder_in_any_order(generated, tmp_path):
    """The job, one process, two processes, the job again: each finds its own, and step 3 tests whichever ran in the
    folder last."""
    folder = copy.copy(generated)
    folder.root = tmp_path / 'guide'
    shutil.copytree(generated.root, folder.root, symlinks=True, ignore=shutil.ignore_patterns('work_dirs'))
    work_dir = folder.root / 'work_dirs/dpo_vessel_training'
    # Exit code 3 says that two steps did not make it better.
    said = folder.run(STEP_2_BASH, *SHORT, codes=(0, 3))
    pairs = folder.root / 'data/dpo_vessel'
    assert 'pairs data/dpo_vessel' in said and 'test images: 2, never used for training or selection' in said
    tested = {path.stem for path in (work_dir / 'test_after/overlays').iterdir()}
    test = {Path(record.image).stem for record in read_segs(pairs / 'test_annotations.json', pairs)}
    trained = {Path(record.image).stem for record in read_pairs(pairs / 'dpo_annotations.json', pairs)}
    assert tested == test and not tested & trained
    summary = json.loads((work_dir / 'summary.json').read_text())
    assert (
        (work_dir / 'iter_2.pth').is_symlink()
        and (work_dir / 'config.py').is_file()
        and list(work_dir.glob('*/*/vis_data'))
    )
    assert step_3(folder)['n_images'] == 2

    said = folder.run(STEP_2, *SHORT)
    assert not (work_dir / 'iter_2.pth').is_symlink() and list(work_dir.glob('*/vis_data'))
    one = step_3(folder)
    assert one['n_images'] == 2
    said = folder.run(STEP_2_TORCHRUN, *SHORT)
    assert 'this very run was begun here before and starts anew' in said
    assert step_3(folder)['n_images'] == 2

    said = folder.run(STEP_2_BASH, *SHORT, codes=(0, 3))
    assert 'this job has finished before' in said and json.loads((work_dir / 'summary.json').read_text()) == summary
    # Anew, the job leaves what is theirs alone, unless it is told to remove it, and says so.
    ours = (work_dir / 'training/iter_2.pth').stat().st_mtime_ns
    said = folder.run(STEP_2_BASH, '--overwrite', *SHORT, codes=(0, 3))
    assert (
        'removed what a run of kind training' in said and (work_dir / 'training/iter_2.pth').stat().st_mtime_ns > ours
    )
    assert (work_dir / 'iter_2.pth').is_symlink() and json.loads((work_dir / 'summary.json').read_text())[
        'before'
    ] == summary['before']
