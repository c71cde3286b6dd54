"""What a generation run says about its pairs, in numbers and in warnings."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Sequence

import numpy as np

from .rank_agreement import agreement_of_entries

if TYPE_CHECKING:
    from sa2va_dpo.datasets.splits import Split

    from .config import GenerateConfig

GAP_EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
FEW_PAIRS = 100
_MOST_NAMED = 10  # the rest is in generation_report.json


def summarise_pairs(train: Sequence[dict], val: Sequence[dict], images: Sequence[dict], config: 'GenerateConfig',
                    skipped: Sequence[str], split: 'Split') -> dict:
    """The report.

    Args:
        train, val: records of pairs.
        images: one journal entry an image that pairs were mined of: ``candidates`` (source, iou, score),
            ``duplicates``, ``dropped_gap``, ``records``, ``missing`` (``method/stem`` without a file).
        config: of the run.
        skipped: images without ground truth.
        split: of the images.

    Returns:
        JSON-ready; histograms, win rates and shares are of the training pairs. Gaps are the judge's.
        ``greedy_score`` and ``best_score`` are the judge's of the first candidate and of the best one, ``diversity`` is
        1 - mean IoU of two candidates; means over images.
        ``taken_over`` is how many images' pairs are an earlier run's (``preferences/earlier.py``).
        ``chosen_agrees_with_ground_truth`` is the share of the pixels on which a pair disagrees where chosen is right,
        over all pairs' pixels.
    """
    gaps = np.array([gap(pair) for pair in train])
    disagreement = [pair['disagreement_pixels'] for pair in train]
    first = [c['iou'] for image in images for c in image['candidates'][:1] if c['source'] == 'greedy']
    best = [
        max(ious)
        for image in images
        if (ious := [c['iou'] for c in image['candidates'] if c['source'] != 'ground_truth' and c['iou'] is not None])
    ]
    scored = [image for image in images if image['candidates'] and image['candidates'][0]['score'] is not None]
    report = dict(
        train_pairs=len(train),
        val_pairs=len(val),
        images=len(images),
        split=split.sizes(),
        train_images=len({pair['image'] for pair in train}),
        images_without_pairs=[image['image'] for image in images if not image['records']],
        skipped_without_ground_truth=list(skipped),
        missing_predictions=[name for image in images for name in image['missing']],
        taken_over=sum(bool(image.get('taken_over')) for image in images),
        duplicates_removed=sum(image['duplicates'] for image in images),
        pairs_dropped_for_gap=sum(image['dropped_gap'] for image in images),
        candidates_per_image=_spread([len(image['candidates']) for image in images]),
        pairs_per_image=_spread([len(image['records']) for image in images]),
        pairs_by_image={image['image']: len(image['records']) for image in images},
        greedy_iou=_mean(first),
        best_candidate_iou=_mean(best),
        greedy_score=_mean(
            [image['candidates'][0]['score'] for image in scored if image['candidates'][0]['source'] == 'greedy']
        ),
        best_score=_mean([max(c['score'] for c in image['candidates'] if c['score'] is not None) for image in scored]),
        diversity=_mean([image['diversity'] for image in images if image.get('diversity') is not None]),
        gap_mean=_mean(gaps),
        gap_histogram=_histogram(gaps),
        disagreement_pixels=_spread(disagreement),
        disagreement_share=_spread([pair['disagreement_pixels'] / pair['pixels'] for pair in train]),
        chosen_agrees_with_ground_truth=None
        if not train or config.gt_dir is None
        else float(np.average([pair['chosen_agreement'] for pair in train], weights=disagreement)),
        rejected_over_segments=_mean([pair['rejected_over_segments'] for pair in train]),
        judge_disagrees_with_iou=sum(pair['iou_gap'] <= 0 for pair in train),
        win_rates=_win_rates(train),
    )
    if agreements := agreement_of_entries(images):
        report['judge_agreement'] = {name: found.to_json() for name, found in agreements.items()}
    report['warnings'] = _warnings(report, images, config)
    if split.note:
        report['warnings'].append(split.note)
    if split.joined:
        report['warnings'].append(
            f'{len(split.joined)} images are copies of another under another name and count as the same '
            f'patient: {", ".join(split.joined[:3])}' + ' and more' * (len(split.joined) > 3)
        )
    return report


def gap(pair: dict) -> float:
    """The judge's gap of a record."""
    return pair['chosen_score'] - pair['rejected_score'] if 'judge' in pair else pair['iou_gap']


def source_kind(source: str) -> str:
    """The kind of a source's name: ``threshold:0.3`` -> ``threshold``; methods and checkpoints keep their names."""
    return source if source.startswith(('prediction:', 'checkpoint:')) else source.split(':')[0]


def _win_rates(pairs: Sequence[dict]) -> dict[str, dict]:
    wins, losses = (Counter(source_kind(pair[side]) for pair in pairs) for side in ('chosen_source', 'rejected_source'))
    return {source: dict(wins=wins[source], losses=losses[source],
                         win_rate=round(wins[source] / (wins[source] + losses[source]), 4))
            for source in sorted(wins | losses)}


def _histogram(gaps: np.ndarray) -> dict[str, int]:
    # Rounded as they are written: a gap of 0.1 belongs to 0.1-0.2 however it was computed.
    gaps = np.round(gaps, 6)
    return {f'{low:g}-{high:g}': int(np.sum((gaps >= low) & ((gaps < high) | (high == GAP_EDGES[-1]))))
            for low, high in zip(GAP_EDGES, GAP_EDGES[1:])}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _spread(values: Sequence[float]) -> dict | None:
    if not len(values):
        return None
    return dict(zip(('min', 'median', 'max'), (float(np.quantile(values, q)) for q in (0, 0.5, 1))))


