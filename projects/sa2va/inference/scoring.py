"""The one loop that predicts masks, and scores them where there is ground truth: ``tools/test.py``, ``sa2va-dpo``
``predict``, the main job, the choice of the input size, the study.

Validation inside training goes through mmengine's runner (several processes, padded samplers); what it shares is the
model's ``predict`` and :func:`sa2va_dpo.evaluation.vessel_metric.score_sample`.
"""
from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Callable, Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from sa2va_dpo.common.console import progress
from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.seg_dataset import VesselSegDataset, vessel_seg_collate
from sa2va_dpo.evaluation.scores import score_mask
from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric, score_sample
from sa2va_dpo.models.checkpoint import base_directory, default_dtype, load_checkpoint
from sa2va_dpo.models.run_model import Sa2VARunModel

Score = Callable[..., dict[str, float]]


def load_for_inference(checkpoint: str | Path, device: str | None = None, base: str | Path | None = None
                       ) -> Sa2VARunModel:
    """A checkpoint directory as a model that predicts, in eval mode, on ``device`` (default: a GPU where there is
    one).

    Args:
        base: the checkpoint of an adapter, where it is not at the recorded path.
    """
    device = pick_device(device)
    if base is None:
        return Sa2VARunModel(str(checkpoint), device=device).to(device).eval()
    whole = base_directory(checkpoint, base)  # its tokenizer and input size are the adapter's too
    policy = load_checkpoint(checkpoint, dtype=default_dtype(whole, device), device=device, base=base)
    return Sa2VARunModel(str(whole), device=device, policy=policy).to(device).eval()


def images_of(source: dict | Dataset, checkpoint: str | Path, view: dict | None = None) -> VesselSegDataset:
    """A source of images with masks as the model's inputs; ``source`` and ``view`` as in ``VesselSegDataset``."""
    return VesselSegDataset(source, str(checkpoint), view=view)


def some_of(source: Dataset, most: int) -> Subset:
    """At most so many items of a source, evenly spread, the first among them."""
    count = len(source)  # type: ignore[arg-type]
    return Subset(source, range(0, count, max(1, -(-count // most))))


@torch.no_grad()
def predictions(model: Sa2VARunModel, batches: Iterable[dict]) -> Iterator[list[dict]]:
    """The predicted samples of each batch (see ``Sa2VARunModel.predict``).

    Args:
        model: predicts on the device where its parameters are; in eval mode while the loop runs, then as it was.
        batches: what :func:`sa2va_dpo.datasets.seg_dataset.vessel_seg_collate` gives.
    """
    training = model.training
    model.eval()
    try:
        for data in batches:
            yield list(model.test_step(data))
    finally:
        model.train(training)


def predict_and_score(
    model: Sa2VARunModel,
    dataset: Dataset,
    batch_size: int = 1,
    score: Score = score_mask,
    desc: str | None = None,
    collate: Callable[[list], dict] | None = None,
) -> Iterator[tuple[dict, dict]]:
    """Predict the masks of a data set and score each, in the order of the data set.

    Args:
        model: predicts on the device where its parameters are; in eval mode while the loop runs, then as it was.
        dataset: items for ``collate``, such as a ``VesselSegDataset`` with ``training=False``.
        batch_size: images per forward pass; they may differ in size.
        score: (predicted, true bool [H, W]) -> metric name -> value.
        desc: name of a progress bar; ``None`` shows none.
        collate: items -> batch; ``None`` is ``vessel_seg_collate`` with the model's own preprocessor.

    Yields:
        (sample, scores): ``sample`` has ``pred_mask`` and ``gt_mask`` (bool [H, W]), ``image_id``, and ``image`` where
        the data set gives it.

    Raises:
        ValueError: a prediction that does not fit its ground truth; names the image.
    """
    loader = DataLoader(dataset, batch_size=batch_size,
                        collate_fn=collate or partial(vessel_seg_collate, preprocessor=model.checkpoint))
    with (progress(total=len(dataset), desc=desc or '', unit='image', disable=desc is None) as bar,
          closing(predictions(model, loader)) as predicted):
        for samples in predicted:
            for sample in samples:
                yield sample, score_sample(sample, score)
                bar.update()


def evaluate_model(model: Sa2VARunModel, dataset: Dataset, out_dir: Path, device: str = 'cpu', seed: int = 0,
                   overlays: bool = True, batch_size: int = 1, desc: str = 'test') -> dict:
    """Predict every image, write ``metrics.json``, ``per_image.csv``, ``predictions/*.png`` and ``overlays/*.png`` into
    ``out_dir``.

    Args:
        model: moved to ``device``.
        dataset: a ``VesselSegDataset`` with ``training=False``.
        seed: of the bootstrap.
        overlays: write a picture of every image.
        batch_size: images per forward pass.
        desc: name of the progress bar.

    Returns:
        Metric name -> mean over images (float), and ``n_images`` (int).
    """
    metric = VesselSegMetric(out_dir=str(out_dir), overlays=overlays, masks=True, seed=seed)
    for sample, scores in predict_and_score(model.to(device), dataset, batch_size, desc=desc):
        metric.add(sample, scores)
    return dict(metric.evaluate(len(dataset)), n_images=len(dataset))
