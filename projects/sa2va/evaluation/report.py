"""Results on disk: ``metrics.json``, ``per_image.csv`` and pictures, each written whole or not at all."""
from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Mapping, Sequence

import cv2
import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_bytes, write_json

from .bootstrap import bootstrap_ci

METRICS_FILE = 'metrics.json'
PER_IMAGE_FILE = 'per_image.csv'
PREDICTIONS = 'predictions'  # folder of the masks that a test predicted


def summarise(rows: Sequence[Mapping], *, n_resamples: int = 2000, seed: int = 0, level: float = 0.95) -> dict:
    """Mean and bootstrap interval of every numeric column.

    Args:
        rows: one mapping an image: ``image_id`` (str) and metric columns (finite numbers), the same in every row.
        n_resamples, seed, level: see :func:`sa2va_dpo.evaluation.bootstrap.bootstrap_ci`.

    Returns:
        ``{"n_images", "seed", "n_resamples", "level", "metrics": {name: {"mean", "ci_low", "ci_high"}}}``.

    Raises:
        ValueError: no rows, rows with different columns, a value that is not a finite number.
    """
    names = _metric_names(rows)
    metrics = {}
    for name in names:
        values = [float(row[name]) for row in rows]
        try:
            low, high = bootstrap_ci(values, n_resamples, seed, level)
        except ValueError as error:
            raise ValueError(f'column {name}: {error}') from None
        metrics[name] = dict(mean=float(np.mean(values)), ci_low=low, ci_high=high)
    return dict(n_images=len(rows), seed=seed, n_resamples=n_resamples, level=level, metrics=metrics)


def write_report(out_dir: str | os.PathLike, rows: Sequence[Mapping], *, n_resamples: int = 2000, seed: int = 0,
                 level: float = 0.95, fields_of_view: int = 0) -> dict:
    """Write ``metrics.json`` (what :func:`summarise` returns) and ``per_image.csv`` into ``out_dir``.

    ``fields_of_view``: of how many images only the pixels inside the camera's field were scored.

    Both are computed before either is written, and each replaces its predecessor in one step.

    Returns:
        The summary.

    Raises:
        ValueError: as :func:`summarise`.
        OSError: the directory cannot be written.
    """
    summary = dict(summarise(rows, n_resamples=n_resamples, seed=seed, level=level), fields_of_view=fields_of_view)
    names = _metric_names(rows)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(['image_id', *names])
    writer.writerows([row['image_id'], *(f'{float(row[name]):.6f}' for name in names)] for row in rows)

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_bytes(out_dir / PER_IMAGE_FILE, table.getvalue().encode('utf-8'))
    write_json(out_dir / METRICS_FILE, summary, indent=2)
    return summary


def read_per_image(out_dir: str | os.PathLike) -> list[dict]:
    """The rows that :func:`write_report` wrote, in the order of the data set: ``image_id`` and metric columns.

    Raises:
        InputError: the file is missing or is none of ours.
    """
    path = Path(out_dir) / PER_IMAGE_FILE
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):
        raise InputError(f'{path}: missing or unreadable: test again') from None
    try:
        rows = [{name: value if name == 'image_id' else float(value) for name, value in row.items()}
                for row in csv.DictReader(io.StringIO(text, newline=''))]
        summarise(rows, n_resamples=1)
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f'{path}: is no table of scores ({error}): test again') from None
    return rows


def format_summary(summary: Mapping) -> str:
    """The summary as lines of text, one metric a line: name, mean, interval."""
    lines = [f"{summary['n_images']} images, mean [{summary['level']:.0%} bootstrap interval]"]
    if summary.get('fields_of_view'):
        lines.append(
            f"scored inside the camera's field of view: {summary['fields_of_view']} of {summary['n_images']} images"
        )
    width = max(map(len, summary['metrics']))
    for name, value in summary['metrics'].items():
        lines.append(f"{name:<{width}}  {value['mean']:8.4f}  [{value['ci_low']:.4f}, {value['ci_high']:.4f}]")
    return '\n'.join(lines)


def write_png(path: str | os.PathLike, rgb: np.ndarray) -> None:
    """Write a uint8 [H, W, 3] RGB or [H, W] grey (bool: 0/255) array as PNG, creating parent directories.

    Raises:
        ValueError: another dtype or shape.
        OSError: the file cannot be written.
    """
    if rgb.dtype == np.bool_:
        rgb = rgb.astype(np.uint8) * 255
    if rgb.dtype != np.uint8 or not (rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)):
        raise ValueError(f'a picture must be uint8 [H, W, 3] or [H, W], not {rgb.dtype} {rgb.shape}')
    encoded = cv2.imencode('.png', rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    write_bytes(path, encoded.tobytes())


def _metric_names(rows: Sequence[Mapping]) -> list[str]:
    if not rows:
        raise ValueError('no images were evaluated: there is nothing to report')
    names = [name for name in rows[0] if name != 'image_id']
    for row in rows:
        if 'image_id' not in row or [name for name in row if name != 'image_id'] != names:
            raise ValueError(f'every row must have image_id and the columns {", ".join(names)}')
    return names
