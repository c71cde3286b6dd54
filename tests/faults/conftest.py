"""Scenarios: short runs of generator, training, job and merges on the micro checkpoint."""
from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sa2va_dpo.common.files import hash_file
from sa2va_dpo.review.journal import Journal
from sa2va_dpo.review.pairs import open_set
from sa2va_dpo.review.pick_journal import PickJournal
from sa2va_dpo.review.picks import read_candidates
from tests.integration.conftest import pair_root, run_config, write_folders  # noqa: F401  (two are fixtures)

from .harness import Scenario, Zygote, content

# What says when and where rather than what.
_VOLATILE = ('.owner.lock', 'error.log', 'job.log', 'pairs.log', 'test.log')
# The same of a report: its times, and the hash of a run checkpoint, in which such things stand as well.
_CLOCK = re.compile(r'<div><dt>(?:Time|Finished)</dt><dd>[^<]*</dd></div>'
                    r'|<th scope="row">checkpoint [^<]*</th><td><code>[^<]*</code></td>')


@pytest.fixture(scope='session')
def zygote(repo_root, tmp_path_factory):
    zygote = Zygote(repo_root, tmp_path_factory.mktemp('zygote'))
    yield zygote
    zygote.close()


def tensors(path: Path) -> dict:
    """What of a run checkpoint decides how training goes on."""
    found = torch.load(path, weights_only=False)
    return {key: str(found.get(key)) if key == 'param_schedulers' else _digest(found.get(key))
            for key in ('state_dict', 'optimizer', 'param_schedulers') if key in found} | dict(
        iter=found['meta']['iter'], states=str(found.get('message_hub', {}).get('runtime_info', {}).get('hook_states')))


