"""Folders of small pictures, pairs made of them, and settings from a command line."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.commands.job.flags import build_parser
from sa2va_dpo.commands.job.settings import settings_from
from sa2va_dpo.common.bundled import bundled_checkpoint


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch, repo_root):
    """The guide's default paths are relative; only what is bundled is there."""
    link = tmp_path / 'projects'
    link.symlink_to(repo_root / 'projects')
    monkeypatch.chdir(tmp_path)
    assert (
        Path(bundled_checkpoint()) == Path('projects/sa2va/assets/tiny_sa2va') and Path(bundled_checkpoint()).is_dir()
    )
    return tmp_path


@pytest.fixture
def settings_of():
    return lambda *options: settings_from(build_parser().parse_args([str(option) for option in options]))


def _picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)


def _write(folder, stems):
    """``images`` and ``gt`` below ``folder``; a stem may be ``(stem, seed of its picture)``."""
    for name in ('images', 'gt'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, item in enumerate(stems):
        stem, seed = item if isinstance(item, tuple) else (item, sum(map(ord, item)) * 100 + index)
        Image.fromarray(_picture(seed)).save(folder / 'images' / f'{stem}.png')
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / 'gt' / f'{stem}.png')
    return folder / 'images', folder / 'gt'


@pytest.fixture
def write_folders():
    return _write


@pytest.fixture
def write_pairs():
    """(folder, stems of training, of validation, of the test) -> data root in the generator's form."""

    def write(root, train, val=(), test=()):
        _write(root, [*train, *val, *test])
        (root / 'masks').mkdir(exist_ok=True)
        Image.fromarray(np.ones((8, 8), np.uint8) * 255).save(root / 'masks/full.png')

        def name(item):
            return item[0] if isinstance(item, tuple) else item

        pairs = [
            dict(
                image=f'images/{name(i)}.png',
                chosen_mask=f'gt/{name(i)}.png',
                rejected_mask='masks/full.png',
                chosen_iou=1.0,
                rejected_iou=0.125,
                iou_gap=0.875,
                prompt='<image>Please segment the vessels.',
                gt_mask=f'gt/{name(i)}.png',
            )
            for i in train
        ]
        (root / 'dpo_annotations.json').write_text(json.dumps(pairs))
        for file, items in (('val_annotations.json', val), ('test_annotations.json', test)):
            if items:
                (root / file).write_text(
                    json.dumps(
                        [
                            dict(
                                image=f'images/{name(i)}.png',
                                mask=f'gt/{name(i)}.png',
                                prompt='<image>Please segment the vessels.',
                            )
                            for i in items
                        ]
                    )
                )
        return root

    return write
