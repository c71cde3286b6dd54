"""The main job end to end: data, pairs, training, test before and after, export, verdict.

Every stage is the same code that the guide's separate commands run, and every stage can be interrupted: the same
command again goes on where it stopped.
"""
from __future__ import annotations

import time

from sa2va_dpo.common import errors, signals

from .flags import build_parser
from .settings import JobSettings, settings_from
from .talk import say


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns 0, 3 where training made nothing better, or 4 where people have to pick before it goes on.

    Raises:
        InputError: bad input, or what lies in the work directory is not this job's.
    """
    settings = settings_from(build_parser().parse_args(argv))
    # Only now, so that --help and a mistyped flag answer at once.
    from .folder import own
    from .report import conclude
    from .rounds import PeopleWanted

    signals.go_on('the same command goes on where it stopped')
    with own(settings) as finished:
        errors.log_tracebacks_to(settings.work_dir)
        if finished:
            say(f'this job has finished before; its result is in {settings.work_dir} (--overwrite runs it again)')
            return conclude(finished)
        source = f'pairs {settings.pairs}' if settings.pairs else f'images {settings.images or "drawn demo set"}'
        say(f'model {settings.model}, {source}, config {settings.config}')
        if settings.pairs is None and not settings.mines_in_rounds:
            print(
                'every training image has a mask: supervised training on them is worth about as much (docs/when.md); '
                'preferences earn their place on images without: --unlabelled',
                flush=True,
            )
        try:
            return conclude(run_stages(settings))
        except PeopleWanted as wanted:
            say(str(wanted))
            return errors.WAITING


def run_stages(settings: JobSettings) -> dict:
    """Run the stages that have not finished yet, one after the other; returns the summary."""
    from . import mine, report, resize, select, split, train
    from .state import JobState

    state = JobState.load(settings.work_dir)
    for stage in (split, resize, mine, train, select, report):
        name = stage.__name__.rpartition('.')[2]
        if name in state.done:
            continue
        begun = time.monotonic()
        state = stage.run(settings, state)
        state.seconds[name] = time.monotonic() - begun
        state.done.append(name)
        state.save(settings.work_dir)
    return report.write_summary(settings, state)


if __name__ == '__main__':
    from sa2va_dpo.common.errors import cli_main

    cli_main(main)()
