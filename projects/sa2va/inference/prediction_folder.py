"""Images of any number -> a folder of masks, probability maps, pictures and a table.

Memory holds a few batches, whatever the number of images. Every file appears whole; an image's line in the journal is
written after its files. The same run again leaves out what the journal knows and the folder holds, and ends with the
same files as one that was never disturbed: batches are cut by position, so an image is always computed beside the
same others.
"""
from __future__ import annotations

import csv
import io
import math
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from sa2va_dpo.common import console, errors, ownership
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_directory, hash_file, hash_json, remove, remove_leftovers, write_bytes
from sa2va_dpo.common.journal import Journal, read_lines
from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.image_files import ImageFile, find_images
from sa2va_dpo.datasets.mask_io import read_image_rgb, write_mask, write_rgb
from sa2va_dpo.datasets.preprocess import normalise_prompt
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT, VesselSegDataset, vessel_seg_collate
from sa2va_dpo.evaluation.measures import VesselMeasures, vessel_measures
from sa2va_dpo.evaluation.overlay import prediction_overlay
from sa2va_dpo.models.checkpoint import base_directory
from sa2va_dpo.models.run_model import Sa2VARunModel
from sa2va_dpo.models.view_geometry import ViewGeometry

from .predictor import view_of
from .scoring import load_for_inference, predictions

MASKS, PROBABILITIES, OVERLAYS = 'masks', 'probabilities', 'overlays'
TABLE, JOURNAL = 'predictions.csv', 'predictions.jsonl'
# What a run writes, as ``common/ownership.py`` wants it.
OURS = (MASKS, PROBABILITIES, OVERLAYS, TABLE, JOURNAL)
Batch = tuple[dict | None, list[tuple[ImageFile, str]]]
_AHEAD = 2  # batches that are read before, and written after, the one that is computed
_MEASURES = tuple(field.name for field in fields(VesselMeasures))
_FORMATS = dict(vessel_share='{:.6f}', skeleton_length_px='{:.2f}')


@dataclass(frozen=True)
class Outputs:
    """What is written for each image.

    Attributes:
        threshold: probability above which a pixel is vessel, between 0 and 1.
        probabilities: also 16-bit PNG, 65535 is 1.
        overlays: also a picture of the mask on the image.
    """

    threshold: float = 0.5
    probabilities: bool = False
    overlays: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise InputError(f'--threshold {self.threshold:g}: must be above 0 and below 1')

    @property
    def cut(self) -> float:
        """The threshold as a logit; exactly 0 for one half."""
        return math.log(self.threshold) - math.log1p(-self.threshold)

    def files(self, folder: Path, name: str) -> dict[str, Path]:
        """Kind -> file of an image."""
        kinds = (MASKS, *[PROBABILITIES] * self.probabilities, *[OVERLAYS] * self.overlays)
        return {kind: folder / kind / f'{name}.png' for kind in kinds}


@dataclass(frozen=True)
class Predicted:
    """What came of a call.

    Attributes:
        masks: images whose results are in the folder, those of earlier calls included.
        problems: a line for each image that could not be read.
        seconds: of reading, computing and writing, without loading the model.
    """

    masks: int
    problems: list[str]
    seconds: float


