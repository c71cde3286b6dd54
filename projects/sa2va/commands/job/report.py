"""Stage 6: the exported model is tested; summary and verdict."""
from __future__ import annotations

from pathlib import Path

from sa2va_dpo.common.console import say
from sa2va_dpo.common.errors import NOT_BETTER
from sa2va_dpo.common.files import write_json

from .card import write_card
from .folder import SUMMARY, TRAINING
from .page import write_page
from .resize import test
from .rounds import rounds_of, rounds_table
from .settings import JobSettings
from .state import JobState

METRICS = ('dice', 'iou', 'precision', 'recall', 'cldice')

TITLE = 'test of the exported model'


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``after``."""
    if state.test:
        state.after = test(state.exported_hf, state, settings, 'test_after', 'test')
        write_card(settings, state)
    return state


def write_summary(settings: JobSettings, state: JobState) -> dict:
    """``summary.json``, the last thing that a job writes."""
    def figures(metrics: dict | None) -> dict | None:
        return None if metrics is None else {name: metrics[name] for name in (*METRICS, 'n_images')}

    summary = dict(
        before=figures(state.before),
        after=figures(state.after),
        pairs=state.train_pairs,
        train_images=state.train_images,
        seconds=round(sum(state.seconds.values()), 1),
        best_checkpoint=state.best_checkpoint,
        exported_hf=state.exported_hf,
        seed=settings.seed,
        validation_dice=state.validation_dice,
        sam_size=state.sam_size,
        view=state.view,
        exported_sam_size=state.exported_sam_size,
    )
    if state.resized:
        summary['start_at_chosen_size'] = figures(state.resized)
    if settings.mines_in_rounds:
        summary['rounds'] = rounds_of(settings.work_dir / TRAINING)
    write_json(settings.work_dir / SUMMARY, summary)
    return summary


def show_page(settings: JobSettings) -> None:
    """Write ``report.html`` of the finished job and say where it is."""
    say(f'report: {write_page(settings.work_dir, settings.lang)}')


def table(before: dict, after: dict, resized: dict | None = None) -> str:
    """Before and after, one line a metric; beside them the untrained start at the input size that training used."""
    rows = [f'{"":12}{"before":>10}{"after":>10}{"change":>10}' + (f'{"start, resized":>18}' if resized else '')]
    for name in METRICS:
        rows.append(f'{name:12}{before[name]:10.4f}{after[name]:10.4f}{after[name] - before[name]:+10.4f}'
                    + (f'{resized[name]:18.4f}' if resized else ''))
    return '\n'.join(rows + [f'test images: {before["n_images"]}, never used for training or selection'])


def _other_view(summary: dict) -> bool:
    view = summary.get('view') or {}
    return view.get('exported') not in (None, view.get('own'))


def _tiles(view: dict) -> str:
    return 'the whole image at once' if view['grid'] == 1 else f'in tiles (grid {view["grid"]})'


def _looks(summary: dict, which: str) -> str:
    view = (summary.get('view') or {}).get(which)
    return f'SAM2 at {summary["sam_size"][which]} px' + (f', {_tiles(view)}' if view else '')


def next_commands(work_dir: Path, summary: dict) -> list[str]:
    """What the user may want to run after a job."""
    return [
        f'python -m sa2va_dpo predict --model {summary["exported_hf"]} --input IMAGES --output MASKS',
        f'tensorboard --logdir {work_dir}',
    ]


def conclude(summary: dict) -> int:
    """Print the verdict; returns the exit code."""
    if summary['before'] is not None:
        say(table(summary['before'], summary['after'], summary.get('start_at_chosen_size')))
    if summary.get('rounds'):
        say(rounds_table(summary['rounds']))
    if 'start_at_chosen_size' in summary:
        say(f'before: {_looks(summary, "own")}; after and start, resized: {_looks(summary, "chosen")}')
    say(f'exported model: {summary["exported_hf"]}')
    if summary['validation_dice'] is None:
        say(
            'NOT VALIDATED: there are no validation images, so the exported model is the last checkpoint, chosen by '
            'nothing. '
            + (
                'Whether it is better than the start only the table above says: it is no promise of this job.'
                if summary['before'] is not None
                else 'No image with a mask was there to say whether it is better than the start: look at its masks '
                     'before you use it.'
            )
        )
        return 0
    if summary['best_checkpoint'] is None:
        kept = summary.get('exported_sam_size', summary['sam_size']['own'])
        say(
            'NOT BETTER: no trained checkpoint has a higher validation Dice than the start. The exported model is the '
            + (
                'unchanged start.'
                if kept == summary['sam_size']['own'] and not _other_view(summary)
                else f'start with its weights as they were; only its SAM2 input is {kept} px now'
                     + (f', {_tiles(summary["view"]["exported"])}.' if _other_view(summary) else '.')
            )
        )
        return NOT_BETTER
    return 0