def _warnings(report: dict, images: Sequence[dict], config: 'GenerateConfig') -> list[str]:
    warnings = []
    if config.min_iou_gap <= 0.1:
        warnings.append(f'min_iou_gap is {config.min_iou_gap:g}: > 0.1 recommended, smaller gaps are a weak signal')
    if report['train_pairs'] < FEW_PAIRS:
        warnings.append(f'{report["train_pairs"]} training pairs: 100 to 500 are a start, 1000 to 5000 are recommended')
    for source, rate in report['win_rates'].items():
        if rate['wins'] + rate['losses'] < 10:
            continue
        if rate['win_rate'] <= 0.05:
            warnings.append(f'{source} loses {1 - rate["win_rate"]:.0%} of its pairs: avoiding it is easily learnt and '
                            'says nothing about the better masks')
        if rate['win_rate'] >= 0.95:
            warnings.append(
                f'{source} wins {rate["win_rate"]:.0%} of its pairs: the policy may learn its style, not quality'
            )
    few = sum(len(image['candidates']) < config.num_samples for image in images)
    if config.mode == 'generate' and few:
        warnings.append(f'{few} images have fewer than {config.num_samples} distinct candidates: '
                        'add --sources or raise --max_candidate_iou')
    if config.gt_dir is None:
        warnings.append(
            'no ground truth: chosen_iou and rejected_iou are estimates, and an estimate can be confidently wrong'
        )
        warnings.append(
            'no ground truth: '
            + (
                'val_annotations.json is not written, training cannot select by validation Dice'
                if config.val_fraction
                else 'nothing could be scored, so no patient is held out'
            )
        )
    if report['judge_disagrees_with_iou']:
        warnings.append(f'the judge prefers a mask of lower or equal IoU in {report["judge_disagrees_with_iou"]} of '
                        f'{report["train_pairs"]} pairs')
    return warnings


def format_split(sizes: dict, note: str | None = None) -> str:
    """What was held out, and how to switch it off, as text."""
    def part(name: str) -> str:
        return f'{sizes[name]["images"]} images of {sizes[name]["patients"]} patients'

    if not sizes['val']['images'] and not sizes['test']['images']:
        return f'warning: {note}' if note else f'split: {part("train")} for training, none held out'
    held = [f'{part(name)} {what}' for name, what in (
        ('val', 'for validation (val_annotations.json)'), ('test', 'for the test (test_annotations.json, no pairs)'))
        if sizes[name]['images']]
    return (
        f'split: {part("train")} for training, '
        + ', '.join(held)
        + '; --val_fraction 0 --test_fraction 0 holds none out'
    )


def format_report(report: dict, brief: bool = False) -> str:
    """The report as text.

    Args:
        brief: how many pairs, what they are worth, what was skipped and the warnings.
    """
    without = len(report['images_without_pairs'])
    lines = [
        f'{report["train_pairs"]} training pairs of {report["train_images"]} images, {report["val_pairs"]} validation '
        f'pairs; {report["images"]} images in all, {without} without a pair'
    ]
    if not brief and (report['split']['val']['images'] or report['split']['test']['images']):
        lines.append(format_split(report['split']))
    for name, label in (('pairs_per_image', 'pairs per image'), ('candidates_per_image', 'candidates per image'),
                        ('disagreement_pixels', 'pixels on which a pair disagrees'),
                        ('disagreement_share', 'the same, share of the image')):
        if report[name] and not brief:
            lines.append(f'{label}: ' + ', '.join(f'{key} {value:.4g}' for key, value in report[name].items()))
    if report['best_candidate_iou'] is not None:
        greedy = '' if report['greedy_iou'] is None else f'greedy {report["greedy_iou"]:.4f}, '
        lines.append(f'mean IoU: {greedy}best candidate {report["best_candidate_iou"]:.4f}')
    if report['train_pairs'] and not brief:
        lines.append('gap: mean %.4f; ' % report['gap_mean']
                     + ', '.join(f'{span}: {count}' for span, count in report['gap_histogram'].items()))
        if report['chosen_agrees_with_ground_truth'] is not None:
            lines.append(
                f'chosen agrees with the ground truth on {report["chosen_agrees_with_ground_truth"]:.1%} of the '
                'pixels on which the two masks differ'
            )
        lines.append(f'rejected over-segments in {report["rejected_over_segments"]:.0%} of the pairs')
        lines.append('wins by source: ' + ', '.join(
            f'{source} {rate["wins"]}/{rate["wins"] + rate["losses"]}' for source, rate in report['win_rates'].items()))
    if not brief:
        lines.append(f'left out: {report["pairs_dropped_for_gap"]} pairs below the gap or tied, '
                     f'{report["duplicates_removed"]} near-duplicate candidates')
    for name, label in (('skipped_without_ground_truth', 'skipped, no ground truth'),
                        ('missing_predictions', 'missing predictions')):
        if report[name]:
            more = f' and {len(report[name]) - _MOST_NAMED} more' if len(report[name]) > _MOST_NAMED else ''
            lines.append(f'{label} ({len(report[name])}): ' + ', '.join(report[name][:_MOST_NAMED]) + more)
    return '\n'.join(lines + [f'warning: {text}' for text in report['warnings']])
