"""Score a model's masks on a data set: the one evaluation of ``tools/test.py`` and of the main job."""
from __future__ import annotations

from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sa2va_dpo.datasets.seg_dataset import vessel_seg_collate
from sa2va_dpo.common.processes import pick_device  # noqa: F401  (commands find it here)
from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel


def evaluate_model(model: Sa2VASegModel, dataset: Dataset, out_dir: Path, device: str = 'cpu', seed: int = 0,
                   overlays: bool = True) -> dict:
    """Predict every image, write ``metrics.json``, ``per_image.csv`` and ``overlays/*.png`` into ``out_dir``.

    Args:
        model: moved to ``device`` and set to eval mode.
        dataset: a ``VesselSegDataset`` with ``training=False``.
        seed: of the bootstrap.
        overlays: write a picture of every image.

    Returns:
        Metric name -> mean over images (float), and ``n_images`` (int).
    """
    model = model.to(device).eval()
    metric = VesselSegMetric(out_dir=str(out_dir), overlays=overlays, seed=seed)
    loader = DataLoader(dataset, batch_size=1, collate_fn=partial(vessel_seg_collate, preprocessor=model.checkpoint))
    for data in tqdm(loader, desc='test', unit='image'):
        metric.process(None, model.test_step(data))
    return dict(metric.evaluate(len(dataset)), n_images=len(dataset))
