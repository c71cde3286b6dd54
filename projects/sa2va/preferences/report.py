"""What a generation run says about its pairs, in numbers and in warnings."""
from __future__ import annotations

from collections import Counter
from typing import Sequence

import numpy as np

GAP_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def summarise_pairs(train: Sequence[dict], val: Sequence[dict], images: Sequence[dict], *, min_iou_gap: float,
                    skipped: Sequence[str], missing_predictions: Sequence[str]) -> dict:
    """The report.

    Args:
        train, val: pair entries with their ``extra`` figures (``disagreement``, ``agreement``).
        images: one entry an image: ``candidates`` (source, iou), ``duplicates``, ``dropped_gap``, ``pairs``.
        skipped: images without ground truth.
        missing_predictions: ``method/stem`` without a file.
    """
    gaps = [pair['iou_gap'] for pair in train]
    wins, losses = (Counter(source_kind(pair[side]) for pair in train) for side in ('chosen_source', 'rejected_source'))
    greedy = [c['iou'] for image in images for c in image['candidates'][:1]]
    best = [max(c['iou'] for c in image['candidates'] if c['source'] != 'ground_truth') for image in images]
    report = dict(
        train_pairs=len(train), val_pairs=len(val), images=len(images),
        train_images=len({pair['image'] for pair in train}),
        images_without_pairs=sum(image['pairs'] == 0 for image in images),
        skipped_without_ground_truth=list(skipped), missing_predictions=list(missing_predictions),
        duplicates_removed=sum(image['duplicates'] for image in images),
        pairs_dropped_for_gap=sum(image['dropped_gap'] for image in images),
        candidates_per_image=_quantiles([len(image['candidates']) for image in images]),
        pairs_per_image=_quantiles([image['pairs'] for image in images]),
        first_candidate_iou=float(np.mean(greedy)) if greedy else None,
        best_candidate_iou=float(np.mean(best)) if best else None,
        gap_histogram={f'{low:g}-{high:g}': int(np.sum((np.array(gaps) >= low) & (np.array(gaps) < high + (high == 1))))
                       for low, high in zip(GAP_EDGES, GAP_EDGES[1:])} if gaps else {},
        gap_mean=float(np.mean(gaps)) if gaps else None,
        disagreement_pixels=_quantiles([pair['disagreement_pixels'] for pair in train]),
        chosen_agrees_with_ground_truth=float(np.average(
            [pair['chosen_agreement'] for pair in train],
            weights=[pair['disagreement_pixels'] for pair in train])) if train else None,
        win_rates={source: dict(wins=wins[source], losses=losses[source],
                                win_rate=round(wins[source] / (wins[source] + losses[source]), 4))
                   for source in sorted(wins | losses)})
    report['warnings'] = _warnings(report, min_iou_gap)
    return report


def source_kind(source: str) -> str:
    """The kind of a source's name: ``threshold:0.3`` -> ``threshold``; methods on disk keep their names."""
    return source if source.startswith('prediction:') else source.split(':')[0]


def _quantiles(values: Sequence[float]) -> dict | None:
    if not values:
        return None
    return dict(zip(('min', 'median', 'max'), (float(np.quantile(values, q)) for q in (0, 0.5, 1))))


def _warnings(report: dict, min_iou_gap: float) -> list[str]:
    warnings = []
    if min_iou_gap <= 0.1:
        warnings.append(f'min_iou_gap is {min_iou_gap:g}: > 0.1 is recommended, smaller gaps are a weak signal')
    if report['train_pairs'] < 100:
        warnings.append(f'{report["train_pairs"]} training pairs: 100 to 500 are a start, 1000 to 5000 are recommended')
    for source, rate in report['win_rates'].items():
        if rate['wins'] + rate['losses'] >= 10 and rate['win_rate'] >= 0.95:
            warnings.append(f'{source} wins {rate["win_rate"]:.0%} of its pairs: the policy may learn its style, not quality')
    return warnings


def format_report(report: dict) -> str:
    """The report as text."""
    lines = [f'{report["train_pairs"]} training pairs of {report["train_images"]} images, {report["val_pairs"]} validation pairs; '
             f'{report["images"]} images in all, {report["images_without_pairs"]} without a pair']
    for name, label in (('pairs_per_image', 'pairs per image'), ('candidates_per_image', 'candidates per image'),
                        ('disagreement_pixels', 'pixels on which a pair disagrees')):
        if report[name]:
            lines.append(f'{label}: ' + ', '.join(f'{key} {value:g}' for key, value in report[name].items()))
    if report['first_candidate_iou'] is not None:
        lines.append(f'IoU with ground truth: first candidate {report["first_candidate_iou"]:.4f}, '
                     f'best candidate {report["best_candidate_iou"]:.4f}')
    if report['train_pairs']:
        lines.append('iou_gap: mean %.4f; ' % report['gap_mean']
                     + ', '.join(f'{span}: {count}' for span, count in report['gap_histogram'].items()))
        lines.append(f'chosen agrees with the ground truth on {report["chosen_agrees_with_ground_truth"]:.1%} of the '
                     'pixels on which the two masks differ')
        lines.append('wins by source: ' + ', '.join(
            f'{source} {rate["wins"]}/{rate["wins"] + rate["losses"]}' for source, rate in report['win_rates'].items()))
    lines.append(f'left out: {report["pairs_dropped_for_gap"]} pairs below min_iou_gap or tied, '
                 f'{report["duplicates_removed"]} near-duplicate candidates')
    for name, label in (('skipped_without_ground_truth', 'skipped, no ground truth'),
                        ('missing_predictions', 'missing predictions')):
        if report[name]:
            lines.append(f'{label} ({len(report[name])}): ' + ', '.join(report[name]))
    return '\n'.join(lines + [f'warning: {text}' for text in report['warnings']])
