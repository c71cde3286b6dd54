"""``sa2va-dpo SUBCOMMAND`` and ``python -m sa2va_dpo SUBCOMMAND``: one door to every command.

A command's module is imported when it is called, and imports torch after its arguments are parsed: ``--help`` and a
mistyped flag answer at once.
"""
from __future__ import annotations

import difflib
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import sa2va_dpo
from sa2va_dpo.common.errors import InputError, cli_main

PROGRAM = 'sa2va-dpo'


class Command(NamedTuple):
    """Where a sub-command's ``main(argv) -> exit code`` is, and what it does."""
    module: str
    summary: str


COMMANDS = {
    'job': Command('job.main', 'pairs, training, test before and after, export: everything in one go'),
    'pairs': Command('pairs', 'build preference pairs'),
    'train': Command('train', 'train with a config'),
    'test': Command('test', 'score held-out masks of a checkpoint'),
    'report': Command('report', 'report.html of a finished job or test anew, in another language for example'),
    'predict': Command('predict', 'write the masks of images'),
    'sheet': Command('sheet', 'images, masks before and after, and what changed, on one picture'),
    'export': Command('export', 'a trained run as a Hugging Face directory or an adapter'),
    'review': Command('review', 'look at pairs in the browser and decide, or pick the best of several masks'),
    'convert': Command('convert', "upstream's trainer checkpoint to the released layout"),
    'parity': Command('parity', "compare the model with the original's reference numbers"),
    'resize': Command('resize', 'copy a checkpoint with another SAM2 input size'),
    'view': Command('view', 'in how many tiles a checkpoint looks at an image'),
    'check-data': Command('check_data', 'which images fit which masks, and what is suspicious about them'),
    'coco-masks': Command('coco_masks', 'ground-truth masks of a COCO file'),
    'export-pairs': Command('export_pairs', 'pairs as one parquet file'),
    'tiny-checkpoint': Command('tiny_checkpoint', 'an untrained tiny checkpoint'),
    'random-checkpoint': Command('random_checkpoint', 'a released size with random weights, to try a machine'),
}


def available() -> dict[str, Command]:
    """The sub-commands of this installation."""
    return {name: command for name, command in COMMANDS.items() if find_spec(_module(command)) is not None}


def usage() -> str:
    """The text of ``--help``."""
    commands = available()
    width = max(map(len, commands))
    lines = [f'  {name:<{width}}  {command.summary}' for name, command in commands.items()]
    return '\n'.join(
        [
            f'usage: {PROGRAM} COMMAND [ARGUMENTS]',
            '',
            'Preference training (DPO) of Sa2VA vessel segmentation.',
            '',
            'commands:',
            *lines,
            '',
            f'{PROGRAM} COMMAND --help says what a command takes; --version prints {sa2va_dpo.__version__}.',
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command; returns its exit code.

    Raises:
        InputError: there is no such sub-command, or it raises one.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0].replace('_', '-'), argv[1:]
    if name in ('-V', '--version'):
        print(sa2va_dpo.__version__)
        return 0
    commands = available()
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        raise InputError(f'{PROGRAM} {argv[0]}: no such command: ' + (f'did you mean {near[0]}?' if near else
                                                                     f'there are {", ".join(commands)}'))
    # argparse names the program after it; children and messages see what was typed.
    sys.argv = [f'{PROGRAM} {name}', *rest]
    return import_module(_module(commands[name])).main(rest) or 0


def _module(command: Command) -> str:
    return f'sa2va_dpo.commands.{command.module}'


def entry() -> None:
    """The console command: errors of the user in one line, exit codes as documented."""
    cli_main(main)()
