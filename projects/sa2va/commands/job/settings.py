"""What one job is: the command line turned into checked, frozen settings by one function."""
from __future__ import annotations

import argparse
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sa2va_dpo.common.bundled import bundled, bundled_checkpoint, config_path
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PAIRS_FILE, TEST_FILE

CONFIGS = 'projects/sa2va/configs'
GUIDE_MODEL = 'models/sa2va_vessel_hf'
GUIDE_IMAGES = 'data/merged_vessel_data/images'
GUIDE_GT = 'data/merged_vessel_data/masks'
GUIDE_PAIRS = 'data/dpo_vessel'

# Flags that name something that must exist, and those of them that are folders of pictures.
PATHS = ('model', 'images', 'gt', 'pairs', 'config', 'unlabelled', 'unlabelled_gt', 'predictions')
FOLDERS = tuple(name for name in PATHS if name not in ('model', 'pairs', 'config'))
# Flags that only the making of pairs reads, and what they are when they are not given.
MINING: dict[str, Any] = dict(
    num_samples=5, min_iou_gap=0.05, max_pairs_per_image=10, test_fraction=0.5, val_fraction=0.25
)
# Settings that change nothing in what comes out.
_NO_EFFECT = ('work_dir', 'overwrite', 'reviewer', 'host', 'port', 'wait', 'lang')
# Along each axis; ``ViewGeometry`` holds the same bound (tests/unit/commands/job/test_settings.py).
MOST_TILES = 8
# The study's choice where images without masks are judged (docs/when.md).
ROUNDS = 4

# Where the test images come from: the job's own split of the images; beside --pairs the folders that were named, the
# pairs' own test_annotations.json, or what is in the guide's folders and not in the pairs; none where no image has a
# mask.
TestFrom = Literal['split', 'named', 'annotations', 'rest', 'none']


