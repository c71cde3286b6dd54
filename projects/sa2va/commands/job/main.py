"""The main job end to end: data, pairs, training, test before and after, export, verdict.

Every step is the same code that the guide's separate commands run, and every step can be interrupted: the same
command again goes on where it stopped.
"""
from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sa2va_dpo.datasets.annotations import write_json

TINY_CHECKPOINT = 'projects/sa2va/assets/tiny_sa2va'
GUIDE_MODEL = 'models/sa2va_vessel_hf'
GUIDE_IMAGES = 'data/merged_vessel_data/images'
GUIDE_GT = 'data/merged_vessel_data/masks'
DEMO_IMAGES = 48  # half for the test, a quarter of the other half for validation
NOT_BETTER = 3  # exit code: trained, but validation Dice did not rise
SUMMARY_METRICS = ('dice', 'iou', 'precision', 'recall', 'cldice', 'n_images')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='train_dpo_vessel.sh',
        description='Preference pairs from the model itself, DPO training, test before and after, export.')
    parser.add_argument('--model', help=f'checkpoint directory (default: {GUIDE_MODEL} if it exists, else the bundled tiny one)')
    parser.add_argument('--images', help=f'folder of images (default: {GUIDE_IMAGES} if it exists, else a drawn demo set)')
    parser.add_argument('--gt', help=f'folder of ground-truth masks (default: {GUIDE_GT} if it exists)')
    parser.add_argument('--config', help='training config (default: the full or a tiny one, as model and candidates)')
    parser.add_argument('--work-dir', default='work_dirs/dpo_vessel_training')
    parser.add_argument('--sam_size', default='auto', metavar='auto|keep|N',
                        help='side of the SAM2 input in pixels: auto measures some sizes on training images and needs a '
                             'checkpoint with a sam2_dims.json, as the bundled one; released checkpoints keep 1024')
    parser.add_argument('--gpus', type=int, default=1, help='more than 1 starts training through torchrun')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--prompt', help="default: the guide's")
    parser.add_argument('--num_samples', type=int, default=5, help='candidates per image')
    parser.add_argument('--min_iou_gap', type=float, default=0.05)
    parser.add_argument('--max_pairs_per_image', type=int, default=10)
    parser.add_argument('--test_fraction', type=float, default=0.5, help='share of the patients kept for the test')
    parser.add_argument('--val_fraction', type=float, default=0.25, help='share of the remaining patients for validation')
    parser.add_argument('--group_regex', help='first group of this expression on the file stem is the patient')
    parser.add_argument('--no-gt-candidate', action='store_true',
                        help="pairs from the model's own predictions only; the ground truth still ranks them")
    parser.add_argument('--overwrite', action='store_true', help='remove what an earlier run left in --work-dir')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to tools/train.py')
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Inputs:
    """What the job works on."""
    model: str
    images: str | None  # None: the drawn demo set
    gt: str | None
    config: str


def choose_inputs(args: argparse.Namespace) -> Inputs:
    """Fill in the defaults: the guide's paths where they exist, else what is bundled.

    Raises:
        InputError: a folder that was named does not exist, only one of --images and --gt was given, ``--sam_size`` is
            no size, or nothing would be left for the test or for validation.
    """
    from sa2va_dpo.common.errors import InputError

    if bool(args.images) != bool(args.gt):
        raise InputError('--images and --gt: give both folders, or neither')
    for flag, value in (('--model', args.model), ('--images', args.images), ('--gt', args.gt), ('--config', args.config)):
        if value and not Path(value).exists():
            raise InputError(f'{flag} {value}: does not exist: check the path (it is relative to the repository root)')
    for flag, value in (('--test_fraction', args.test_fraction), ('--val_fraction', args.val_fraction)):
        if not 0 < value < 1:
            raise InputError(f'{flag} {value:g}: must be above 0 and below 1: validation picks the checkpoint, the test judges it')
    if args.sam_size not in ('auto', 'keep'):
        if not args.sam_size.isdecimal():
            raise InputError(f'--sam_size {args.sam_size}: must be auto, keep or a number of pixels')
        if int(args.sam_size) < 64 or int(args.sam_size) % 64:
            raise InputError(f'--sam_size: {args.sam_size} is no multiple of 64 pixels')
    images, gt = args.images, args.gt
    if images is None and Path(GUIDE_IMAGES).is_dir() and Path(GUIDE_GT).is_dir():
        images, gt = GUIDE_IMAGES, GUIDE_GT
    model = args.model or (GUIDE_MODEL if Path(GUIDE_MODEL).is_dir() else TINY_CHECKPOINT)
    name = 'sa2va_dpo_vessel'
    if Path(model).resolve() == Path(TINY_CHECKPOINT).resolve():
        name += '_tiny_own' if args.no_gt_candidate else '_tiny'
    return Inputs(model, images, gt, args.config or f'projects/sa2va/configs/{name}.py')


