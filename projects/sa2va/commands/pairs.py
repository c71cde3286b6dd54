"""``scripts/generate_dpo_dataset.py``."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sa2va_dpo.common import console
from sa2va_dpo.common.arguments import ArgumentParser

CONFIG = 'projects/sa2va/configs/sa2va_dpo_vessel.py'
DESCRIPTION = "Build preference pairs from the model's own predictions or from predictions that exist already."


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=DESCRIPTION, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add('--mode', required=True, choices=['generate', 'from_predictions'])
    add('--images_dir', required=True,
        help='images; with from_predictions the folder that holds one sub-folder of masks per method')
    add('--gt_dir', default=None, help='ground-truth masks of the same stem; only some judges do without')
    add('--output_dir', required=True, help='data root to write')
    add('--model_path', help='checkpoint directory (mode generate)')
    add('--num_samples', type=int, help='distinct candidates per image (default 5)')
    add('--min_iou_gap', type=float, help='smaller differences make no pair (default 0.05; > 0.1 is recommended)')
    add('--prompt', help="the question of every image (default: the guide's)")
    add('--seed', type=int, help='of perturbations, choices and the split (default 0)')
    add('--max_pairs_per_image', type=int, help='default: all')
    add(
        '--val_fraction', type=float, help='share of the patients kept for validation (default 0.1; without --gt_dir 0)'
    )
    add(
        '--test_fraction',
        type=float,
        help='share of the patients kept for the test, no pair is made of them (default 0.2)',
    )
    add('--group_regex', help='first group of this expression on the file stem is the patient')
    add('--source_images_dir', help='original images (from_predictions; default: images beside --gt_dir)')
    add('--include_gt', action='store_true', help='the ground truth is a candidate, too')
    add('--sources', nargs='+', metavar='NAME[=WEIGHT]', help='candidate sources, see docs/pairs.md')
    add('--candidate_models', nargs='+', metavar='DIR', help='other checkpoints whose masks are candidates')
    add('--judge', nargs='+', metavar='NAME[=WEIGHT]', help='what decides which mask is better (default IoU)')
    add('--pairing', help='which candidates meet (default AllPairs), see docs/pairs.md')
    add('--dice_tolerance', type=float, metavar='X',
        help='with --pairing TopologyMatched: how far the Dice of two masks may be apart (default 0.01)')
    add('--cells', type=int, metavar='N', help='chosen is put together from the best candidate of each of N x N cells')
    add('--balance', action='store_true', help='as many over- as under-segmenting rejected masks per image')
    add('--max_candidate_iou', type=float, help='more similar candidates are duplicates (default 0.98)')
    add('--link', action='store_true', help='hard links to the images instead of copies')
    add('--device', help='cpu, cuda, ... (default: a GPU where there is one)')
    add('--overwrite', action='store_true', help='replace pairs made with other settings')
    console.add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    settings = vars(parse_args(argv))
    console.begin(settings.pop('verbose', False))
    from sa2va_dpo.preferences.config import GenerateConfig
    from sa2va_dpo.preferences.generate import LOG, generate_pairs

    overwrite = settings.pop('overwrite', False)
    # What was not given keeps the default that GenerateConfig states.
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    config = GenerateConfig(**given)
    generate_pairs(config, overwrite=overwrite)
    # Not before: the folder is the run's own only once it was claimed.
    console.log_to(Path(config.output_dir) / LOG)
    console.next_step(f'python scripts/review_pairs.py --data_root {config.output_dir} --reviewer NAME',
                      f'python tools/train.py {CONFIG} --data-root {config.output_dir}')
    return 0
