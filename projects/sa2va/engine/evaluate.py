"""Score a model's masks on a data set: the one evaluation of ``tools/test.py`` and of the main job."""
from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..datasets.mask_io import read_image_rgb
from ..datasets.seg_dataset import vessel_seg_collate
from ..errors import InputError
from ..evaluation.report import write_overlay, write_report
from ..evaluation.vessel_metric import score_masks
from ..models.sa2va_seg_model import Sa2VASegModel


def pick_device(name: str | None) -> str:
    """``name``, or CUDA where there is one; raises InputError for a device that is not here."""
    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise InputError(f'--device {name}: no GPU is visible here: use --device cpu')
    return name


def evaluate_model(model: Sa2VASegModel, dataset: Dataset, out_dir: Path, device: str = 'cpu', seed: int = 0,
                   overlays: int | None = None) -> dict:
    """Predict every image, write ``metrics.json``, ``per_image.csv`` and ``overlays/*.png`` into ``out_dir``.

    Args:
        model: moved to ``device`` and set to eval mode.
        dataset: a ``VesselSegDataset`` with ``training=False``.
        overlays: how many pictures to write; ``None`` writes all.

    Returns:
        The content of ``metrics.json``'s means: metric name -> float, and ``n_images``.
    """
    model = model.to(device).eval()
    loader = DataLoader(dataset, batch_size=1, collate_fn=partial(vessel_seg_collate, preprocessor=model.checkpoint))
    rows = []
    for index, data in enumerate(tqdm(loader, desc='test', unit='image')):
        data = model.data_preprocessor(data)
        image_path = data.pop('image_path')[0]
        [sample] = model(**data, mode='predict')
        rows.append(dict(image_id=sample['image_id'], **score_masks(sample['pred_mask'], sample['gt_mask'])))
        if overlays is None or index < overlays:
            write_overlay(out_dir / 'overlays' / f'{sample["image_id"]}.png', read_image_rgb(Path(image_path)),
                          sample['pred_mask'], sample['gt_mask'])
    return write_report(out_dir, rows, seed=seed)


def format_metrics(metrics: dict) -> str:
    """One line a metric."""
    return '\n'.join(f'{name:16}{value:.4f}' if isinstance(value, float) else f'{name:16}{value}'
                     for name, value in metrics.items())
