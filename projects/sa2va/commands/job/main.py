"""The main job end to end: data, pairs, training, test before and after, export, verdict.

Every stage is the same code that the guide's separate commands run, and every stage can be interrupted: the same
command again goes on where it stopped.
"""
from __future__ import annotations

import time
from pathlib import Path

from sa2va_dpo.common import console, errors, signals
from sa2va_dpo.common.processes import device_name, pick_device

from .flags import build_parser
from .settings import JobSettings, settings_from


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns 0, 3 where training made nothing better, or 4 where people have to pick before it goes on.

    Raises:
        InputError: bad input, or what lies in the work directory is not this job's.
    """
    args = build_parser().parse_args(argv)
    console.begin(args.verbose)
    settings = settings_from(args)
    # Only now, so that --help and a mistyped flag answer at once.
    from .folder import LOG, own
    from .report import conclude, next_commands, show_page
    from .rounds import PeopleWanted

    signals.go_on('the same command goes on where it stopped')
    with own(settings) as finished:
        errors.log_tracebacks_to(settings.work_dir)
        console.log_to(settings.work_dir / LOG)
        if finished:
            console.say(
                f'this job has finished before; its result is in {settings.work_dir} (--overwrite runs it again)'
            )
            show_page(settings)
            return conclude(finished)
        console.say(head(settings, settings.work_dir / LOG))
        if settings.pairs is None and not settings.mines_in_rounds:
            console.say(
                'every training image has a mask: supervised training on them is worth about as much (docs/when.md); '
                'preferences earn their place on images without: --unlabelled'
            )
        try:
            summary = run_stages(settings)
        except PeopleWanted as wanted:
            console.say(str(wanted))
            return errors.WAITING
        # After the summary: whatever a page meets, the job itself is done.
        show_page(settings)
        code = conclude(summary)
        console.next_step(*next_commands(settings.work_dir, summary))
        return code


def head(settings: JobSettings, log: Path) -> str:
    """What runs on what."""
    pairs = [f'pairs {settings.pairs}'] if settings.pairs else []
    drawn = not settings.pairs and not settings.images and settings.test_from != 'none'
    images = [f'images {settings.images}, masks {settings.gt}'] if settings.images else (
        [f'drawn demo set, seed {settings.seed}'] * drawn)
    more = [f'images without masks {settings.unlabelled}, judged by {settings.judge}'] if settings.unlabelled else []
    data = ', '.join([*pairs, *images, *more])
    machine = device_name(pick_device()) + (f', {settings.gpus} of them in training' if settings.gpus > 1 else '')
    return '\n'.join([
        f'model     {settings.model}',
        f'data      {data}',
        f'config    {settings.config}, seed {settings.seed}',
        f'machine   {machine}',
        f'results   {settings.work_dir}, log {log.name}',
    ])


def run_stages(settings: JobSettings) -> dict:
    """Run the stages that have not finished yet, one after the other; returns the summary."""
    from sa2va_dpo.engine.config import read_config
    from sa2va_dpo.engine.trackers import check_trackers

    from . import mine, report, resize, select, split, train
    from .state import JobState

    state = JobState.load(settings.work_dir)
    if 'train' not in state.done:
        # Training would say so after hours of mining.
        check_trackers(read_config(settings.config, settings.cfg_options))
    stages = (split, resize, mine, train, select, report)
    for number, stage in enumerate(stages, 1):
        name = stage.__name__.rpartition('.')[2]
        if name in state.done:
            continue
        console.say(f'{number} of {len(stages)}: {stage.TITLE}')
        begun = time.monotonic()
        state = stage.run(settings, state)
        state.seconds[name] = time.monotonic() - begun
        state.done.append(name)
        state.save(settings.work_dir)
    return report.write_summary(settings, state)


if __name__ == '__main__':
    from sa2va_dpo.common.errors import cli_main

    cli_main(main)()
