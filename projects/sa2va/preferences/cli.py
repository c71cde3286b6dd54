"""``scripts/generate_dpo_dataset.py``."""
from __future__ import annotations

import argparse

DESCRIPTION = 'Build preference pairs from the model\'s own predictions or from predictions that exist already.'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument('--mode', required=True, choices=['generate', 'from_predictions'])
    parser.add_argument('--images_dir', required=True,
                        help='images; with from_predictions the folder that holds one sub-folder of masks per method')
    parser.add_argument('--gt_dir', required=True, help='ground-truth masks of the same stem')
    parser.add_argument('--output_dir', required=True, help='data root to write')
    parser.add_argument('--model_path', help='checkpoint directory (mode generate)')
    parser.add_argument('--num_samples', type=int, default=5, help='distinct candidates per image')
    parser.add_argument('--min_iou_gap', type=float, default=0.05, help='smaller differences make no pair; > 0.1 is recommended')
    parser.add_argument('--prompt', help="default: the guide's")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--max_pairs_per_image', type=int)
    parser.add_argument('--val_fraction', type=float, default=0.0, help='share of the patients kept for validation')
    parser.add_argument('--group_regex', help='first group of this expression on the file stem is the patient')
    parser.add_argument('--source_images_dir', help='original images (from_predictions; default: images beside --gt_dir)')
    parser.add_argument('--include_gt', action='store_true', help='the ground truth is a candidate, too')
    parser.add_argument('--sources', nargs='+', help='candidate sources (default: all)')
    parser.add_argument('--max_candidate_iou', type=float, default=0.98, help='more similar candidates are duplicates')
    parser.add_argument('--device', help='cpu, cuda, ... (default: a GPU where there is one)')
    parser.add_argument('--overwrite', action='store_true', help='replace pairs made with other settings')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    settings = vars(parse_args(argv))
    from .config import GenerateConfig
    from .generate import generate_pairs

    overwrite = settings.pop('overwrite')
    if settings['sources']:
        settings['sources'] = tuple(settings['sources'])
    # What was not given keeps the default that GenerateConfig states.
    generate_pairs(GenerateConfig(**{name: value for name, value in settings.items() if value is not None}),
                   overwrite=overwrite)
    return 0
