"""The evaluator of validation and test loops."""
from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from PIL import Image

from .overlay import overlay
from .report import PREDICTIONS, write_png, write_report
from .scores import METRIC_NAMES, score_mask

_FIELD = 'field_of_view'


@METRICS.register_module()
class VesselSegMetric(BaseMetric):
    """Scores binary masks image by image and averages over images.

    Every process scores its own images and keeps only numbers; mmengine gathers these, drops what the sampler padded,
    and computes the averages on the main process.

    Args:
        out_dir: where to write ``metrics.json`` and ``per_image.csv`` (by the main process); None writes nothing.
        overlays: write ``overlays/<image_id>.png`` into ``out_dir``; each sample then needs ``image``.
        masks: write the predicted masks as ``predictions/<image_id>.png`` (0 and 255) into ``out_dir``.
        n_resamples, seed: of the bootstrap interval in ``metrics.json``.
        collect_device, prefix, collect_dir: as mmengine's ``BaseMetric``; without a prefix the names are ``dice``, ...

    Attributes:
        per_image: the rows of the last evaluation, ``image_id`` and all of
            :data:`sa2va_dpo.evaluation.scores.METRIC_NAMES` (main process only).
        summary: what ``metrics.json`` holds (main process only, with ``out_dir``).

    Raises:
        ValueError: ``overlays`` or ``masks`` without ``out_dir``.
    """

    # An empty prefix, unlike None, is no prefix without a warning.
    default_prefix = ''

    def __init__(self, out_dir: str | None = None, overlays: bool = False, n_resamples: int = 2000, seed: int = 0,
                 collect_device: str = 'cpu', prefix: str | None = None, collect_dir: str | None = None,
                 masks: bool = False) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        for name, wanted in (('overlays', overlays), ('masks', masks)):
            if wanted and out_dir is None:
                raise ValueError(f'VesselSegMetric: {name}=True needs out_dir, the directory to write them to')
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.overlays, self.masks = overlays, masks
        self.n_resamples = n_resamples
        self.seed = seed
        self.per_image: list[dict] = []
        self.summary: dict | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score one batch.

        Args:
            data_batch: not used.
            data_samples: dicts with ``pred_mask`` and ``gt_mask`` (bool [H, W], numpy or torch), ``image_id`` (str)
                and, for overlays, ``image`` (path, or uint8 [H, W, 3] RGB array). With ``field_of_view`` (bool [H, W],
                True inside) only the pixels inside are scored.

        Raises:
            ValueError: a sample without one of these or with masks that do not fit, naming the image.
        """
        for sample in data_samples:
            self.add(sample, score_sample(sample))

    def add(self, sample: dict, scores: dict[str, float]) -> None:
        """Take in one image that is scored already (:func:`score_sample`), and write its mask and overlay."""
        image_id = str(sample['image_id'])
        if self.masks:
            assert self.out_dir is not None  # __init__ refuses masks without it
            write_png(prediction_file(self.out_dir, image_id), _as_mask(sample, 'pred_mask'))
        if self.overlays:
            try:
                self._write_overlay(
                    sample, image_id, _as_mask(sample, 'pred_mask'), _as_mask(sample, 'gt_mask'), scores
                )
            except ValueError as error:
                raise ValueError(f'{image_id}: {error}') from None
        self.results.append(
            dict(image_id=image_id, **scores, **({_FIELD: True} if sample.get(_FIELD) is not None else {}))
        )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Means over images of all metrics.

        Raises:
            ValueError: no results.
        """
        if not results:
            raise ValueError('no images were evaluated: there is nothing to report')
        fields = sum(row.get(_FIELD, False) for row in results)
        self.per_image = [{name: value for name, value in row.items() if name != _FIELD} for row in results]
        if self.out_dir is not None:
            self.summary = write_report(self.out_dir, self.per_image, n_resamples=self.n_resamples, seed=self.seed,
                                        fields_of_view=fields)
        return {name: float(np.mean([row[name] for row in results])) for name in METRIC_NAMES}

    def _write_overlay(self, sample: dict, image_id: str, pred: np.ndarray, target: np.ndarray, scores: dict) -> None:
        image = sample.get('image')
        if image is None:
            raise ValueError('overlays need the image (a path or an RGB array) in the sample')
        if isinstance(image, (str, os.PathLike)):
            with Image.open(image) as file:
                image = np.array(file.convert('RGB'))
        picture = overlay(image, pred, target, caption=f"Dice {scores['dice']:.3f}  clDice {scores['cldice']:.3f}")
        assert self.out_dir is not None  # __init__ refuses overlays without it
        write_png(self.out_dir / 'overlays' / f'{file_stem(image_id)}.png', picture)


def prediction_file(out_dir: str | os.PathLike, image_id: str) -> Path:
    """Where the predicted mask of an image is written."""
    return Path(out_dir) / PREDICTIONS / f'{file_stem(image_id)}.png'


def score_sample(sample: dict, score: Callable[..., dict[str, float]] = score_mask) -> dict[str, float]:
    """The scores of one predicted sample (see ``VesselSegMetric.process`` for its fields).

    Args:
        score: (predicted, true bool [H, W]) -> metric name -> value; ``field_of_view`` is passed on by name where the
            sample has one.

    Raises:
        ValueError: a field is missing or the masks do not fit; names the image.
    """
    if sample.get('image_id') is None:
        raise ValueError('a data sample has no image_id')
    try:
        field = {} if sample.get(_FIELD) is None else {_FIELD: _as_mask(sample, _FIELD)}
        return score(_as_mask(sample, 'pred_mask'), _as_mask(sample, 'gt_mask'), **field)
    except ValueError as error:
        raise ValueError(f"{sample['image_id']}: {error}") from None


def _as_mask(sample: dict, key: str) -> np.ndarray:
    mask = sample.get(key)
    if mask is None:
        raise ValueError(f'{key} is missing from the sample')
    return as_array(mask)


def as_array(value: Any) -> np.ndarray:
    """A tensor of any device, or what numpy takes, as an array."""
    return value.numpy(force=True) if hasattr(value, 'detach') else np.asarray(value)


def file_stem(image_id: str) -> str:
    """A file name, without its ending, for an image id, which may hold separators; ids that had to change keep apart by
    a short hash."""
    stem = re.sub(r'[/\\\x00-\x1f:*?"<>|]', '_', image_id).lstrip('.') or '_'
    stem = stem.encode()[:200].decode(errors='ignore')  # file systems count bytes, 255 at most
    if stem != image_id:
        stem += '-' + hashlib.sha256(image_id.encode()).hexdigest()[:8]
    return stem