def claim_work_dir(work_dir: Path, request: dict, overwrite: bool) -> dict | None:
    """Make the work directory ours; returns the summary if exactly this job has finished there before.

    Raises:
        InputError: another job's results are there.
    """
    from sa2va_dpo.common.errors import InputError

    record = work_dir / 'job.json'
    if overwrite and record.is_file():
        shutil.rmtree(work_dir)
    if record.is_file():
        if json.loads(record.read_text(encoding='utf-8')) != request:
            raise InputError(f'{work_dir}: holds a job with other settings (see job.json there): '
                             'choose another --work-dir, or add --overwrite to remove it')
        summary = work_dir / 'summary.json'
        return json.loads(summary.read_text(encoding='utf-8')) if summary.is_file() else None
    work_dir.mkdir(parents=True, exist_ok=True)
    write_json(record, request)
    return None


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


def prepare_data(inputs: Inputs, work_dir: Path, args: argparse.Namespace) -> tuple[list, list, str]:
    """(images for pairs and validation, images for the test, ground-truth folder); drawn first if there are none.

    Raises:
        InputError: too few patients for pairs, validation and test.
    """
    from sa2va_dpo.drawn import write_dataset
    from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of, split_by_group
    from sa2va_dpo.datasets.mask_io import list_images
    from sa2va_dpo.common.errors import InputError

    images, gt = inputs.images, inputs.gt
    if images is None:
        say(f'drawing the demo set (seed {args.seed}) in {work_dir / "demo"}')
        write_dataset(work_dir / 'demo', style='demo', seed=args.seed, n=DEMO_IMAGES, size=512)
        images, gt = work_dir / 'demo' / 'images', work_dir / 'demo' / 'masks'
    matched, missing = match_ground_truth(list_images(Path(images)), Path(gt))
    for image in missing:
        print(f'no ground truth for {image}: skipped')

    def patient(image: Path):
        return patient_of(image.stem, args.group_regex)

    train, test = split_by_group([image for image, _ in matched], args.test_fraction, args.seed, key=patient)
    if len({patient(image) for image in train}) < 2:
        patients = len({patient(image) for image, _ in matched})
        raise InputError(f'{images}: {len(matched)} images with ground truth of {patients} patients leave one patient beside the '
                         'test, and pairs and validation need one each: add images, lower --test_fraction, or tell patients apart '
                         'with --group_regex')
    return train, test, str(gt)


def resize_start(inputs: Inputs, images: list, gt: str, work_dir: Path, args: argparse.Namespace) -> tuple[str, dict]:
    """(the checkpoint to train: the user's, or a copy that looks at another number of pixels; what was measured).

    Raises:
        InputError: a size was asked for and this checkpoint's cannot be changed.
    """
    from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT, FolderMasks
    from sa2va_dpo.models.checkpoint.released import SAM2_DIMS, copy_with_sam_size, read_sam2_dims
    from sa2va_dpo.inference.scoring import pick_device
    from sa2va_dpo.inference.input_size import choose_size, measure_sizes

    own = read_sam2_dims(inputs.model)['image_size']
    if args.sam_size == 'keep' or (args.sam_size == 'auto' and not (Path(inputs.model) / SAM2_DIMS).is_file()):
        return inputs.model, dict(own=own, chosen=own)
    measured: dict[int, float] = {}
    if args.sam_size == 'auto':
        say(f'SAM2 input size: the start on training images at {own} px and others')
        source = FolderMasks(str(images[0].parent), gt, prompt=args.prompt or DEFAULT_PROMPT, stems=[i.stem for i in images])
        measured = measure_sizes(inputs.model, source, pick_device(None))
        chosen = choose_size(measured)
        print(', '.join(f'{size} px: Dice {value:.4f}' for size, value in sorted(measured.items())) + f'; chosen: {chosen} px')
    else:
        chosen = int(args.sam_size)
    report = dict(own=own, chosen=chosen, dice={str(size): value for size, value in measured.items()})
    if chosen == own:
        return inputs.model, report
    start = work_dir / 'start_hf'
    # An interrupted job may have left it.
    shutil.rmtree(start, ignore_errors=True)
    copy_with_sam_size(inputs.model, start, chosen)
    return str(start), report


