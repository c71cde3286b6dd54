"""Validation images as pictures over the steps of a run, for TensorBoard and every other place that it reports to."""
from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.visualization import LocalVisBackend, MLflowVisBackend, Visualizer
from torch.utils.data import SequentialSampler

from sa2va_dpo.common.files import remove, write_bytes
from sa2va_dpo.evaluation.panels import panels
from sa2va_dpo.evaluation.vessel_metric import as_array, file_stem

START_FILE = 'start_masks.npz'  # in the work directory: a resumed run compares with the start, too


@HOOKS.register_module()
class ValidationImagesHook(Hook):
    """Shows the same few validation images at every validation, the one of the start included, as ``val/images/NAME``:
    image, ground truth, prediction, difference and, after the first step, what changed since the start
    (:func:`sa2va_dpo.evaluation.panels.panels`).

    Each process draws what it validates itself; the main process gets the pictures and reports them. Nothing is drawn
    at random and no image is predicted for it, so that a run with pictures is the run without them. The start's masks
    are kept in ``start_masks.npz``; a run whose start is not validated has no such picture.

    Args:
        count: images, spread evenly over the validation set; 0 shows none.
        most_steps: of how many validations of a run there are pictures at most: the first, the last, and others
            evenly between them. Bounds what a long run leaves on the disk.

    Raises:
        ValueError: a number that makes no sense.
    """

    # After the checkpoint: a picture that cannot be written must not cost one.
    priority = 'LOWEST'

    def __init__(self, count: int = 4, most_steps: int = 20) -> None:
        check_counts(dict(count=count, most_steps=most_steps))
        self.count, self.most_steps = count, most_steps
        self.training = self.resumed = False
        self.order: list[int] = []  # indices in the data set, in the order in which this process validates them
        self.wanted: frozenset[int] = frozenset()
        self.seen: dict[int, Mapping[str, Any]] = {}
        self.start: dict[int, np.ndarray] = {}
        self._place = 0
        self._said = False

    def before_train(self, runner) -> None:
        self.training, self.resumed = True, runner.iter > 0
        if not self.count:
            return
        path = Path(runner.work_dir) / START_FILE
        if self.resumed:
            self.start = read_masks(path)
        elif is_main_process():
            remove(path)  # of an earlier run

    def before_val_epoch(self, runner) -> None:
        self.seen, self._place = {}, 0
        self.order = self._order(runner) if self.training and self.count else []
        if self.order:
            self.wanted = frozenset(spread(len(runner.val_dataloader.dataset), self.count))

    def _order(self, runner) -> list[int]:
        sampler = runner.val_dataloader.sampler
        # Only of a sampler that says the same again when asked twice is it known which image is which.
        if getattr(sampler, 'shuffle', True) and not isinstance(sampler, SequentialSampler):
            self._say(runner, f'val_dataloader.sampler {type(sampler).__name__} has no fixed order')
            return []
        return list(sampler)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs: Sequence[Mapping] | None = None) -> None:
        if not self.order:
            return
        for sample in outputs or ():
            index = self.order[self._place] if self._place < len(self.order) else -1
            self._place += 1
            if index not in self.wanted or index in self.seen:
                continue
            if not all(isinstance(sample, Mapping) and sample.get(name) is not None
                       for name in ('image', 'pred_mask', 'gt_mask', 'image_id')):
                self._say(runner, 'the validation set does not hand on images and masks')
                self.order = []
                return
            self.seen[index] = sample

    def after_val(self, runner) -> None:
        if self.training and self.count and self._due(runner):
            own = {index: self._drawn(runner, index, sample) for index, sample in self.seen.items()}
            # Processes share the validation set; a padded image is seen twice.
            everyone = all_gather_object(own) if get_world_size() > 1 else [own]
            found = {index: drawn for process in everyone for index, drawn in process.items() if drawn is not None}
            if is_main_process():
                self._report(runner, found)
        self.seen = {}

    def _due(self, runner) -> bool:
        """All processes decide alike."""
        loop, step = runner.train_loop, runner.iter
        validations = math.ceil(loop.max_iters / loop.val_interval) + 1
        stride = math.ceil(validations / (self.most_steps - 1))
        return (step == 0 or step >= loop.max_iters or loop.stop_training
                or step // loop.val_interval % stride == 0)

    def _drawn(self, runner, index: int, sample: Mapping[str, Any]) -> dict | None:
        image, pred, target = (as_array(sample[name]) for name in ('image', 'pred_mask', 'gt_mask'))
        field = None if sample.get('field_of_view') is None else as_array(sample['field_of_view'])
        if runner.iter == 0:
            self.start[index] = pred
        start = self.start.get(index) if runner.iter else None
        if start is not None and start.shape != pred.shape:
            start = None  # another image has this place since
        try:
            return dict(name=file_stem(str(sample['image_id'])), pred=pred if runner.iter == 0 else None,
                        picture=panels(image, pred, target, start, field))
        except ValueError as error:
            self._say(runner, f'{sample["image_id"]}: {error}')
            return None

    def _report(self, runner, found: Mapping[int, Mapping[str, Any]]) -> None:
        names = Counter(drawn['name'] for drawn in found.values())
        for index, drawn in sorted(found.items()):
            name = drawn['name'] if names[drawn['name']] == 1 else f'{drawn["name"]}-{index}'
            add_image(runner.visualizer, f'val/images/{name}', drawn['picture'], runner.iter)
        if runner.iter == 0 and found:
            write_masks(Path(runner.work_dir) / START_FILE, {index: drawn['pred'] for index, drawn in found.items()})

    def _say(self, runner, why: str) -> None:
        if not self._said:
            runner.logger.warning(f'validation images are not shown: {why}')
        self._said = True


def check_counts(settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a number of the hook makes no sense; names it."""
    for name, least in (('count', 0), ('most_steps', 2)):
        value = settings.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            off = ' (0 shows none)' if name == 'count' else ''
            raise ValueError(f'{name}={value!r}: must be a whole number of at least {least}{off}')


def spread(images: int, count: int) -> list[int]:
    """Indices of ``count`` of ``images`` images, evenly spread from the first to the last; the same in every run."""
    if count == 1:
        return [(images - 1) // 2] if images else []
    return sorted({round(place * (images - 1) / (count - 1)) for place in range(count)}) if images and count else []


def add_image(visualizer: Visualizer, name: str, picture: np.ndarray, step: int) -> None:
    """Report a picture to every backend, under a name that it takes; by the main process.

    Args:
        name: with a slash for a group, as TensorBoard shows it.
        picture: uint8 [H, W, 3] RGB.
    """
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, LocalVisBackend):
            # It makes no folders: below one that is missing, OpenCV writes nothing and says nothing.
            backend.add_image(name.replace('/', '_'), picture, step)
        elif isinstance(backend, MLflowVisBackend):
            # It wants the ending of a file, and has no steps.
            backend.add_image(f'{name}/{step:08d}.png', picture, step)
        else:
            backend.add_image(name, picture, step)


def write_masks(path: Path, masks: Mapping[int, np.ndarray]) -> None:
    """Bool masks of any sizes in one small file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f'{index}': np.packbits(mask, axis=1) for index, mask in masks.items()},
                        **{f'{index}_width': np.array(mask.shape[1]) for index, mask in masks.items()})
    write_bytes(path, buffer.getvalue())


def read_masks(path: Path) -> dict[int, np.ndarray]:
    """What :func:`write_masks` wrote; nothing where the file is missing or damaged: pictures are no result."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {int(name): np.unpackbits(content[name], axis=1, count=int(content[f'{name}_width'])).astype(bool)
                    for name in content if name.isdecimal()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
