"""The report of a test, from what the test left in its folder."""
from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from mmengine.registry import DATASETS

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import directory_hashes, hash_directory, hash_file, read_json, write_json
from sa2va_dpo.engine.recipe import recipe
from sa2va_dpo.engine.run_record import DIGITS, plain
from sa2va_dpo.evaluation.report import METRICS_FILE, PER_IMAGE_FILE

from .cases import Source
from .comparison import Verdict, test_verdict
from .curves import Training, check_readable, figures, taken_iteration
from .evidence import WEIGHTS, add_test
from .page import Report, write
from .text import Text

RECORD_FILE = 'test.json'
_AGAIN = 'test again'


def write_record(
    folder: Path,
    cfg,
    *,
    config: str,
    checkpoint: str | None,
    source: Mapping[str, Any],
    options: Sequence[str],
    command: Sequence[str],
    before: str | None = None,
    seed: int = 0,
    chose: bool = False,
) -> None:
    """Write ``test.json``: what was tested on what, for the report and for later tests that are compared with this one.

    Args:
        folder: the test's work directory.
        cfg: the config, as read.
        config: its path.
        checkpoint: what was put on the config's start; None tests the start.
        source: config of the data set of images.
        options: of ``--cfg-options``.
        command: the command line, program first.
        before: folder of the earlier test that this one is held against.
        chose: the images chose the checkpoint (validation images).
    """
    base = Path(cfg.model.checkpoint)
    write_json(folder / RECORD_FILE, dict(
        config=config,
        checkpoint=checkpoint,
        checkpoint_hash=None if checkpoint is None else checkpoint_hash(Path(checkpoint)),
        base=str(base),
        base_hashes={name: value[:DIGITS] for name, value in
                     directory_hashes(base, lambda path: path.suffix in WEIGHTS).items()} if base.is_dir() else {},
        source=dict(source),
        options=list(options),
        command=list(command),
        before=before,
        seed=seed,
        chose=chose,
        recipe=[list(item) for item in recipe(plain(cfg))],
    ))


def checkpoint_hash(path: Path) -> str:
    """Of a run checkpoint, a file or DeepSpeed's directory; as ``test.json`` holds it."""
    return (hash_directory(path) if path.is_dir() else hash_file(path))[:DIGITS]


def write_page(folder: Path, language: str) -> Path:
    """Make the page of a finished test anew from what is on the disk; gives its path.

    Raises:
        InputError: a file of the test, or of the one that it is held against, is missing or damaged.
    """
    text = Text(language)
    record = read_json(folder / RECORD_FILE, _AGAIN, kind=dict)
    metrics = read_json(folder / METRICS_FILE, _AGAIN, kind=dict)
    report = Report('test', folder.resolve().name, verdict=Verdict('tested', 'plain'))
    before = None if record['before'] is None else Path(record['before'])
    if before is None:
        report.notes.append(text('note_no_before'))
    if record['chose']:
        report.notes.append(text('note_validation_scored'))
    report.facts = _facts(folder, record, metrics, text)
    report.hashes = _hashes(record, text)
    add_test(report, text, folder, before, None, _source(record, report, text), record['seed'])
    report.verdict = test_verdict(report.lines, report.images)
    report.recipe = [(name, value) for name, value in record['recipe']]
    report.settings = [('--cfg-options', '–', option) for option in record['options']]
    report.commands = [('command_test', shlex.join(record['command'])),
                       *([] if before is not None else [
                           ('command_compare', shlex.join([*record['command'], '--before', 'FOLDER_OF_THE_OTHER_TEST'])
                            )]),
                       ('command_report', shlex.join(['python', '-m', 'sa2va_dpo', 'report', str(folder), '--lang',
                                                      language]))]
    _add_training(report, record, text)
    return write(report, folder, text)


def check_before(folder: Path) -> None:
    """Raises InputError where a folder holds no test that another can be held against."""
    if not (folder / PER_IMAGE_FILE).is_file():
        raise InputError(f'--before {folder}: holds no {PER_IMAGE_FILE}: give the --work-dir of an earlier test of the '
                         'same images')


def _source(record: Mapping[str, Any], report: Report, text: Text) -> Source | None:
    """The images again; where they are gone since, the report says so and shows no picture."""
    try:
        return DATASETS.build(dict(record['source'])).__getitem__
    except (InputError, OSError, KeyError, TypeError) as error:
        report.notes.append(text('note_no_images', why=error))
        return None


def _facts(folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any], text: Text) -> list[tuple[str, Any]]:
    source = record['source']
    images = source.get('images_dir') or Path(source.get('data_root', '')) / source.get('ann_file', '')
    facts: list[tuple[str, Any]] = [
        ('fact_checkpoint', record['checkpoint'] or text('start_itself')), ('fact_model', record['base']),
        ('fact_data', images)]
    if metrics.get('fields_of_view'):
        facts.append(('fact_field', text('field_value', n=metrics['fields_of_view'], all=metrics['n_images'])))
    if record['before'] is not None:
        facts.append(('fact_compared', record['before']))
    finished = time.strftime('%Y-%m-%d %H:%M', time.localtime((folder / METRICS_FILE).stat().st_mtime))
    return [*facts, ('fact_finished', finished)]


def _hashes(record: Mapping[str, Any], text: Text) -> list[tuple[str, str]]:
    found = [(text('hash_base', name=name), value) for name, value in record['base_hashes'].items()]
    if record['checkpoint_hash'] is not None:
        found.append((text('hash_checkpoint', name=Path(record['checkpoint']).name), record['checkpoint_hash']))
    return found


def _add_training(report: Report, record: Mapping[str, Any], text: Text) -> None:
    """The curves of the run that the checkpoint lies in, where it lies in one."""
    if record['checkpoint'] is None:
        return
    # The guide's names in a job's folder are links into its training folder.
    folder = Path(record['checkpoint']).resolve().parent
    try:
        training = Training.read(folder)
        check_readable(training)
    except InputError as error:
        report.notes.append(text('note_no_curves', why=error))
        return
    report.curves = figures(training, taken_iteration(training.history, record['checkpoint']), text)
    report.alarms = training.alarms
