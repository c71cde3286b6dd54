"""Stage 2: the base is tested, and given the SAM2 input size that suits the training images."""
from __future__ import annotations

import shutil
from pathlib import Path

from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.inference.input_size import choose_size, measure_sizes
from sa2va_dpo.inference.scoring import evaluate_model, images_of, load_for_inference
from sa2va_dpo.models.checkpoint import SAM2_DIMS, copy_with_sam_size, read_sam2_dims
from sa2va_dpo.models.grounding import is_sam3

from .images import ListedMasks
from .settings import JobSettings
from .state import JobState
from .talk import say


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``before``, ``sam_size``, ``start`` and, where the size changes, ``resized``.

    Raises:
        InputError: a size was asked for and this checkpoint's cannot be changed.
    """
    if state.test:
        say(f'test before training, {len(state.test)} images')
        state.before = test(settings.model, state, settings, 'test_before')
    own = read_sam2_dims(settings.model)['image_size']
    chosen, measured = _choose(settings, state, own)
    state.sam_size = dict(own=own, chosen=chosen, dice={str(size): value for size, value in measured.items()})
    state.start = settings.model
    if chosen != own:
        start = settings.work_dir / 'start_hf'
        # An interrupted job may have left it.
        shutil.rmtree(start, ignore_errors=True)
        copy_with_sam_size(settings.model, start, chosen)
        state.start = str(start)
        if state.test:
            say(f'test of the untrained start at {chosen} px')
            state.resized = test(start, state, settings, 'test_resized')
    return state


def test(checkpoint: str | Path, state: JobState, settings: JobSettings, folder: str) -> dict:
    """Test metrics of a checkpoint directory; details go to ``folder`` in the work directory."""
    model = load_for_inference(checkpoint)
    dataset = images_of(ListedMasks(state.test, state.test_prompt), checkpoint)
    return evaluate_model(model, dataset, settings.work_dir / folder, device=pick_device(), seed=settings.seed)


def _choose(settings: JobSettings, state: JobState, own: int) -> tuple[int, dict[int, float]]:
    """(the size to train at, Dice of the sizes that were measured); on training images only."""
    fixed = not (Path(settings.model) / SAM2_DIMS).is_file() or is_sam3(read_sam2_dims(settings.model))
    if settings.sam_size == 'keep' or (settings.sam_size == 'auto' and fixed):
        return own, {}
    if settings.sam_size != 'auto':
        return int(settings.sam_size), {}
    if not state.training:
        print(
            f'SAM2 input size: stays at {own} px, no ground truth of a training image is known to measure others on',
            flush=True,
        )
        return own, {}
    say(f'SAM2 input size: the start on training images at {own} px and others')
    measured = measure_sizes(settings.model, ListedMasks(state.training, state.test_prompt), pick_device())
    chosen = choose_size(measured)
    print(
        ', '.join(f'{size} px: Dice {value:.4f}' for size, value in sorted(measured.items()))
        + f'; chosen: {chosen} px',
        flush=True,
    )
    return chosen, measured
