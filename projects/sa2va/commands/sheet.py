"""``sa2va-dpo sheet``: images, ground truth, masks before and after and what changed, on one picture."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Draw the worst, the median and the best image of a job (by its change of Dice), a few preference '
                    'pairs of a data root, or masks of two folders.',
        usage='%(prog)s WORK_DIR | DATA_ROOT [--output FILE] [--rows N] [--names NAME ...]\n'
              '       %(prog)s --images DIR --gt DIR --after DIR [--before DIR] [--output FILE] ...')
    add = parser.add_argument
    add('folder', nargs='?', help='work directory of a finished job, or a data root of pairs')
    add('--images', metavar='DIR', help='images, in place of a folder')
    add('--gt', metavar='DIR', help='their ground truth')
    add('--after', metavar='DIR', help='predicted masks, such as masks/ of sa2va-dpo predict')
    add('--before', metavar='DIR', help='predicted masks of another model')
    add('--output', default='sheet.png', metavar='FILE', help='PNG or JPEG to write (default: %(default)s here)')
    add('--rows', type=int, default=3, metavar='N', help='images, from worst to best (default %(default)s)')
    add('--names', nargs='+', metavar='NAME', help='these images instead, by their names without suffix')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the sheet.

    Raises:
        InputError: flags that do not go together, or a folder without what the sheet shows.
    """
    args = parse_args(argv)
    folders = dict(images=args.images, gt=args.gt, after=args.after)
    given = [name for name, value in folders.items() if value is not None]
    if bool(args.folder) == bool(given) or (given and len(given) < len(folders)):
        raise InputError('sheet: give the folder of a job or of pairs, or all of --images, --gt and --after')
    if args.before and not given:
        raise InputError('--before: goes with --images, --gt and --after; a job has its own')
    if args.rows < 1:
        raise InputError(f'--rows {args.rows}: must be at least 1')
    if not args.output.lower().endswith(('.png', '.jpg', '.jpeg')):
        raise InputError(f'--output {args.output}: must end in .png or .jpg')
    from .sheet_rows import write_cases, write_folder

    if args.folder:
        shown = write_folder(args.output, args.folder, args.rows, args.names)
    else:
        shown = write_cases(args.output, args.images, args.gt, args.before, args.after, args.rows, args.names)
    print(f'{args.output}: {", ".join(shown)}')
    return 0
