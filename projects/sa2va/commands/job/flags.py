"""The main job's command line: names, help texts, nothing else."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.choices import JUDGES
from sa2va_dpo.common.console import add_verbose


def build_parser() -> argparse.ArgumentParser:
    """Flags whose default depends on others are ``None`` until :func:`.settings.settings_from` fills them in."""
    parser = ArgumentParser(
        prog='train_dpo_vessel.sh',
        description='Preference pairs, from the model itself or made before, DPO training, test before and after, '
                    'export.',
    )
    add = parser.add_argument
    add(
        '--model', help='checkpoint directory (default: models/sa2va_vessel_hf if it exists, else the bundled tiny one)'
    )
    add(
        '--images',
        help='folder of images (default: data/merged_vessel_data/images if it exists, else a drawn demo set); with '
        '--pairs, of the test images',
    )
    add('--gt', help='folder of their ground-truth masks (default: data/merged_vessel_data/masks if it exists)')
    add(
        '--pairs',
        metavar='DIR',
        help='pairs that exist already, a folder with dpo_annotations.json (default: data/dpo_vessel if '
        'it holds one and --images is not given, else pairs are made)',
    )
    add('--config', help='training config (default: the full or a tiny one, as model and candidates)')
    add('--work-dir', default='work_dirs/dpo_vessel_training')
    add(
        '--sam_size',
        default='auto',
        metavar='auto|keep|N',
        help='side of the SAM2 input in pixels: auto measures some sizes on training images and needs a checkpoint '
             'with a sam2_dims.json, as the bundled one; released checkpoints keep 1024',
    )
    add(
        '--grid',
        default='auto',
        metavar='auto|keep|measure|N',
        help='tiles along each axis in which the model looks at an image (docs/resolution.md): keep is as the model '
             'states it, by default the whole image; measure tries some by short trainings on training images, which '
             'takes about as long as the job itself; auto measures where the images have at least twice as many '
             'pixels along a side as the model sees, else keeps',
    )
    add(
        '--refine',
        action='store_true',
        help='also train a small refinement of the logits on SAM2\'s stride-4 features, scored at the full input size; '
             'the export then has one file more, which upstream\'s code does not read (docs/resolution.md)',
    )
    add('--gpus', type=int, default=1, help='more than 1 starts training through torchrun')
    add('--seed', type=int, default=0)
    add('--prompt', help="default: the guide's; with --pairs, that of the pairs")
    add('--num_samples', type=int, help='candidates per image (default 5)')
    add('--min_iou_gap', type=float, help='smaller differences make no pair (default 0.05)')
    add('--max_pairs_per_image', type=int, help='default 10')
    add('--test_fraction', type=float, help='share of the patients kept for the test (default 0.5)')
    add('--val_fraction', type=float, help='share of the remaining patients for validation (default 0.25)')
    add('--group_regex', help='first group of this expression on the file stem is the patient')
    add('--no-gt-candidate', action='store_true',
        help="pairs from the model's own predictions only; the ground truth still ranks them")
    add('--unlabelled', metavar='DIR', help='folder of images without masks, to learn from as well (docs/when.md)')
    add(
        '--judge',
        choices=JUDGES,
        help='who says which candidate is better (default: iou with the ground truth; on --unlabelled '
        'images consensus)',
    )
    add(
        '--rounds',
        type=int,
        metavar='N',
        help='mine the pairs anew N times from the policy as it is (default 1; with --unlabelled 4)',
    )
    add(
        '--without-masks',
        action='store_true',
        help='no image has a mask: --unlabelled alone, with no test, no validation and no promise',
    )
    add(
        '--members', nargs='+', metavar='DIR', help='with --judge committee: checkpoints and folders of masks that vote'
    )
    add(
        '--unlabelled-gt',
        metavar='DIR',
        help='with --judge iou, for studies: masks of the --unlabelled images, which pick in an expert\'s place and '
        'are never trained on',
    )
    add('--predictions', metavar='DIR', help='with --judge predictions: one sub-folder of masks a method')
    add('--clicks', type=int, metavar='N', help='with --judge expert: images to be decided in a round (default: all)')
    add('--reviewer', default='expert', metavar='NAME', help='with --judge expert: who picks (default %(default)s)')
    add('--host', default='127.0.0.1', help='with --judge expert: address of the page (default: this machine only)')
    add('--port', type=int, default=7860, help='0: any that is free (default %(default)s)')
    add(
        '--no-wait', action='store_true', help='with --judge expert: leave with exit code 4 instead of serving the page'
    )
    add('--lang', choices=('en', 'zh'), default='en', help='of report.html (default %(default)s)')
    add('--overwrite', action='store_true', help='remove what earlier runs left in --work-dir, after saying what')
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to training')
    add_verbose(parser)
    return parser
