"""What a job with rounds adds: training mines its own pairs, people pick between the rounds, and the summary says what
each was worth."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sa2va_dpo.common.console import say
from sa2va_dpo.common.files import read_json, write_text
from sa2va_dpo.datasets.annotations import PAIRS_FILE
from sa2va_dpo.datasets.mask_io import list_images
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.round_settings import RoundSettings
from sa2va_dpo.engine.round_state import ROUNDS_FILE, ROUNDS_FOLDER, WAITING_FILE

from .images import keep_apart
from .settings import JobSettings
from .state import JobState, Labelled

CONFIG, LIST = 'training_config.py', 'unlabelled.txt'
# How often each image should be looked at: 200 steps of 4 on ARCADE's 48 training images, the study's own length
# (docs/when.md). A set far larger than the config was made for does not make a job of hours out of one of minutes.
VISITS, LONGEST = 16, 5
LABELLED_FIRST = 1
# The best of the candidates in each of 8 x 8 squares: the study's choice where ground truth ranks the policy's own
# masks.
CELLS = 8


def steps_wanted(settings: JobSettings, state: JobState) -> list[str]:
    """``['max_iters=N']`` where images without masks need more steps than the config has; empty where they do not, or
    where the length is given on the command line or in epochs."""
    lengths = ('max_iters=', 'max_epochs=', 'train_cfg.max_iters=', 'train_cfg.max_epochs=')
    if not state.unlabelled or any(option.startswith(lengths) for option in settings.cfg_options):
        return []
    cfg = read_config(settings.config, list(settings.cfg_options))
    own = cfg.train_cfg.get('max_iters')
    if own is None:
        return []
    # With a budget of clicks the others make no pairs.
    images = len(state.training) + min(len(state.unlabelled), settings.clicks or len(state.unlabelled))
    wanted = math.ceil(VISITS * images / (cfg.train_dataloader.batch_size * settings.gpus))
    return [f'max_iters={min(wanted, LONGEST * own)}'] if wanted > own else []


class PeopleWanted(Exception):
    """Training waits for picks, and nobody is to be waited for here."""


def unlabelled_images(settings: JobSettings, state: JobState) -> list[str]:
    """The images of ``--unlabelled`` without those that the test or validation knows, by patient or by picture.

    Raises:
        InputError: none is left.
    """
    assert settings.unlabelled is not None
    found = [Labelled(str(path.resolve()), '') for path in list_images(Path(settings.unlabelled))]
    # Where both know an image the test and validation keep it.
    kept = keep_apart(
        found, [*(item.image for item in state.test), *state.validation], settings.group_regex, '--unlabelled',
        f'--unlabelled {settings.unlabelled}: every image there is one of the test or of validation: give images of '
        'other patients',
    )
    return [item.image for item in kept]


def round_settings(settings: JobSettings, state: JobState) -> dict[str, Any]:
    """``rounds=dict(...)`` of the training config (see :class:`sa2va_dpo.engine.round_settings.RoundSettings`)."""
    labelled = len(state.training)
    values: dict[str, Any] = dict(
        count=settings.rounds, num_samples=settings.num_samples, max_pairs_per_image=settings.max_pairs_per_image,
        prompt=state.test_prompt, include_gt=settings.gt_candidate, labelled=PAIRS_FILE if labelled else None)
    if settings.round_gap is not None:
        values['min_iou_gap'] = settings.round_gap
    if state.unlabelled:
        # Every image is drawn alike: more weight on few masks only learns them by heart (docs/when.md).
        values.update(
            unlabelled=str((settings.work_dir / LIST).resolve()),
            unlabelled_gt=settings.unlabelled_gt and str(Path(settings.unlabelled_gt).resolve()),
            judge=settings.judge,
            clicks=settings.clicks,
            members=list(settings.members),
            predictions=settings.predictions,
        )
        if labelled:
            values['labelled_share'] = round(labelled / (labelled + len(state.unlabelled)), 6)
            # Before anybody looks at candidates, the masks that are there say what a vessel is (docs/when.md).
            values['labelled_first'] = min(LABELLED_FIRST, settings.rounds - 1)
    elif not settings.gt_candidate:
        values['cells'] = CELLS
    return values


def config_with_rounds(settings: JobSettings, state: JobState) -> str:
    """Write the training config of this job, the chosen one with its rounds, and the list of images without masks; its
    path."""
    if state.unlabelled:
        write_text(settings.work_dir / LIST, '\n'.join(state.unlabelled) + '\n')
    path = settings.work_dir / CONFIG
    # Laid on the rounds that the chosen config may have: what no flag of the job says stays as it is there.
    write_text(
        path, f'_base_ = [{str(Path(settings.config).resolve())!r}]\nrounds = {round_settings(settings, state)!r}\n'
    )
    return str(path)


def rounds_of_config(settings: JobSettings, state: JobState) -> RoundSettings:
    """The rounds as training will see them, what the chosen config and the command line say of them included; writes
    that config, as :func:`config_with_rounds`.

    Raises:
        InputError: impossible settings.
    """
    return RoundSettings.from_config(
        read_config(config_with_rounds(settings, state), list(settings.cfg_options)).rounds)


def ask_people(settings: JobSettings, training: Path) -> None:
    """Serve the page on which the best candidates are picked until that is done.

    Raises:
        PeopleWanted: the job was told not to wait; it says what to do.
        KeyboardInterrupt: Ctrl-C; every pick so far is on disk.
    """
    waiting = read_json(training / ROUNDS_FOLDER / WAITING_FILE, 'repeat the command', kind=dict)
    root = waiting['root']
    if not settings.wait:
        raise PeopleWanted(
            f'round {waiting["round"]} waits for picks ({waiting["decided"]} of {waiting["wanted"]} images are '
            f'decided): '
            f'python scripts/review_pairs.py --pick --data_root {root} --reviewer {settings.reviewer}, then repeat '
            'this command'
        )
    from sa2va_dpo.review.server import serve_picks

    say(
        f'round {waiting["round"]}: pick the best candidate of {waiting["wanted"]} images; training goes on by itself '
        'afterwards (Ctrl-C ends the job, the same command goes on)'
    )
    serve_picks(root, settings.reviewer, settings.host, settings.port, clicks=settings.clicks, exit_when_done=True)


def rounds_of(training: Path) -> dict | None:
    """``rounds.json`` of the training run."""
    path = training / ROUNDS_FILE
    return read_json(path, 'repeat the job with --overwrite', kind=dict) if path.is_file() else None


def rounds_table(content: dict) -> str:
    """One line a round: what was mined, what the judge's word is worth where masks are known, what the guard did."""
    lines = []
    for record in content['rounds']:
        parts = [f'round {record["round"]} from iteration {record["iteration"]}']
        for name in ('labelled', 'unlabelled'):
            if record.get(name):
                parts.append(f'{record[name]["pairs"]} pairs of {record[name]["images"]} {name} images')
        if record.get('metric_after') is not None:
            parts.append(f'validation {record["metric"]:.4f} to {record["metric_after"]:.4f}: {record["decision"]}')
        lines.append(', '.join(parts))
    if content.get('ended'):
        lines.append(content['ended'])
    return '\n'.join(lines)
