"""``sa2va-dpo predict``: a checkpoint's masks of images, and what they measure."""
from __future__ import annotations

import argparse
import sys

from sa2va_dpo.common import console, signals
from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import INPUT, InputError
from sa2va_dpo.common.processes import world_size

# What only writing files reads, and its value where it is not given.
_OF_FILES = dict(input=None, output=None, prompt=None, threshold=0.5, probabilities=False, overlays=False, batch_size=1,
                 overwrite=False)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Segment images: masks, and a table of what they measure. With --demo: a page to drop images on.',
        usage='%(prog)s --model DIR --input PATH ... --output DIR [--overlays] [--probabilities] ...\n'
              '       %(prog)s --model DIR --demo [--compare DIR] [--lang {en,zh}] ...')
    add = parser.add_argument
    add('--model', required=True, metavar='DIR', help='checkpoint directory, such as an export, or an adapter')
    add('--base', metavar='DIR', help='the checkpoint of an adapter, where it is not at the recorded path')
    add('--input', nargs='+', metavar='PATH',
        help='images, folders (with sub-folders) or quoted patterns; DICOM and NIfTI too')
    add('--output', metavar='DIR', help='folder for the results; the same command again goes on in it')
    add('--prompt', help='the question (default: <image>Please segment the blood vessels.)')
    add('--threshold', type=float, default=0.5, help='probability above which a pixel is vessel (default %(default)s)')
    add('--probabilities', action='store_true', help='also write probability maps: 16-bit PNG, 65535 is 1')
    add('--overlays', action='store_true', help='also write pictures of the masks on their images')
    add('--batch-size', type=int, default=1, metavar='N', help='images per forward pass (default %(default)s)')
    add('--grid', metavar='N', help='tiles along each axis or auto, in place of what the checkpoint states')
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    add('--overwrite', action='store_true', help="remove another run's results from the folder first")
    page = parser.add_argument_group('the demo page')
    page.add_argument('--demo', action='store_true', help='serve a page in the browser instead of writing files')
    page.add_argument('--compare', metavar='DIR', help='with --demo: another checkpoint, shown beside the model')
    page.add_argument('--lang', choices=('en', 'zh'), help="of the page (default: the environment's)")
    page.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    page.add_argument('--port', type=int, default=7861, help='default %(default)s; 0 takes a free one')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Predict every image that can be read.

    Returns:
        0, or 2 where an image could not be read; each is named, and all others are done.

    Raises:
        InputError: a setting that cannot be used, no image, or the folder is not this run's.
    """
    args = parse_args(argv)
    if world_size() > 1:
        raise InputError('torchrun: predict runs in one process: start it without a launcher, once a GPU with '
                         '--device and with images and folder of its own')
    grid = int(args.grid) if args.grid and args.grid.isdecimal() else args.grid
    if args.demo:
        idle = [name for name, unset in _OF_FILES.items() if getattr(args, name) != unset]
        if idle:
            flags = ', '.join(f'--{name.replace("_", "-")}' for name in idle)
            raise InputError(f'--demo: takes its images, question and threshold on the page and writes no files: leave '
                             f'{flags} out')
        from sa2va_dpo.review.demo import serve

        serve([args.model] + [args.compare] * bool(args.compare), base=args.base, device=args.device, grid=grid,
              host=args.host, port=args.port, lang=args.lang)
        return 0
    if not args.input or not args.output:
        raise InputError('predict: give --input and --output, or --demo')
    if args.compare:
        raise InputError('--compare: is for --demo; to compare folders of masks there is sa2va-dpo sheet')
    from sa2va_dpo.inference.prediction_folder import TABLE, predict_folder

    signals.go_on('the same command goes on where it stopped')
    more = {} if args.prompt is None else dict(prompt=args.prompt)
    done = predict_folder(
        args.model, args.input, args.output, base=args.base, threshold=args.threshold,
        probabilities=args.probabilities, overlays=args.overlays, batch_size=args.batch_size, device=args.device,
        grid=grid, overwrite=args.overwrite, report=console.aside, **more)
    print(f'{args.output}: {done.masks} masks, {TABLE}; {done.seconds:.1f} s')
    if done.problems:
        print(f'error: {len(done.problems)} of {done.masks + len(done.problems)} images could not be read and are left '
              'out (named above): repair or remove them, and repeat the command', file=sys.stderr)
        return INPUT
    return 0