@dataclass(frozen=True)
class JobSettings:
    """Everything that one job is told; the names are the command's flags.

    Attributes:
        images, gt: folders; both ``None`` is the drawn demo set, or, with ``test_from='annotations'``, none is needed.
        pairs: data root of pairs that exist; ``None`` makes them in ``work_dir/pairs``.
        sam_size: ``'auto'``, ``'keep'``, or the side of the SAM2 input in pixels.
        grid: ``'keep'`` (as the model states it), ``'measure'`` (by short trainings), ``'auto'`` (measured where the
            images are much larger than the model's input), or tiles along each axis.
        refine: a refinement of the logits is trained as well (``models/refinement.py``).
        gt_candidate: the ground truth is one of the candidates.
        unlabelled_gt: folder of masks that pick in an expert's place (``judge='iou'``), for studies.
        unlabelled: folder of images without masks; ``judge`` ranks their candidates (``clicks``, ``reviewer``,
            ``host``, ``port`` and ``wait`` are only for ``'expert'``, ``members`` and ``predictions`` for those that
            vote).
        rounds: how often pairs are mined anew from the policy as it is; 1 without ``unlabelled`` is a plain run.
        round_gap: smallest gap of the judge's scores in a round; ``None`` is the rounds' own default.
    """

    model: str
    images: str | None
    gt: str | None
    pairs: str | None
    test_from: TestFrom
    config: str
    work_dir: Path
    sam_size: str | int
    grid: str | int
    refine: bool
    gpus: int
    seed: int
    prompt: str | None
    num_samples: int
    min_iou_gap: float
    max_pairs_per_image: int
    test_fraction: float
    val_fraction: float
    group_regex: str | None
    gt_candidate: bool
    unlabelled: str | None
    unlabelled_gt: str | None
    judge: str
    rounds: int
    round_gap: float | None
    members: tuple[str, ...]
    predictions: str | None
    clicks: int | None
    reviewer: str
    host: str
    port: int
    wait: bool
    lang: str
    overwrite: bool
    cfg_options: tuple[str, ...]

    @property
    def mines_in_rounds(self) -> bool:
        """Whether training mines its pairs itself."""
        return self.rounds > 1 or self.unlabelled is not None

    def identity(self) -> dict:
        """JSON values of every setting that decides the result."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items() if name not in _NO_EFFECT}


def settings_from(args: argparse.Namespace) -> JobSettings:
    """Check the command line and fill in the defaults: the guide's paths where they exist, else what is bundled.

    Raises:
        InputError: a value is impossible, a path does not exist, or two flags do not go together.
    """
    if bool(args.images) != bool(args.gt):
        raise InputError('--images and --gt: give both folders, or neither')
    args.model, args.config = args.model and bundled(args.model), args.config and config_path(args.config)
    for flag in PATHS:
        value = getattr(args, flag)
        if value is not None and not Path(value).exists():
            raise InputError(
                f'--{flag} {value}: does not exist: check the path (it is relative to the repository root)'
            )
    _check_numbers(args)
    pairs = _pairs(args)
    images, gt, test_from = _test_images(args, pairs)
    model = args.model or (GUIDE_MODEL if Path(GUIDE_MODEL).is_dir() else bundled_checkpoint())
    return JobSettings(
        model=model,
        images=images,
        gt=gt,
        pairs=pairs,
        test_from=test_from,
        config=args.config or _config(model, args),
        work_dir=Path(args.work_dir),
        sam_size=_sam_size(args.sam_size),
        grid=_grid(args.grid),
        refine=args.refine,
        gpus=args.gpus,
        seed=args.seed,
        prompt=args.prompt,
        **{name: default if getattr(args, name) is None else getattr(args, name) for name, default in MINING.items()},
        group_regex=args.group_regex,
        gt_candidate=not args.no_gt_candidate,
        unlabelled=args.unlabelled,
        unlabelled_gt=args.unlabelled_gt,
        judge=_judge(args, pairs),
        rounds=args.rounds or (ROUNDS if args.unlabelled else 1),
        round_gap=args.min_iou_gap,
        members=tuple(args.members or ()),
        predictions=args.predictions,
        clicks=args.clicks,
        reviewer=args.reviewer,
        host=args.host,
        port=args.port,
        wait=not args.no_wait,
        lang=args.lang,
        overwrite=args.overwrite,
        cfg_options=tuple(args.cfg_options),
    )


def _check_numbers(args: argparse.Namespace) -> None:
    for flag in ('test_fraction', 'val_fraction'):
        value = getattr(args, flag)
        if value is not None and not 0 < value < 1:
            raise InputError(
                f'--{flag} {value:g}: must be above 0 and below 1: validation picks the checkpoint, the test judges it'
            )
    if args.min_iou_gap is not None and not (math.isfinite(args.min_iou_gap) and 0 <= args.min_iou_gap < 1):
        raise InputError(f'--min_iou_gap {args.min_iou_gap}: must be at least 0 and below 1')
    for flag, low in (
        ('gpus', 1),
        ('seed', 0),
        ('num_samples', 2),
        ('max_pairs_per_image', 1),
        ('rounds', 1),
        ('clicks', 1),
        ('port', 0),
    ):
        value = getattr(args, flag)
        if value is not None and value < low:
            raise InputError(f'--{flag} {value}: must be a whole number of at least {low}')
    if args.prompt is not None and not args.prompt.strip():
        raise InputError('--prompt: is empty; leave it out for the default')
    if args.group_regex is not None:
        try:
            re.compile(args.group_regex)
        except re.error as error:
            raise InputError(f'--group_regex {args.group_regex!r}: not a regular expression ({error})') from None
    for option in args.cfg_options:
        if '=' not in option:
            raise InputError(f'--cfg-options {option}: must be KEY=VALUE')


def _sam_size(text: str) -> str | int:
    if text in ('auto', 'keep'):
        return text
    if not text.isdecimal():
        raise InputError(f'--sam_size {text}: must be auto, keep or a number of pixels')
    if int(text) < 64 or int(text) % 64:
        raise InputError(f'--sam_size: {text} is no multiple of 64 pixels')
    return int(text)


def _grid(text: str) -> str | int:
    if text in ('auto', 'keep', 'measure'):
        return text
    if not (text.isdecimal() and 1 <= int(text) <= MOST_TILES):
        raise InputError(f'--grid {text}: must be auto, keep, measure or a number of tiles along each axis, '
                         f'1 to {MOST_TILES}')
    return int(text)


def _pairs(args: argparse.Namespace) -> str | None:
    """The data root whose pairs are used; ``None`` where pairs are to be made."""
    pairs = args.pairs
    if pairs is None:
        if args.images or args.without_masks or not (Path(GUIDE_PAIRS) / PAIRS_FILE).is_file():
            return None
        pairs = GUIDE_PAIRS
    if not (Path(pairs) / PAIRS_FILE).is_file():
        raise InputError(f'--pairs {pairs}: holds no {PAIRS_FILE}: make it with scripts/generate_dpo_dataset.py')
    idle = [f'--{name}' for name in MINING if getattr(args, name) is not None] + [
        '--no-gt-candidate'
    ] * args.no_gt_candidate
    if idle:
        raise InputError(f'{idle[0]}: makes or splits pairs, but those of {pairs} exist and are used: leave it out, or '
                         + ('leave out --pairs' if args.pairs else 'give --images and --gt to make new ones'))
    return pairs


def _test_images(args: argparse.Namespace, pairs: str | None) -> tuple[str | None, str | None, TestFrom]:
    """(images, ground truth, how the test images are found)."""
    if args.without_masks:
        if not args.unlabelled or args.images or pairs:
            raise InputError(
                '--without-masks: means that there is nothing but --unlabelled: give that folder, and neither --images '
                'and --gt nor --pairs'
            )
        return None, None, 'none'
    guide = Path(GUIDE_IMAGES).is_dir() and Path(GUIDE_GT).is_dir()
    if pairs is None:
        images, gt = (args.images, args.gt) if args.images or not guide else (GUIDE_IMAGES, GUIDE_GT)
        return images, gt, 'split'
    if args.images:
        return args.images, args.gt, 'named'
    if (Path(pairs) / TEST_FILE).is_file():
        return None, None, 'annotations'
    if guide:
        return GUIDE_IMAGES, GUIDE_GT, 'rest'
    raise InputError(
        f'{pairs}: no {TEST_FILE} there, so there is nothing to test on: give --images and --gt of other patients, '
        'or make the pairs with --test_fraction above 0'
    )


def _judge(args: argparse.Namespace, pairs: str | None) -> str:
    judge = args.judge or ('consensus' if args.unlabelled else 'iou')
    if judge == 'iou' and args.unlabelled and not args.unlabelled_gt:
        raise InputError(
            '--judge iou: needs ground truth, which --unlabelled images have not: choose expert, consensus, '
            'committee or predictions, or name masks that stand in for an expert with --unlabelled-gt'
        )
    if args.unlabelled_gt and not (judge == 'iou' and args.unlabelled):
        raise InputError('--unlabelled-gt: masks that pick in an expert\'s place: add --unlabelled and --judge iou')
    if judge != 'iou' and not args.unlabelled:
        raise InputError(f'--judge {judge}: is for images without masks: name their folder with --unlabelled')
    if args.clicks is not None and judge != 'expert':
        raise InputError(f'--clicks {args.clicks}: are an expert\'s: add --judge expert')
    for member in args.members or ():
        if not Path(member).is_dir():
            raise InputError(f'--members {member}: no such folder: name checkpoint directories or folders of masks')
    for flag, wanted in (('members', 'committee'), ('predictions', 'predictions')):
        if bool(getattr(args, flag)) != (judge == wanted):
            raise InputError(f'--{flag}: ' + (f'missing; --judge {wanted} needs it' if judge == wanted else
                                             f'belongs to --judge {wanted}: add it, or leave --{flag} out'))
    if pairs and (args.unlabelled or (args.rounds or 1) > 1):
        flag = '--unlabelled' if args.unlabelled else '--rounds'
        raise InputError(f'{flag}: makes new pairs, but those of {pairs} are used: '
                         + ('leave out --pairs' if args.pairs else 'give --images and --gt'))
    return judge


def _config(model: str, args: argparse.Namespace) -> str:
    name = 'sa2va_dpo_vessel'
    if Path(model).resolve() == Path(bundled_checkpoint()).resolve():
        # The study's term for self candidates, with people or a vote for the judge (docs/when.md).
        name += '_tiny_self' if args.no_gt_candidate or args.unlabelled else '_tiny'
    return bundled(f'{CONFIGS}/{name}.py')
