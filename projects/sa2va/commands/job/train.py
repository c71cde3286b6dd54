"""Stage 4: training, as the user would start it, in a process of its own and a folder of its own."""
from __future__ import annotations

import os
import sys

from sa2va_dpo.common import console
from sa2va_dpo.common.errors import WAITING, InputError
from sa2va_dpo.common.signals import Terminated, run_child
from sa2va_dpo.engine.run_record import publish

from .folder import TRAINING
from .rounds import LONGEST, VISITS, ask_people, config_with_rounds, steps_wanted
from .settings import JobSettings
from .state import JobState

TITLE = 'training'


def run(settings: JobSettings, state: JobState) -> JobState:
    """Train ``state.start`` on ``state.pairs`` in ``<work_dir>/training``; an interrupted training goes on.

    Whether what lies there is this very run is checked by training itself (``engine/run_record.py``).

    Raises:
        InputError: training failed; its own output says why.
    """
    folder = settings.work_dir / TRAINING
    while True:
        command = command_of(settings, state)
        console.detail(' '.join(['python', *command[1:]]))
        if '--resume' in command:
            console.say('training goes on from its last checkpoint (--resume)')
        elif longer := steps_wanted(settings, state):
            console.say(f'{longer[0]}: {VISITS} looks at every image, masks or not, but at most {LONGEST} times the '
                        'steps of the config; --cfg-options max_iters=N decides otherwise')
        code = run_child(command, {**os.environ, console.PART: 'train', **_threads(settings)}, **console.streams())
        if code != WAITING:
            break
        ask_people(settings, folder)
    if code in (130, 143):
        raise KeyboardInterrupt if code == 130 else Terminated
    if code:
        raise InputError(f'training ended with exit code {code}, see its lines above and the newest log in {folder}')
    taken = publish(settings.work_dir, folder)
    if taken:
        console.say(
            f'{settings.work_dir}: {taken[0]} and others there are another run\'s; this job\'s are in {folder}'
        )
    return state


def _threads(settings: JobSettings) -> dict[str, str]:
    """What torchrun sets for several processes of a machine, and warns of."""
    return {} if settings.gpus == 1 or 'OMP_NUM_THREADS' in os.environ else dict(OMP_NUM_THREADS='1')


def command_of(settings: JobSettings, state: JobState) -> list[str]:
    """The command line of training (torchrun for several GPUs)."""
    folder = settings.work_dir / TRAINING
    command = [sys.executable]
    if settings.gpus > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={settings.gpus}']
    config = config_with_rounds(settings, state) if settings.mines_in_rounds else settings.config
    command += ['-m', 'sa2va_dpo.commands.train', config, '--work-dir', str(folder), '--checkpoint', state.start,
                '--data-root', state.pairs, '--seed', str(settings.seed)]
    if settings.gpus > 1:
        command += ['--launcher', 'pytorch']
    if any(folder.glob('iter_*.pth')):
        command.append('--resume')
    options, size = ['model.trainable.refinement=full'] * settings.refine, state.sam_size['chosen']
    if not any('score_size=' in option for option in settings.cfg_options):
        if settings.refine:
            options.append(f'score_size={size}')  # as large as what it draws
        elif size != state.sam_size['own']:
            options.append(f'score_size={size // 2}')
    if not state.validates:
        options += [
            'val_dataloader=None',
            'val_cfg=None',
            'val_evaluator=None',
            'default_hooks.checkpoint.save_best=None',
        ]
    options += steps_wanted(settings, state)
    options += settings.cfg_options
    return command + ['--cfg-options', *options] * bool(options)
