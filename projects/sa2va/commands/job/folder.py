"""The job's work directory: whose it is, what it was asked, and what ``--overwrite`` removes."""
from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from sa2va_dpo.common import ownership
from sa2va_dpo.common.console import say
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_json, read_json, remove, remove_leftovers, write_json
from sa2va_dpo.datasets.annotations import PAIRS_FILE, TEST_FILE, VAL_FILE, VAL_PAIRS_FILE
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.run_record import annotation_hashes, folder_hashes, plain, withdraw

from .settings import FOLDERS, JobSettings
from .state import STATE_FILE, JobState

RECORD, SUMMARY, TRAINING, LOG = 'job.json', 'summary.json', 'training', 'job.log'
OUTPUTS = (
    'pairs',
    'unlabelled.txt',
    'training_config.py',
    'test_before',
    'test_resized',
    'test_after',
    'start_hf',
    TRAINING,
    'exported_hf',
    SUMMARY,
    'report.html',
)
# The record last: a kill on the way leaves files that are still known.
OURS = (*OUTPUTS, 'demo', 'error.log', LOG, STATE_FILE, RECORD)


def identity_of(settings: JobSettings) -> dict:
    """What decides the job's result: its settings, and the content of the files that it reads.

    Raises:
        InputError: the config or one of the files cannot be read.
    """
    content: dict = dict(config=hash_json(plain(read_config(settings.config, list(settings.cfg_options)))),
                         model=folder_hashes(settings.model))
    for name in FOLDERS:
        folder = getattr(settings, name)
        if folder is not None:
            content[name] = folder_hashes(folder)
    if settings.members:
        content['members'] = {member: folder_hashes(member) for member in settings.members}
    if settings.pairs is not None:
        content['pairs'] = annotation_hashes(settings.pairs, (PAIRS_FILE, VAL_PAIRS_FILE, VAL_FILE, TEST_FILE))
    return dict(settings=settings.identity(), content=content)


@contextmanager
def own(settings: JobSettings) -> Iterator[dict | None]:
    """Hold the work directory for this job; gives the summary if exactly this job has finished there before.

    A training run that somebody else keeps in the same directory (``tools/train.py --work-dir``) is left alone: the job
    trains in a sub-folder of its own.

    Raises:
        InputError: another job's results are there, or another process is writing there.
    """
    identity, work_dir = identity_of(settings), settings.work_dir
    with ownership.lock(work_dir, 'job', '--work-dir'):
        for place, folders, _ in os.walk(work_dir):
            # What a kill left half-written. Training cleans its own folder, which may be another process's.
            folders[:] = [name for name in folders if name != TRAINING]
            remove_leftovers(place)
        if settings.overwrite:
            clear(work_dir, foreign=True)
        record = work_dir / RECORD
        made = [name for name in OUTPUTS if os.path.lexists(work_dir / name)]
        if not record.is_file():
            if made:
                raise InputError(
                    f'{work_dir}: holds {", ".join(made)}, which no {RECORD} explains: choose another --work-dir, or '
                    'add --overwrite to remove them'
                )
        elif changed := ownership.differences(read_json(record, 'add --overwrite', kind=dict), identity):
            if made:
                more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
                raise InputError(
                    f'{work_dir}: holds a job with other settings or files ({"; ".join(changed[:3])}{more}): choose '
                    'another --work-dir, or add --overwrite to remove it'
                )
            # It got no further than its split: nothing is lost.
            clear(work_dir, foreign=False)
        write_json(record, identity)
        other = ownership.read_record(work_dir)
        if other is not None:
            say(
                f'{work_dir}: holds a run of kind {other.get("kind")} as well, begun {other.get("since")}: it is left '
                f'alone, this job trains in {work_dir / TRAINING}'
            )
        summary = work_dir / SUMMARY
        finished = summary.is_file() and 'report' in JobState.load(work_dir).done
        yield read_json(summary, 'add --overwrite', kind=dict) if finished else None


def clear(work_dir: Path, foreign: bool) -> None:
    """Remove what a job left in a folder, and say what.

    Args:
        foreign: and what a training run of somebody else left there.
    """
    withdraw(work_dir)
    if foreign and ownership.read_record(work_dir) is not None:
        say(ownership.clear(work_dir))
    found = [work_dir / name for name in OURS if os.path.lexists(work_dir / name)]
    if found:
        say(
            f'{work_dir}: removing what an earlier job left there: ' + ', '.join(path.name for path in found)
        )
    for path in found:
        remove(path)
