"""``report.html`` of the job: what the command line says about it; the page itself is ``sa2va_dpo.reporting``'s."""
from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping

from sa2va_dpo.common.bundled import config_path
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.recipe import differing, show
from sa2va_dpo.engine.run_record import plain
from sa2va_dpo.reporting.job import job_report, read_folder
from sa2va_dpo.reporting.page import write
from sa2va_dpo.reporting.text import Text

from .flags import build_parser
from .folder import TRAINING
from .images import ListedMasks
from .settings import MINING, PATHS, ROUNDS
from .state import JobState, Labelled

# What the head of the page and the command say already; the last is spelled by --min_iou_gap.
_ELSEWHERE = (*PATHS, 'test_from', 'cfg_options', 'round_gap')


def write_page(folder: Path, language: str) -> Path:
    """Make the page of a finished job anew from what is on the disk; gives its path.

    Raises:
        InputError: the job has not finished, or one of its files is damaged.
    """
    identity, state, summary, unknown = completed(*read_folder(folder), folder)
    source = ListedMasks([Labelled(**item) for item in state['test']], state['test_prompt'])
    text = Text(language)
    report = job_report(
        folder,
        identity,
        state,
        summary,
        source.__getitem__ if len(source) else None,
        [('command_job', command_line(identity['settings'])),
         ('command_report', shlex.join(['python', '-m', 'sa2va_dpo', 'report', str(folder), '--lang', language]))],
        [*changed_flags(identity['settings']), *_changed_config(folder, identity['settings'])],
        text,
    )
    if unknown:
        report.notes.append(text('note_older', names=', '.join(unknown)))
    return write(report, folder, text)


def completed(identity: dict, state: dict, summary: dict, folder: Path) -> tuple[dict, dict, dict, list[str]]:
    """The files of a job that an earlier version wrote, with what that version did not say filled in as not known.

    Returns:
        identity, state, summary, and the names that were filled in.

    Raises:
        InputError: without what is missing there is nothing to report.
    """
    for file, content, needed in (('job.json', identity, ('settings', 'content')), ('state.json', state, ()),
                                  ('summary.json', summary, ('best_checkpoint', 'exported_hf', 'validation_dice'))):
        missing = [name for name in needed if name not in content]
        if missing:
            raise InputError(f'{folder / file}: says nothing of {missing[0]}: an earlier version of this program wrote '
                             'it: repeat the job with --overwrite')
    defaults = {**_defaults(identity['settings']), **dict.fromkeys(PATHS), 'model': '–', 'config': '–',
                'test_from': 'split', 'cfg_options': [], 'round_gap': None}
    fresh = asdict(JobState())
    results: dict[str, Any] = dict(before=None, after=None, pairs=0, train_images=0, seconds=None, seed='–',
                                   sam_size={}, exported_sam_size=None)
    unknown = [name for default, found in ((defaults, identity['settings']), (fresh, state), (results, summary))
               for name in default if name not in found]
    return (dict(identity, settings={**defaults, **identity['settings']}), {**fresh, **state}, {**results, **summary},
            list(dict.fromkeys(unknown)))


def command_line(settings: Mapping[str, Any]) -> str:
    """The command of a job with these settings (``JobSettings.identity``), with the paths that were found."""
    words = ['bash', 'train_dpo_vessel.sh', '--work-dir', 'NEW_FOLDER']
    # Where the pairs exist and hold their own test, the folders of images stay away.
    for name in PATHS:
        if settings[name] is not None:
            words += [f'--{name}', str(settings[name])]
    if settings['test_from'] == 'none':
        words.append('--without-masks')
    for name, _, here in changed_flags(settings):
        if name in ('--no-gt-candidate', '--refine'):
            words.append(name)
        elif name == '--members':
            words += [name, *settings['members']]
        else:
            words += [name, here]
    if '--seed' not in words:
        words += ['--seed', str(settings['seed'])]
    if settings['cfg_options']:
        words += ['--cfg-options', *settings['cfg_options']]
    return shlex.join(words)


def changed_flags(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(flag, default, here) of the job's flags that are not at their default, where they are not shown elsewhere."""
    defaults, found = _defaults(settings), []
    for name, here in settings.items():
        # Flags that there are no more are of an earlier version.
        if name in _ELSEWHERE or name not in defaults or here == defaults[name]:
            continue
        if name == 'gt_candidate':
            found.append(('--no-gt-candidate', '–', show(True)))
        else:
            value = ' '.join(map(str, here)) if isinstance(here, list) else show(here)
            found.append((f'--{name}', show(defaults[name]) if defaults[name] not in (None, []) else '–', value))
    return found


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    parser = build_parser()
    rounds, judge = (ROUNDS, 'consensus') if settings.get('unlabelled') is not None else (1, 'iou')
    flags = {name: parser.get_default(name) for name in ('sam_size', 'grid', 'refine', 'gpus', 'seed')}
    return dict(MINING, rounds=rounds, judge=judge, gt_candidate=True, members=[], clicks=None, prompt=None,
                group_regex=None, **flags)


def _changed_config(folder: Path, settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What training's config says otherwise than the config that was named."""
    used = folder / TRAINING / 'config.py'
    try:
        default = plain(read_config(config_path(settings['config'])))
        here = plain(read_config(str(used)))
    except InputError:
        # Moved or edited since: what was asked for is on record all the same.
        return [('--cfg-options', '–', option) for option in settings['cfg_options']]
    return differing(default, here)