@ownership.releases
def predict_folder(checkpoint: str | os.PathLike, inputs: str | os.PathLike | Sequence[str | os.PathLike],
                   folder: str | os.PathLike, *, base: str | os.PathLike | None = None, prompt: str = DEFAULT_PROMPT,
                   threshold: float = 0.5, probabilities: bool = False, overlays: bool = False, batch_size: int = 1,
                   device: str | None = None, grid: int | str | None = None, overwrite: bool = False,
                   progress: bool = True, report: Callable[[str], None] = lambda line: None) -> Predicted:
    """Segment images into a folder, going on where an earlier call with the same arguments stopped: what
    ``sa2va-dpo predict`` does (docs/predict.md), public as ``sa2va_dpo.predict_folder``.

    Args:
        checkpoint: directory in the released layout, or an adapter.
        inputs: files, folders and patterns, one or several; see
            :func:`sa2va_dpo.datasets.image_files.find_images`.
        folder: made if need be; one writer at a time (``common/ownership.py``).
        base: the checkpoint of an adapter, where it is not at the recorded path.
        prompt: the question, with or without ``<image>``.
        threshold: probability above which a pixel is vessel, above 0 and below 1.
        probabilities, overlays: what is written beside masks and table; may be asked for later.
        batch_size: images per forward pass, at least 1; they may differ in size.
        device: default a GPU where there is one.
        grid: tiles along each axis or ``'auto'`` (docs/resolution.md), in place of what the checkpoint states.
        overwrite: remove another run's results first.
        progress: show a bar.
        report: is told each problem as it is found, and what ``overwrite`` removed.

    Raises:
        InputError: an argument that cannot be used (named as the command's flag), no image, the folder is not this
            run's, or the disk would not have it. An image that cannot be read is no error: see
            ``Predicted.problems``.
    """
    outputs = Outputs(threshold, probabilities, overlays)
    if batch_size < 1:
        raise InputError(f'--batch-size {batch_size}: must be at least 1')
    inputs = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    normalise_prompt(prompt, '--prompt')
    device, folder = pick_device(device), Path(folder)
    images = find_images(inputs, without=folder)
    view = view_of(checkpoint, base, grid)
    whole = base_directory(checkpoint, base)
    identity = dict(model=[hash_directory(path) for path in dict.fromkeys([Path(checkpoint), whole])],
                    input=[str(Path(path)) for path in inputs], prompt=prompt, threshold=threshold,
                    view=view.to_dict(), device=device.partition(':')[0])
    with ownership.claim(folder, 'prediction', identity, OURS, overwrite, flag='--output') as claim:
        errors.log_tracebacks_to(folder)
        if claim.cleared:
            report(claim.cleared)
        work = _Work(folder, outputs, hash_json(identity), images, batch_size, report)
        if not work.todo:
            work.write_table()
            return Predicted(len(images), [], 0)
        make = _BatchMaker(str(whole), prompt, view, logits=probabilities or threshold != 0.5)
        model = load_for_inference(checkpoint, device, base)
        begun = time.monotonic()
        work.do(model, make, progress)
        work.write_table()
    return Predicted(len(work.done), work.problems, time.monotonic() - begun)


