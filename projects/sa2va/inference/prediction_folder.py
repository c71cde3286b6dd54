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
from tqdm import tqdm

from sa2va_dpo.common import errors, ownership
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

from .scoring import load_for_inference, predictions

MASKS, PROBABILITIES, OVERLAYS = 'masks', 'probabilities', 'overlays'
TABLE, JOURNAL = 'predictions.csv', 'predictions.jsonl'
# What a run writes, as ``common/ownership.py`` wants it.
OURS = (MASKS, PROBABILITIES, OVERLAYS, TABLE, JOURNAL)
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

    @property
    def cut(self) -> float:
        """The threshold as a logit; exactly 0 for one half."""
        return math.log(self.threshold) - math.log1p(-self.threshold)

    def files(self, folder: Path, name: str) -> dict[str, Path]:
        """Kind -> file of an image."""
        kinds = (MASKS, *[PROBABILITIES] * self.probabilities, *[OVERLAYS] * self.overlays)
        return {kind: folder / kind / f'{name}.png' for kind in kinds}


DEFAULT = Outputs()


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
def predict_folder(checkpoint: str | os.PathLike, inputs: Sequence[str], folder: str | os.PathLike, *,
                   base: str | os.PathLike | None = None, prompt: str = DEFAULT_PROMPT, outputs: Outputs = DEFAULT,
                   batch_size: int = 1, device: str | None = None, overwrite: bool = False, progress: bool = True,
                   report: Callable[[str], None] = lambda line: None) -> Predicted:
    """Segment images into a folder, going on where an earlier call with the same arguments stopped.

    Args:
        checkpoint: directory in the released layout, or an adapter.
        inputs: files, folders and patterns; see :func:`sa2va_dpo.datasets.image_files.find_images`.
        folder: made if need be; one writer at a time (``common/ownership.py``).
        base: the checkpoint of an adapter, where it is not at the recorded path.
        outputs: what is written; more of it may be asked for later.
        batch_size: images per forward pass; they may differ in size.
        device: default a GPU where there is one.
        overwrite: remove another run's results first.
        progress: show a bar.
        report: is told each problem as it is found, and what ``overwrite`` removed.

    Raises:
        InputError: an argument that cannot be used, no image, the folder is not this run's, or the disk would not have
            it. An image that cannot be read is no error: see ``Predicted.problems``.
    """
    normalise_prompt(prompt, '--prompt')
    device, folder = pick_device(device), Path(folder)
    images = find_images(inputs, without=folder)
    models = dict.fromkeys([Path(checkpoint), base_directory(checkpoint, base)])
    identity = dict(model=[hash_directory(path) for path in models], input=[str(Path(path)) for path in inputs],
                    prompt=prompt, threshold=outputs.threshold, device=device.partition(':')[0])
    with ownership.claim(folder, 'prediction', identity, OURS, overwrite, flag='--output') as claim:
        errors.log_tracebacks_to(folder)
        if claim.cleared:
            report(claim.cleared)
        model = load_for_inference(checkpoint, device, base)
        begun = time.monotonic()
        problems = _predict(model, images, folder, hash_json(identity), prompt, outputs, batch_size, progress, report)
    return Predicted(len(images) - len(problems), problems, time.monotonic() - begun)


def _predict(model: Sa2VARunModel, images: Sequence[ImageFile], folder: Path, fingerprint: str, prompt: str,
             outputs: Outputs, batch_size: int, progress: bool, report: Callable[[str], None]) -> list[str]:
    """Every image that is not done; returns a line for each that cannot be read."""
    for kind in (MASKS, PROBABILITIES, OVERLAYS):
        for place, _, _ in os.walk(folder / kind):
            remove_leftovers(place)
    done = _done(folder, fingerprint, images, outputs)
    chunks = [images[i:i + batch_size] for i in range(0, len(images), batch_size)]
    problems: dict[str, str] = {}

    def failed(image: ImageFile, problem: str) -> None:
        problems[image.name] = problem
        # No mask may stand there for a file that has become another since.
        for file in outputs.files(folder, image.name).values():
            remove(file)
        report(f'left out: {problem}')

    make = _BatchMaker(model.checkpoint, prompt, outputs.probabilities or outputs.threshold != 0.5, done)
    todo = [chunk for chunk in chunks if any(image.name not in done for image in chunk)]
    journal = Journal(folder / JOURNAL, dict(fingerprint=fingerprint))
    pending: deque[Future] = deque()
    with (tqdm(total=len(images), initial=len(done), desc='predict', unit='image', disable=not progress) as bar,
          ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(4) as writers):
        try:
            with closing(predictions(model, _batches(readers, make, todo, failed, bar))) as predicted:
                for samples in predicted:
                    for sample in samples:
                        if sample['image_id'].image.name in done:
                            continue
                        pending.append(writers.submit(_write, sample, folder, outputs, journal))
                        if len(pending) > _AHEAD * batch_size:
                            done.update(pending.popleft().result())
                            bar.update()
            while pending:
                done.update(pending.popleft().result())
                bar.update()
        finally:
            # An error or Ctrl-C: what is computed is still written, what is not read yet is not.
            readers.shutdown(wait=True, cancel_futures=True)
            writers.shutdown(wait=True)
            journal.close()
    _write_table(folder, [(image, done[image.name]) for image in images if image.name in done])
    return [problems[image.name] for image in images if image.name in problems]