def train(inputs: Inputs, start: str, work_dir: Path, pairs: Path, args: argparse.Namespace,
          score_size: int | None = None) -> None:
    """Run tools/train.py as the user would, in its own process (torchrun for several GPUs).

    Args:
        start: checkpoint to train.
        score_size: overrides the config's, pixels.

    Raises:
        InputError: training failed; its own output says why.
    """
    from sa2va_dpo.common.errors import InputError

    command = [sys.executable]
    if args.gpus > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={args.gpus}']
    command += ['tools/train.py', inputs.config, '--work-dir', str(work_dir), '--checkpoint', start,
                '--data-root', str(pairs), '--seed', str(args.seed)]
    if args.gpus > 1:
        command += ['--launcher', 'pytorch']
    if (work_dir / 'last_checkpoint').is_file():
        command.append('--resume')
    options = list(args.cfg_options)
    if score_size is not None:
        options = [f'model.score_size={score_size}', f'train_dataloader.dataset.score_size={score_size}', *options]
    if options:
        command += ['--cfg-options', *options]
    say('training: ' + ' '.join(['python', *command[1:]]))
    code = subprocess.run(command).returncode
    if code:
        raise InputError(f'training ended with exit code {code}, see its output above and the log in {work_dir}')


def best_checkpoint(work_dir: Path) -> tuple[Path | None, float, float]:
    """(the best trained checkpoint, its validation Dice, the start's validation Dice).

    The path is ``None`` when no trained checkpoint beats the start.
    """
    from sa2va_dpo.engine.hooks import HISTORY_FILE

    history = json.loads((work_dir / HISTORY_FILE).read_text(encoding='utf-8'))
    start = history[0]['dice']
    best = max(history[1:], key=lambda entry: entry['dice'])
    # mmengine keeps one best_dice_iter_N.pth, the first of equal ones.
    found = sorted(work_dir.glob('best_dice_iter_*.pth'))
    return (found[-1] if found and best['dice'] > start else None), best['dice'], start


def choose_export(trained: float | None, start: float, handed_in: float) -> str:
    """Which model is handed back, by validation Dice: ``'trained'``, ``'start'`` (untrained, at the chosen input size) or
    ``'handed_in'``. Whatever is more work has to be better.

    Args:
        trained: of the best trained checkpoint; ``None`` when none beats the start.
    """
    scores = dict(handed_in=handed_in, start=start)
    if trained is not None:
        scores['trained'] = trained
    # The first of equal ones.
    return max(scores, key=scores.get)


def evaluate(checkpoint: Path | str, images: list, gt: str, out_dir: Path, args: argparse.Namespace) -> dict:
    """Test metrics of a checkpoint directory (the start, or what was exported)."""
    from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT, FolderMasks, VesselSegDataset
    from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel
    from sa2va_dpo.inference.scoring import evaluate_model, pick_device

    source = FolderMasks(str(images[0].parent), gt, prompt=args.prompt or DEFAULT_PROMPT,
                         stems=[image.stem for image in images])
    model = Sa2VASegModel(str(checkpoint), trainable=dict(projector='full'))
    return evaluate_model(model, VesselSegDataset(source, str(checkpoint)), out_dir, device=pick_device(None), seed=args.seed)


def table(before: dict, after: dict, resized: dict | None = None) -> str:
    """Before and after, one line a metric; beside them the untrained start at the input size that training used."""
    rows = [f'{"":12}{"before":>10}{"after":>10}{"change":>10}' + (f'{"start, resized":>18}' if resized else '')]
    for name in ('dice', 'iou', 'precision', 'recall', 'cldice'):
        rows.append(f'{name:12}{before[name]:10.4f}{after[name]:10.4f}{after[name] - before[name]:+10.4f}'
                    + (f'{resized[name]:18.4f}' if resized else ''))
    return '\n'.join(rows + [f'test images: {before["n_images"]}, never used for training or selection'])