class _Work:
    """What is done and what is left to do in a folder that the caller owns.

    Attributes:
        done: name -> line of the journal, of images whose results are all there.
        todo: batches with an image that is not done; cut by position, so that the same images are always together.
    """

    def __init__(self, folder: Path, outputs: Outputs, fingerprint: str, images: Sequence[ImageFile], batch_size: int,
                 report: Callable[[str], None]) -> None:
        self.folder, self.outputs, self.fingerprint, self.images = folder, outputs, fingerprint, images
        self.report, self.batch_size = report, batch_size
        self._problems: dict[str, str] = {}
        for kind in (MASKS, PROBABILITIES, OVERLAYS):
            for place, _, _ in os.walk(folder / kind):
                remove_leftovers(place)
        self.done = self._found()
        chunks = [images[i:i + batch_size] for i in range(0, len(images), batch_size)]
        self.todo = [chunk for chunk in chunks if any(image.name not in self.done for image in chunk)]

    @property
    def problems(self) -> list[str]:
        """A line for each image that could not be read, in the order of the input."""
        return [self._problems[image.name] for image in self.images if image.name in self._problems]

    def _found(self) -> dict[str, dict]:
        """Lines of the journal by image, of those whose file is as it was and whose results are all there."""
        path = self.folder / JOURNAL
        lines = read_lines(path) if path.is_file() else []
        if not lines or lines[0].get('fingerprint') != self.fingerprint:
            return {}
        known = {line['image']: line for line in lines[1:]}
        found = {}
        for image in self.images:
            line = known.get(image.name)
            files = self.outputs.files(self.folder, image.name).values()
            if line is None or not all(file.is_file() for file in files):
                continue
            try:
                if hash_file(image.path) == line['inputs']:
                    found[image.name] = line
            except InputError:
                pass  # it cannot be read any more: the run says so
        return found

    def do(self, model: Sa2VARunModel, make: _BatchMaker, progress: bool) -> None:
        """Predict what is to be done, reading the next batches and writing the last ones meanwhile."""
        journal = Journal(self.folder / JOURNAL, dict(fingerprint=self.fingerprint))
        pending: deque[Future] = deque()
        with (console.progress(total=len(self.images), initial=len(self.done), desc='predict', unit='image',
                               disable=not progress) as bar,
              ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(4) as writers):
            batches = self._batches(readers, make, bar.update)

            def finish_first() -> None:
                entry = pending.popleft().result()
                self.done[entry['image']] = entry
                bar.update()

            try:
                with closing(predictions(model, batches)) as predicted:
                    for sample in (sample for samples in predicted for sample in samples):
                        if sample['image_id'].image.name not in self.done:
                            pending.append(writers.submit(_write, sample, self.folder, self.outputs, journal))
                        while len(pending) > _AHEAD * self.batch_size:
                            finish_first()
                while pending:
                    finish_first()
            finally:
                # An error or Ctrl-C: what is computed is still written, what is not read yet is not.
                readers.shutdown(wait=True, cancel_futures=True)
                writers.shutdown(wait=True)
                journal.close()

    def _batches(self, readers: ThreadPoolExecutor, make: _BatchMaker,
                 count: Callable[[], object]) -> Iterator[dict]:
        """What the model takes, batch after batch."""
        queue: deque[Future] = deque()
        rest = iter(self.todo)
        while True:
            while len(queue) < _AHEAD and (chunk := next(rest, None)) is not None:
                queue.append(readers.submit(make, chunk, self.done))
            if not queue:
                return
            data, problems = queue.popleft().result()
            for image, problem in problems:
                self._problems[image.name] = problem
                # No mask may stand there for a file that has become another since.
                for file in self.outputs.files(self.folder, image.name).values():
                    remove(file)
                self.report(f'left out: {problem}')
                count()
            if data is not None:
                yield data

    def write_table(self) -> None:
        """One row for each image that is done, in the order of the input."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator='\n')
        writer.writerow(['image', 'mask', 'width', 'height', *_MEASURES])
        for image in self.images:
            if (line := self.done.get(image.name)) is not None:
                measures = (_FORMATS.get(name, '{}').format(line[name]) for name in _MEASURES)
                writer.writerow([image.label, f'{MASKS}/{image.name}.png', line['width'], line['height'], *measures])
        write_bytes(self.folder / TABLE, table.getvalue().encode('utf-8'))


@dataclass(frozen=True)
class _Read:
    """An image whose file was read, and the hash of that file."""

    image: ImageFile
    digest: str


class _BatchMaker:
    """Reads the images of a batch."""

    def __init__(self, checkpoint: str, prompt: str, view: ViewGeometry, logits: bool) -> None:
        self.checkpoint, self.prompt, self.view, self.logits = checkpoint, prompt, view, logits

    def __call__(self, chunk: Sequence[ImageFile], done: Mapping[str, dict]) -> Batch:
        """What the model takes (``None`` where every image that can be read is done), and the problems of the others.
        """
        sources, problems = [], []
        for image in chunk:
            try:
                if image.problem is not None:
                    raise InputError(image.problem)
                # Before the pixels: a file that changes in between is seen as changed by the next run.
                read = _Read(image, hash_file(image.path))
                sources.append(dict(image=read_image_rgb(image.path), prompt=self.prompt, image_id=read))
            except InputError as error:
                problems.append((image, ' '.join(str(error).split())))
        if all(source['image_id'].image.name in done for source in sources):
            return None, problems
        dataset = VesselSegDataset(sources, self.checkpoint, view=self.view)
        data = vessel_seg_collate([dataset[i] for i in range(len(sources))], self.checkpoint)
        return dict(data, logits=self.logits), problems


def _write(sample: dict, folder: Path, outputs: Outputs, journal: Journal) -> dict:
    """Put one image's files on the disk, then its line into the journal, which is returned."""
    image = sample['image_id'].image
    mask = sample['pred_mask'] if outputs.threshold == 0.5 else sample['logits'] > outputs.cut
    files = outputs.files(folder, image.name)
    write_mask(files[MASKS], mask)
    if outputs.probabilities:
        write_bytes(files[PROBABILITIES], probability_png(sample['logits']))
    if outputs.overlays:
        write_rgb(files[OVERLAYS], prediction_overlay(sample['image'], mask))
    entry = dict(image=image.name, inputs=sample['image_id'].digest, height=mask.shape[0], width=mask.shape[1],
                 **asdict(vessel_measures(mask)))
    journal.append(entry)
    return entry


def probability_png(logits: np.ndarray) -> bytes:
    """Logits [H, W] as a 16-bit grey PNG of their sigmoid, 65535 is 1; ``read_probability`` reads it back."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return cv2.imencode('.png', np.rint(probability * 65535).astype(np.uint16))[1].tobytes()
