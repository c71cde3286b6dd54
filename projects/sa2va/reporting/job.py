"""The report of a job, from what the job left in its work directory."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import directory_hashes, hash_json, read_json
from sa2va_dpo.engine.recipe import recipe
from sa2va_dpo.engine.run_record import DIGITS

from .cases import Source
from .comparison import job_verdict
from .curves import Training, check_readable, figures, taken_iteration
from .evidence import WEIGHTS, add_test
from .page import Report
from .pairs import read as read_pairs
from .text import Text

# Judge of a round -> its name where its ranking is held against the ground truth's.
_JUDGES = dict(consensus='Consensus', committee='Committee', predictions='Committee')


def job_report(
    folder: Path,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
    summary: Mapping[str, Any],
    source: Source | None,
    commands: Sequence[tuple[str, str]],
    settings: Sequence[tuple[str, str, str]],
    text: Text,
) -> Report:
    """Put the report of a finished job together.

    Args:
        folder: the job's work directory.
        identity, state, summary: what its ``job.json``, ``state.json`` and ``summary.json`` hold.
        source: gives the test images again; None where there is no test.
        commands: (text key, command line).
        settings: (name, default, here).

    Raises:
        InputError: a file in the folder is damaged.
    """
    training_dir = folder / 'training'
    training = Training.read(training_dir)
    check_readable(training)
    report = Report('job', folder.resolve().name, verdict=job_verdict(summary, [], 0), commands=commands,
                    settings=settings)
    if summary.get('after') is not None:
        resized = folder / 'test_resized'
        add_test(report, text, folder / 'test_after', folder / 'test_before',
                 resized if state.get('resized') is not None else None, source, identity['settings'].get('seed', 0))
        report.verdict = job_verdict(summary, report.lines, report.images)
    else:
        report.notes.append(text('note_no_test'))
    taken = summary.get('best_checkpoint')
    report.facts = _facts(folder, identity['settings'], state, summary, text)
    report.curves = figures(training, taken_iteration(training.history, taken), text)
    report.alarms = training.alarms
    if training.rounds:
        report.rounds = [round_line(record, text) for record in training.rounds.get('rounds', [])]
        report.rounds_ended = training.rounds.get('ended')
    least = identity['settings'].get('min_iou_gap')
    found = []
    for number, (title, root) in enumerate(_pair_roots(training_dir, training, state, text)):
        try:
            pairs = read_pairs(root, None if title else least, text, f'pair{number}')
        except InputError as error:
            report.notes.append(text('note_no_pairs', why=error))
            continue
        if pairs is not None:
            found.append((title, pairs))
    report.pairs = found
    record = ownership.read_record(training_dir)
    config = ((record or {}).get('identity') or {}).get('config') or {}
    report.recipe = recipe(config) if config else []
    report.hashes = [*_hashes(identity['content'], training, taken, summary, text), *report.hashes]
    return report


def _facts(folder: Path, settings: Mapping[str, Any], state: Mapping[str, Any], summary: Mapping[str, Any],
           text: Text) -> list[tuple[str, Any]]:
    validation = len(state['validation'])
    facts: list[tuple[str, Any]] = [
        ('fact_model', settings['model']),
        ('fact_data', settings['pairs'] or settings['images'] or settings['unlabelled'] or text('demo_set')),
        ('fact_split', text('split_value', train=max(len(state['images']) - validation, summary['train_images']),
                            validation=validation or '–', test=len(state['test']) or '–')),
    ]
    if state['unlabelled']:
        facts.append(('fact_unlabelled', len(state['unlabelled'])))
    if summary['pairs']:
        facts.append(('fact_pairs', text('pairs_value', pairs=summary['pairs'], images=summary['train_images'])))
    own, kept = summary['sam_size'].get('own'), summary.get('exported_sam_size')
    if own is not None:
        facts.append(('fact_size', text('size_value', size=own) if kept in (None, own) else
                      text('size_changed', own=own, size=kept)))
    checkpoint, dice = summary['best_checkpoint'], summary['validation_dice']
    name = text('start_itself') if checkpoint is None else Path(checkpoint).name
    facts.append(('fact_taken', name if checkpoint is None or dice is not None else text('last_checkpoint', name=name)))
    if dice is not None:
        facts.append(('fact_validation', f'{dice["start"]:.4f} / {dice["best"]:.4f}'))
    time_taken = []
    if summary['seconds'] is not None:
        minutes, seconds = divmod(round(summary['seconds']), 60)
        time_taken = [('fact_time', text('time_value', minutes=minutes, seconds=seconds))]
    finished = time.strftime('%Y-%m-%d %H:%M', time.localtime((folder / 'summary.json').stat().st_mtime))
    return [*facts, ('fact_seed', summary['seed']), *time_taken, ('fact_finished', finished),
            ('fact_exported', summary['exported_hf'])]


def round_line(record: Mapping[str, Any], text: Text) -> dict[str, Any]:
    """A round as a line of the table."""
    def mined(kind: str) -> str:
        found = record.get(kind)
        return text('round_pairs', pairs=found['pairs'], images=found['images']) if found else '–'

    judge = record.get('judge')
    tau = ((record.get('judge_agreement') or {}).get(_JUDGES.get(judge, '')) or {}).get('tau')
    picks = (record.get('unlabelled') or {}).get('picks')
    before, after = record.get('metric'), record.get('metric_after')
    decision = record.get('decision')
    return dict(
        round=record['round'],
        **{'from': record['iteration']},
        labelled=mined('labelled'),
        unlabelled=mined('unlabelled'),
        judge=judge or '–',
        tau='–' if tau is None else f'{tau:.2f}',
        picks='–' if not picks else text('picks_value', clicks=picks['clicks'], images=picks['decided'],
                                         minutes=f'{picks["seconds"] / 60:.1f}'),
        validation=' → '.join(f'{value:.4f}' for value in (before, after) if value is not None) or '–',
        decision=text(f'decision_{decision}') if decision else '–',
    )


def _pair_roots(training_dir: Path, training: Training, state: Mapping[str, Any],
                text: Text) -> list[tuple[str, Path]]:
    """(heading, data root): the last round's, or the run's."""
    records = (training.rounds or {}).get('rounds', [])
    data = (records[-1].get('data') or {}) if records else {}
    if data:
        return [(text(f'set_{kind}', n=records[-1]['round']), training_dir / data[kind])
                for kind in ('labelled', 'unlabelled') if data.get(kind)]
    # The job may have been moved since; pairs of somebody else's are where they were.
    own = training_dir.parent / 'pairs'
    return [('', own if own.is_dir() else Path(state['pairs']))] if state['pairs'] else []


def _hashes(content: Mapping[str, Any], training: Training, taken: str | None, summary: Mapping[str, Any],
            text: Text) -> list[tuple[str, str]]:
    found = [(text('hash_base', name=name), value) for name, value in content.get('model', {}).items()
             if name.endswith(WEIGHTS)]
    if 'config' in content:
        found.append((text('hash_config'), content['config'][:DIGITS]))
    for name, files in content.items():
        if name not in ('model', 'config'):
            found.append((text('hash_files', name=name, n=len(files)), hash_json(files)[:DIGITS]))
    if taken is not None:
        named = {entry.get('checkpoint'): entry.get('sha256') for entry in training.history}
        if named.get(Path(taken).name):
            found.append((text('hash_checkpoint', name=Path(taken).name), named[Path(taken).name][:DIGITS]))
    exported = Path(summary['exported_hf'])
    if summary['exported_hf'] and exported.is_dir():
        hashes = directory_hashes(exported, lambda path: path.suffix in WEIGHTS)
        found += [(text('hash_exported', name=name), value[:DIGITS]) for name, value in hashes.items()]
    return found


def read_folder(folder: Path) -> tuple[dict, dict, dict]:
    """What ``job.json``, ``state.json`` and ``summary.json`` of a finished job hold.

    Raises:
        InputError: one is missing or damaged.
    """
    missing = 'this job has not finished: repeat its command'
    job, state, summary = (read_json(folder / name, 'repeat the job with --overwrite', missing, kind=dict)
                           for name in ('job.json', 'state.json', 'summary.json'))
    return job, state, summary
