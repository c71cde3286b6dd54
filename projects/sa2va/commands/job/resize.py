"""Stage 2: the base is tested, and given the SAM2 input size and the grid that suit the training images."""
from __future__ import annotations

import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from sa2va_dpo.common.console import say
from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.ground_truth import patient_of, split_by_group
from sa2va_dpo.datasets.mask_io import image_size
from sa2va_dpo.inference.grid_choice import HELD_OUT, choose_look, looks_at, measure_looks
from sa2va_dpo.inference.input_size import choose_size, measure_sizes
from sa2va_dpo.inference.scoring import evaluate_model, images_of, load_for_inference
from sa2va_dpo.models.checkpoint import (
    SAM2_DIMS,
    copy_with_sam_size,
    copy_with_view,
    read_sam2_dims,
    read_view,
    write_view,
)
from sa2va_dpo.models.grounding import is_sam3
from sa2va_dpo.models.view_geometry import ViewGeometry

from .images import ListedMasks
from .settings import JobSettings
from .state import JobState

TITLE = 'the start'

# Tried one after another, each only where the one before was better than the whole image or the grid before it.
GRIDS = (1, 2, 3, 4)
# Where a photograph has this many times the pixels along its longer side that SAM2 sees, tiles are worth measuring
# unasked: below it they gained nothing over a larger input, or lost (docs/resolution.md).
LARGER = 2


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``before``, ``sam_size``, ``view``, ``start`` and, where size or view change, ``resized``.

    Raises:
        InputError: a size was asked for and this checkpoint's cannot be changed.
    """
    if state.test:
        state.before = test(settings.model, state, settings, 'test_before', 'test before training')
    own = read_sam2_dims(settings.model)['image_size']
    chosen, measured = _choose(settings, state, own)
    stated = read_view(settings.model)
    chosen, view = _look(settings, state, own, chosen, stated)
    state.sam_size = dict(own=own, chosen=chosen, dice={str(size): value for size, value in measured.items()})
    state.start = settings.model
    if chosen != own or view != stated:
        start = settings.work_dir / 'start_hf'
        # An interrupted job may have left it.
        shutil.rmtree(start, ignore_errors=True)
        if chosen != own:
            copy_with_sam_size(settings.model, start, chosen)
            write_view(start, view)
        else:
            copy_with_view(settings.model, start, view)
        state.start = str(start)
        if state.test:
            state.resized = test(start, state, settings, 'test_resized',
                                 f'test of the untrained start at {chosen} px, grid {view.grid}')
    return state


def test(checkpoint: str | Path, state: JobState, settings: JobSettings, folder: str, desc: str) -> dict:
    """Test metrics of a checkpoint directory; details go to ``folder`` in the work directory."""
    model = load_for_inference(checkpoint)
    dataset = images_of(ListedMasks(state.test, state.test_prompt), checkpoint)
    return evaluate_model(model, dataset, settings.work_dir / folder, device=pick_device(), seed=settings.seed,
                          desc=desc)


def _look(settings: JobSettings, state: JobState, own: int, chosen: int,
          stated: ViewGeometry) -> tuple[int, ViewGeometry]:
    """(input size, view) to train with; fills ``state.view``."""
    state.view = dict(own=stated.to_dict(), dice={}, seconds=0.0)
    view = stated if isinstance(settings.grid, str) else replace(stated, grid=settings.grid)
    if settings.grid == 'measure' or (settings.grid == 'auto' and stated.grid == 1 and _much_larger(state, own)):
        patients = {patient_of(Path(item.image).stem, settings.group_regex) for item in state.training}
        if len(patients) < 2:
            say(f'grid: stays at {stated.grid}, {len(patients)} training patients with ground truth are too few to '
                'hold one out')
        else:
            chosen, grid = _probe(settings, state, own, chosen)
            view = replace(stated, grid=grid)
    state.view['chosen'] = view.to_dict()
    return chosen, view


def _much_larger(state: JobState, own: int) -> bool:
    """Whether most training images have at least ``LARGER`` times the model's input along their longer side."""
    sides = [max(image_size(item.image)) for item in state.training]
    return bool(sides) and statistics.median(sides) >= LARGER * own


def _probe(settings: JobSettings, state: JobState, own: int, chosen: int) -> tuple[int, int]:
    """(input size, grid), measured; on training images only."""
    fit, held = split_by_group(state.training, HELD_OUT, settings.seed,
                               key=lambda item: patient_of(Path(item.image).stem, settings.group_regex))
    say(f'grid: short trainings on {len(fit)} training images, scored on {len(held)} others')
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [settings.model]
        if chosen != own:
            resized = str(copy_with_sam_size(settings.model, Path(folder) / 'resized', chosen))
            # A size that was asked for is not traded for a grid at the model's own.
            checkpoints = [settings.model, resized] if settings.sam_size == 'auto' else [resized]
        looks = looks_at(checkpoints, GRIDS)
        measured = measure_looks(looks, ListedMasks(fit, state.test_prompt), ListedMasks(held, state.test_prompt),
                                 pick_device(), settings.seed)
        best = choose_look(looks, measured.dice)
    state.view.update(dice=measured.dice, seconds=round(measured.seconds, 1))
    say(', '.join(f'{name}: Dice {value:.4f}' for name, value in measured.dice.items())
        + f'; chosen: {best}, after {measured.seconds:.0f} s')
    return best.size, best.grid


def _choose(settings: JobSettings, state: JobState, own: int) -> tuple[int, dict[int, float]]:
    """(the size to train at, Dice of the sizes that were measured); on training images only."""
    fixed = not (Path(settings.model) / SAM2_DIMS).is_file() or is_sam3(read_sam2_dims(settings.model))
    if settings.sam_size == 'keep' or (settings.sam_size == 'auto' and fixed):
        return own, {}
    if settings.sam_size != 'auto':
        return int(settings.sam_size), {}
    if not state.training:
        say(
            f'SAM2 input size: stays at {own} px, no ground truth of a training image is known to measure others on'
        )
        return own, {}
    measured = measure_sizes(settings.model, ListedMasks(state.training, state.test_prompt), pick_device())
    chosen = choose_size(measured)
    say(
        'SAM2 input size: ' + ', '.join(f'{size} px: Dice {value:.4f}' for size, value in sorted(measured.items()))
        + f'; chosen: {chosen} px'
    )
    return chosen, measured
