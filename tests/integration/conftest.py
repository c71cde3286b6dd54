"""A small pair data set and a run's config, for tests with the real runner on the CPU."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.integration.browser import BROWSERS, Browser, find_browser

PROMPT = '<image>Please segment the blood vessels.'


def drawn_image(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright 96 x 128 picture with a few dark lines, and their mask."""
    rng = np.random.default_rng(index)
    mask = np.zeros((96, 128), np.uint8)
    for _ in range(4):
        cv2.polylines(mask, [rng.integers(0, 96, (4, 2)).astype(np.int32)], False, 255, 4)
    image = rng.normal(170, 8, (96, 128, 3)) - 90 * (mask[..., None] > 0)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_folders(root: Path, indices) -> tuple[Path, Path]:
    """Folders ``images`` and ``gt`` with the pictures of ``indices``."""
    for name in ('images', 'gt'):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index in indices:
        image, mask = drawn_image(index)
        cv2.imwrite(str(root / 'images' / f'case_{index:02d}.png'), image)
        cv2.imwrite(str(root / 'gt' / f'case_{index:02d}.png'), mask)
    return root / 'images', root / 'gt'


@pytest.fixture(scope='session')
def pair_root(tmp_path_factory) -> Path:
    """Six training and three validation images with two pairs each: ground truth against a thick and a shifted mask."""
    root = tmp_path_factory.mktemp('pairs')
    write_folders(root, range(9))
    (root / 'masks').mkdir()
    pairs, val_pairs, segs = [], [], []
    for index in range(9):
        _, mask = drawn_image(index)
        stem = f'case_{index:02d}'
        if index >= 6:
            segs.append(dict(image=f'images/{stem}.png', mask=f'gt/{stem}.png', prompt=PROMPT))
        cv2.imwrite(str(root / 'masks' / f'{stem}_chosen.png'), mask)
        worse = (cv2.dilate(mask, np.ones((7, 7), np.uint8)), np.roll(mask, 5, 1))
        for k, rejected in enumerate(worse):
            cv2.imwrite(str(root / 'masks' / f'{stem}_rejected_{k}.png'), rejected)
            iou = float(((mask > 0) & (rejected > 0)).sum() / ((mask > 0) | (rejected > 0)).sum())
            target = val_pairs if index >= 6 else pairs
            target.append(dict(image=f'images/{stem}.png', chosen_mask=f'masks/{stem}_chosen.png',
                               rejected_mask=f'masks/{stem}_rejected_{k}.png', chosen_iou=1.0, rejected_iou=iou,
                               iou_gap=1.0 - iou, prompt=PROMPT))
    (root / 'dpo_annotations.json').write_text(json.dumps(pairs))
    (root / 'dpo_annotations_val.json').write_text(json.dumps(val_pairs))
    (root / 'val_annotations.json').write_text(json.dumps(segs))
    return root


@pytest.fixture(scope='session')
def run_config(tmp_path_factory, repo_root, micro_checkpoint, pair_root) -> Path:
    """The tiny DPO config on the micro checkpoint, four steps, every second one validated and saved."""
    path = tmp_path_factory.mktemp('config') / 'micro_dpo.py'
    path.write_text(f'''
_base_ = [{str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py')!r}]
checkpoint = {str(micro_checkpoint)!r}
data_root = {str(pair_root)!r}
model = dict(checkpoint=checkpoint, score_size=64, trainable=dict(llm=dict(r=4)))
train_dataloader = dict(batch_size=2, collate_fn=dict(preprocessor=checkpoint),
                        dataset=dict(data_root=data_root, preprocessor=checkpoint, score_size=64))
val_dataloader = dict(collate_fn=dict(preprocessor=checkpoint),
                      dataset=dict(preprocessor=checkpoint, source=dict(data_root=data_root)))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
param_scheduler = []
cache = dict(dir={str(path.parent / 'cache')!r}, lazy=False)
''')
    return path


@pytest.fixture()
def cli(repo_root):
    """Run an entry point of the repository as a user would; returns the finished process with its text output."""

    def run(*command, code: int | None = 0, processes: int = 1, env: dict | None = None):
        import os

        launcher = (
            ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
        )
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, command)],
            cwd=repo_root,
            capture_output=True,
            text=True,
            timeout=600,
            env={
                **os.environ,
                'OMP_NUM_THREADS': str(max(1, 2 // processes)),
                'CUDA_VISIBLE_DEVICES': '',
                **(env or {}),
            },
        )
        if code is not None:
            assert done.returncode == code, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
        return done

    return run


@pytest.fixture(scope='session')
def draw_case():
    """``drawn_image`` for tests: index -> (image, mask)."""
    return drawn_image


@pytest.fixture(scope='session')
def make_folders():
    """``write_folders`` for tests: (root, indices) -> (images folder, ground-truth folder)."""
    return write_folders


@pytest.fixture()
def browser(tmp_path):
    """A headless browser with a profile of its own; skips where there is none."""
    executable = find_browser()
    if executable is None:
        pytest.skip(f'no browser on this machine (one of {", ".join(BROWSERS)}); on Debian: apt-get install chromium')
    found = Browser(executable, tmp_path / 'profile')
    yield found
    found.close()