@dataclass(frozen=True)
class _Read:
    """An image whose file was read, and the hash of that file."""

    image: ImageFile
    digest: str


class _BatchMaker:
    """Reads the images of a batch.

    Returns:
        What the model takes (``None`` where no image is left to be done), and the problem of each image that cannot be
        read.
    """

    def __init__(self, checkpoint: str, prompt: str, logits: bool, done: Mapping[str, dict]) -> None:
        self.checkpoint, self.prompt, self.logits, self.done = checkpoint, prompt, logits, done

    def __call__(self, chunk: Sequence[ImageFile]) -> tuple[dict | None, list[tuple[ImageFile, str]]]:
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
        if all(source['image_id'].image.name in self.done for source in sources):
            return None, problems
        dataset = VesselSegDataset(sources, self.checkpoint)
        data = vessel_seg_collate([dataset[i] for i in range(len(sources))], self.checkpoint)
        return dict(data, logits=self.logits), problems


def _batches(readers: ThreadPoolExecutor, make: _BatchMaker, chunks: Sequence[Sequence[ImageFile]],
             failed: Callable[[ImageFile, str], None], bar: tqdm) -> Iterator[dict]:
    """What the model takes, chunk after chunk, the next ones being read meanwhile."""
    queue: deque[Future] = deque()
    rest = iter(chunks)
    while True:
        while len(queue) < _AHEAD and (chunk := next(rest, None)) is not None:
            queue.append(readers.submit(make, chunk))
        if not queue:
            return
        data, problems = queue.popleft().result()
        for image, problem in problems:
            failed(image, problem)
            bar.update()
        if data is not None:
            yield data


def _write(sample: dict, folder: Path, outputs: Outputs, journal: Journal) -> dict[str, dict]:
    """Put one image's files on the disk, then its line into the journal; returns name -> line."""
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
    return {image.name: entry}


def probability_png(logits: np.ndarray) -> bytes:
    """Logits [H, W] as a 16-bit grey PNG of their sigmoid, 65535 is 1; ``read_probability`` reads it back."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return cv2.imencode('.png', np.rint(probability * 65535).astype(np.uint16))[1].tobytes()


def _done(folder: Path, fingerprint: str, images: Sequence[ImageFile], outputs: Outputs) -> dict[str, dict]:
    """Lines of the journal by image, of those whose file is as it was and whose results are all there."""
    path = folder / JOURNAL
    lines = read_lines(path) if path.is_file() else []
    if not lines or lines[0].get('fingerprint') != fingerprint:
        return {}
    known = {line['image']: line for line in lines[1:]}
    found = {}
    for image in images:
        line = known.get(image.name)
        if line is None or not all(file.is_file() for file in outputs.files(folder, image.name).values()):
            continue
        try:
            if hash_file(image.path) == line['inputs']:
                found[image.name] = line
        except InputError:
            pass  # it cannot be read any more: the run says so
    return found


def _write_table(folder: Path, rows: Sequence[tuple[ImageFile, dict]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(['image', 'mask', 'width', 'height', *_MEASURES])
    for image, line in rows:
        measures = (_FORMATS.get(name, '{}').format(line[name]) for name in _MEASURES)
        writer.writerow([image.label, f'{MASKS}/{image.name}.png', line['width'], line['height'], *measures])
    write_bytes(folder / TABLE, table.getvalue().encode('utf-8'))