def conclude(summary: dict) -> int:
    """Print the verdict; returns the exit code."""
    print('\n' + table(summary['before'], summary['after'], summary.get('start_at_chosen_size')))
    if 'start_at_chosen_size' in summary:
        size = summary['sam_size']
        print(f'before: SAM2 at {size["own"]} px; after and start, resized: at {size["chosen"]} px')
    print(f'\nexported model: {summary["exported_hf"]}')
    if summary['best_checkpoint'] is None:
        kept = summary.get('exported_sam_size', summary['sam_size']['own'])
        print('NOT BETTER: no trained checkpoint has a higher validation Dice than the start. The exported model is the '
              + ('unchanged start.' if kept == summary['sam_size']['own'] else
                 f'start with its weights as they were; only its SAM2 input is {kept} px now.'))
        return NOT_BETTER
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    started = time.time()
    inputs = choose_inputs(args)
    work_dir = Path(args.work_dir)
    request = {**vars(args), **vars(inputs)}
    request.pop('overwrite')
    finished = claim_work_dir(work_dir, request, args.overwrite)
    if finished:
        say(f'this job has finished before; its result is in {work_dir} (--overwrite runs it again)')
        return conclude(finished)
    say(f'model {inputs.model}, images {inputs.images or "drawn demo set"}, config {inputs.config}')

    from sa2va_dpo.datasets.seg_dataset import AnnotatedMasks
    from sa2va_dpo.preferences.generate import GenerateConfig, generate_pairs
    from sa2va_dpo.inference.scoring import pick_device
    from sa2va_dpo.commands.export import export_run
    from sa2va_dpo.inference.input_size import mean_dice
    from sa2va_dpo.commands.train import read_config

    train_images, test_images, gt = prepare_data(inputs, work_dir, args)
    say(f'test before training, {len(test_images)} images')
    before = evaluate(inputs.model, test_images, gt, work_dir / 'test_before', args)
    start, sam_size = resize_start(inputs, train_images, gt, work_dir, args)
    resized = None
    if start != inputs.model:
        say(f'test of the untrained start at {sam_size["chosen"]} px')
        resized = evaluate(start, test_images, gt, work_dir / 'test_resized', args)

    say(f'preference pairs from {len(train_images)} images')
    pairs = work_dir / 'pairs'
    report = generate_pairs(GenerateConfig(
        mode='generate', images_dir=str(train_images[0].parent), gt_dir=gt, output_dir=str(pairs),
        model_path=start, num_samples=args.num_samples, min_iou_gap=args.min_iou_gap,
        max_pairs_per_image=args.max_pairs_per_image, val_fraction=args.val_fraction, test_fraction=0, seed=args.seed,
        group_regex=args.group_regex, include_gt=not args.no_gt_candidate,
        **({'prompt': args.prompt} if args.prompt else {})), images=train_images)

    train(inputs, start, work_dir, pairs, args, score_size=sam_size['chosen'] // 2 if resized else None)

    checkpoint, best_dice, start_dice = best_checkpoint(work_dir)
    handed_in = start_dice
    if resized:
        # The handed-in model is what the result is held against, whatever size it looks at.
        handed_in = mean_dice(inputs.model, AnnotatedMasks(str(pairs)), pick_device(None))
        say(f'validation Dice: as handed in {handed_in:.4f}, at {sam_size["chosen"]} px {start_dice:.4f}')
    choice = choose_export(best_dice if checkpoint else None, start_dice, handed_in)
    if choice != 'trained':
        checkpoint = None
    validation_dice = dict(start=max(start_dice, handed_in), best=best_dice)
    say('validation Dice: start {start:.4f}, best {best:.4f}'.format(**validation_dice))
    exported = work_dir / 'exported_hf'
    # An interrupted job may have left a part of it.
    shutil.rmtree(exported, ignore_errors=True)
    if checkpoint is None:
        shutil.copytree(start if choice == 'start' else inputs.model, exported)
    else:
        export_run(read_config(str(work_dir / 'config.py'), []), checkpoint, exported)
    say(f'test of the exported model, {len(test_images)} images')
    after = evaluate(exported, test_images, gt, work_dir / 'test_after', args)
    summary = dict(
        before={name: before[name] for name in SUMMARY_METRICS}, after={name: after[name] for name in SUMMARY_METRICS},
        pairs=report['train_pairs'], train_images=report['train_images'], seconds=round(time.time() - started, 1),
        best_checkpoint=None if checkpoint is None else str(checkpoint), exported_hf=str(exported), seed=args.seed,
        validation_dice=validation_dice, sam_size=sam_size,
        exported_sam_size=sam_size['own'] if choice == 'handed_in' else sam_size['chosen'])
    if resized:
        summary['start_at_chosen_size'] = {name: resized[name] for name in SUMMARY_METRICS}
    write_json(work_dir / 'summary.json', summary)
    return conclude(summary)


if __name__ == '__main__':
    from sa2va_dpo.common.errors import cli_main

    cli_main(main)()
