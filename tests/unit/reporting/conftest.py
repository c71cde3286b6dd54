"""Folders as a test and a job leave them, of small drawn pictures, made without a model."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.evaluation.report import write_report
from sa2va_dpo.evaluation.scores import score_mask
from sa2va_dpo.evaluation.vessel_metric import prediction_file

HOSTILE = '<script>alert(1)<img src=x onerror=alert(2)> "&\' é'


def truth(seed, size=48):
    mask = np.zeros((size, size), bool)
    mask[8 + seed % 20:12 + seed % 20] = True
    mask[:, 20:23] = True
    return mask


def predicted(seed, quality, size=48):
    """The truth with a share of its rows gone."""
    mask = truth(seed, size)
    mask[:, :round((1 - quality) * size)] = False
    return mask


def write_test(folder, names, quality, masks=True):
    """What ``evaluate_model`` writes; ``quality``: index -> share of the truth that is found."""
    rows = []
    for index, name in enumerate(names):
        mask = predicted(index, quality(index))
        rows.append(dict(image_id=name, **score_mask(mask, truth(index))))
        if masks:
            path = prediction_file(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    write_report(folder, rows)
    return rows


def source(index):
    image = np.random.default_rng(index).integers(0, 255, (48, 48, 3), np.uint8)
    return dict(image=image, mask=truth(index))


@pytest.fixture
def results():
    return SimpleNamespace(write=write_test, source=source, truth=truth, predicted=predicted, hostile=HOSTILE)


def write_images(folder, names):
    for index, name in enumerate(names):
        for kind in ('images', 'gt'):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(source(index)['image']).save(folder / 'images' / f'{name}.png')
        Image.fromarray(truth(index).astype(np.uint8) * 255).save(folder / 'gt' / f'{name}.png')


@pytest.fixture
def tested_folder(tmp_path):
    """(names, quality, further fields of test.json) -> the folder of a finished test."""
    def make(names=('a', 'b', 'c', 'd'), quality=lambda i: 0.5 + 0.1 * (i % 4), folder='eval', **record):
        write_images(tmp_path / 'data', names)
        # As a folder of images is listed.
        write_test(tmp_path / folder, sorted(names), quality)
        (tmp_path / folder / 'test.json').write_text(json.dumps(dict(
            config='c.py', checkpoint=None, checkpoint_hash=None, base='base',
            base_hashes={'model.safetensors': 'ab' * 16},
            source=dict(type='FolderMasks', images_dir=str(tmp_path / 'data/images'),
                        gt_dir=str(tmp_path / 'data/gt')),
            options=[], command=['python', 'tools/test.py', 'c.py'], before=None, seed=0, chose=False,
            recipe=[['beta', '0.1']]) | record))
        return tmp_path / folder
    return make


FIGURES = dict(dice=.5, iou=.4, precision=.3, recall=.2, cldice=.1, n_images=4)
SETTINGS = dict(model='base', images='images', gt='gt', pairs=None, test_from='split', config='no_such_config.py',
                sam_size='auto', grid='keep', refine=False, unlabelled_gt=None, gpus=1, seed=3, prompt=None,
                num_samples=5, min_iou_gap=0.05, max_pairs_per_image=10,
                test_fraction=0.5, val_fraction=0.25, group_regex=None, gt_candidate=True, unlabelled=None, judge='iou',
                rounds=1, round_gap=None, members=[], predictions=None, clicks=None, cfg_options=[])


class JobFolder:
    """The folder of a finished job; tests take away what they want to be missing."""

    def __init__(self, root: Path, names=('a', 'b', 'c', 'd')):
        self.path, self.names = root, names
        root.mkdir(parents=True)
        write_images(root / 'data', names)
        self.identity = dict(settings=dict(SETTINGS), content=dict(
            config='cd' * 32, model={'model.safetensors': 'ab' * 16, 'config.json': 'ef' * 16},
            images={'a.png': '01' * 16}))
        self.state = dict(
            done=['split', 'resize', 'mine', 'train', 'select', 'report'], seconds={},
            images=[], validation=[], test_prompt='<image>Please segment.', unlabelled=[], gt_dir=None,
            test=[dict(image=str(root / f'data/images/{name}.png'), mask=str(root / f'data/gt/{name}.png'))
                  for name in names],
            before=FIGURES, resized=None, sam_size=dict(own=640, chosen=640, dice={}), view={}, start='base',
            pairs=str(root / 'pairs'), train_pairs=2, train_images=2, validates=True, best_checkpoint=None,
            validation_dice=None, exported_hf='', exported_sam_size=None, after=FIGURES)
        self.summary = dict(before=FIGURES, after=FIGURES, pairs=2, train_images=2, seconds=61.0,
                            best_checkpoint=str(root / 'training/best_dice_iter_20.pth'),
                            exported_hf=str(root / 'exported_hf'), seed=3, validation_dice=dict(start=0.5, best=0.6),
                            sam_size=dict(own=640, chosen=640, dice={}), exported_sam_size=640)
        write_test(root / 'test_before', names, lambda i: 0.5)
        write_test(root / 'test_after', names, lambda i: 0.7 + 0.05 * (i % 3))
        self._training()
        self._pairs()

    def _training(self):
        training = self.path / 'training'
        (training / '20260101_000000/vis_data').mkdir(parents=True)
        history = [dict(iter=0, dice=0.5, cldice=0.4, **{'pairs/accuracy': 0.0}),
                   dict(iter=10, dice=0.55, cldice=0.5, **{'pairs/accuracy': 0.7}),
                   dict(iter=20, dice=0.6, cldice=0.55, checkpoint='best_dice_iter_20.pth', sha256='77' * 32,
                        **{'pairs/accuracy': 0.9})]
        (training / 'val_history.json').write_text(json.dumps(history))
        lines = [{'train/loss': 1 - step / 40, 'dpo_loss': 0.1, 'accuracy': 0.6, 'margin': 0.2, 'chosen_rewards': 0.1,
                  'rejected_rewards': -0.1, 'step': step} for step in (5, 10, 15, 20)]
        (training / '20260101_000000/vis_data/scalars.json').write_text('\n'.join(map(json.dumps, lines)))

    def _pairs(self, gaps=(0.1, 0.3)):
        root = self.path / 'pairs'
        (root / 'masks').mkdir(parents=True)
        write_images(root, self.names)
        records = []
        for index, gap in enumerate(gaps):
            for side, quality in (('chosen', 0.9), ('rejected', 0.6)):
                Image.fromarray(predicted(index, quality).astype(np.uint8) * 255).save(
                    root / f'masks/{index}_{side}.png')
            records.append(dict(
                image=f'images/{self.names[index]}.png', chosen_mask=f'masks/{index}_chosen.png',
                rejected_mask=f'masks/{index}_rejected.png', chosen_iou=round(0.5 + gap, 3), rejected_iou=0.5,
                iou_gap=gap, prompt='<image>Please segment.', chosen_source='greedy', rejected_source='threshold:0.7'))
        (root / 'dpo_annotations.json').write_text(json.dumps(records))
        (root / 'generation_report.json').write_text(json.dumps(dict(
            warnings=['few pairs'],
            judge_agreement=dict(Consensus=dict(tau=0.42, low=0.3, high=0.55, images=9, trusted=True, taus=[])))))

    def write(self):
        for name in ('identity', 'state', 'summary'):
            file = dict(identity='job.json').get(name, f'{name}.json')
            (self.path / file).write_text(json.dumps(getattr(self, name)))
        return self.path


@pytest.fixture
def job_folder(tmp_path):
    return lambda **options: JobFolder(tmp_path / 'job', **options)