def _digest(value) -> str:
    total = hashlib.sha256()

    def take(node):
        if isinstance(node, torch.Tensor):
            total.update(node.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key in node:
                total.update(str(key).encode())
                take(node[key])
        elif isinstance(node, (list, tuple)):
            for item in node:
                take(item)
        else:
            total.update(str(node).encode())

    take(value)
    return total.hexdigest()


def training_outcome(folder: Path) -> dict:
    """History, choice and tensors of a work directory, and the names of its files; not its logs."""
    history = json.loads((folder / 'val_history.json').read_text())
    best = next((entry['sha256'] for entry in reversed(history) if 'checkpoint' in entry), None)
    files = content(folder, lambda path: path.suffix == '.pth' or path.name in (*_VOLATILE, 'owner.json',
                                                                               'val_history.json') or _is_log(path))
    named = next((entry['checkpoint'] for entry in reversed(history) if 'checkpoint' in entry), None)
    if named is not None:
        assert best == hash_file(folder / named)
    return dict(
        history=[{name: value for name, value in entry.items() if name != 'sha256'} for entry in history],
        checkpoints={path.name: tensors(path) for path in sorted(folder.glob('*.pth'))},
        files=files)


def _is_log(path: Path) -> bool:
    first = path.parts[0]
    return len(first) == 15 and first.replace('_', '').isdecimal() or first.startswith('earlier_')


@pytest.fixture(scope='session')
def quiet_config(run_config, tmp_path_factory):  # noqa: F811
    """Without TensorBoard, whose file takes hundreds of appends, all alike."""
    path = tmp_path_factory.mktemp('quiet') / 'quiet.py'
    path.write_text(f"_base_ = [{str(run_config)!r}]\nvisualizer = dict(vis_backends=[dict(type='LocalVisBackend')])\n")
    return path


@pytest.fixture(scope='session')
def training(quiet_config):
    return Scenario('train', lambda folder: [quiet_config, '--work-dir', folder / 'w'],
                    lambda folder: training_outcome(folder / 'w'),
                    again=lambda folder: [quiet_config, '--work-dir', folder / 'w', '--resume'])


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """(images, masks): six small ones of six patients."""
    return write_folders(tmp_path_factory.mktemp('pictures'), range(6))


@pytest.fixture(scope='session')
def generating(micro_checkpoint, pictures):
    images, masks = pictures
    return Scenario(
        'pairs', lambda folder: ['--mode', 'generate', '--images_dir', images, '--gt_dir', masks, '--output_dir',
                                 folder / 'pairs', '--model_path', micro_checkpoint, '--num_samples', 2,
                                 '--min_iou_gap', 0.0, '--device', 'cpu'],
        lambda folder: content(folder, lambda path: path.name in _VOLATILE))


@pytest.fixture(scope='session')
def working(quiet_config, micro_checkpoint, tmp_path_factory):
    """The whole job, two training steps."""
    images, masks = write_folders(tmp_path_factory.mktemp('of the job'), range(20, 28))

    def outcome(folder):
        work = folder / 'w'
        summary = json.loads((work / 'summary.json').read_text())
        return dict(
            summary={name: value for name, value in summary.items() if name != 'seconds'},
            training=training_outcome(work / 'training'),
            report=_digest(_CLOCK.sub('', (work / 'report.html').read_text())),
            files=content(work, lambda path: path.parts[0] == 'training' or path.name in (
                *_VOLATILE, 'summary.json', 'state.json', 'report.html') or path.suffix == '.pth'))

    return Scenario('job', lambda folder: [
        '--model', micro_checkpoint, '--images', images, '--gt', masks, '--config', quiet_config, '--work-dir',
        folder / 'w', '--min_iou_gap', '0.0', '--num_samples', 2, '--sam_size', 'keep', '--cfg-options',
        'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'], outcome)


@pytest.fixture(scope='session')
def reviewed(tmp_path_factory, pair_root):  # noqa: F811
    """Pairs, decided by two reviewers who differ on some."""
    root = tmp_path_factory.mktemp('reviewed') / 'data'
    shutil.copytree(pair_root, root)
    review = open_set(root, 'dpo_annotations.json')
    for name, decisions in (('anna', ('accept', 'swap', 'drop')), ('béla', ('accept', 'drop', 'skip', 'swap'))):
        with Journal(review, name) as journal:
            for number, pair in enumerate(review.records):
                journal.decide(pair, decisions[number % len(decisions)])
            journal.note(pair, 'what is this?')
    return root


@pytest.fixture(scope='session')
def merging(reviewed):
    return Scenario('review', lambda folder: ['--data_root', folder / 'data', '--reviewer', 'anna', 'béla', '--merge'],
                    lambda folder: content(folder, lambda path: path.name in _VOLATILE),
                    prepare=lambda folder: shutil.copytree(reviewed, folder / 'data'))


@pytest.fixture(scope='session')
def picked(tmp_path_factory):
    """Three images with three candidates each, picked from by two reviewers."""
    root = tmp_path_factory.mktemp('picked') / 'data'
    images, masks = write_folders(root, range(3))
    masks.rename(root / 'candidates')
    for index in range(3):
        for k in (1, 2):
            mask = cv2.imread(str(root / f'candidates/case_{index:02d}.png'))
            cv2.imwrite(str(root / f'candidates/case_{index:02d}_{k}.png'), np.roll(mask, 9 * k, 0))
    (root / 'candidates.json').write_text(json.dumps([dict(
        image=f'images/case_{index:02d}.png', prompt='<image>Please segment the blood vessels.',
        candidates=[dict(mask=f'candidates/case_{index:02d}{end}.png', source='greedy')
                    for end in ('', '_1', '_2')]) for index in range(3)]))
    found = read_candidates(root)
    for name in ('anna', 'béla'):
        with PickJournal(found, name) as journal:
            for number, image in enumerate(found.images):
                journal.pick(image, number, 2.5)
    return root


@pytest.fixture(scope='session')
def picking(picked):
    return Scenario('review', lambda folder: ['--data_root', folder / 'data', '--reviewer', 'anna', '--pick',
                                              '--merge'],
                    lambda folder: content(folder, lambda path: path.name in _VOLATILE),
                    prepare=lambda folder: shutil.copytree(picked, folder / 'data'))
