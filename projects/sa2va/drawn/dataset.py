"""Drawn images as a data set, drawn on the fly or once into a memory-mapped cache."""
from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Iterator, Mapping

import cv2
import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from sa2va_dpo.common.console import progress
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import make_directory, new_directory, write_bytes

from .demo import DEFAULT_SHIFT, DemoShift
from .draw import VERSION, DrawnSample, check_style, draw

PROMPT = '<image>Please segment the blood vessels.'


@lru_cache(maxsize=None)
def style_sequence(styles: tuple[tuple[str, float], ...], seed: int, length: int) -> tuple[str, ...]:
    """Style of every index: as near to the weights as whole numbers allow, in an order shuffled by ``seed``."""
    weights = np.array([weight for _, weight in styles], float)
    ends = np.rint(np.cumsum(weights) / weights.sum() * length).astype(int)
    names = [name for (name, _), n in zip(styles, np.diff([0, *ends])) for _ in range(n)]
    order = np.random.default_rng(np.random.SeedSequence([0, seed, length])).permutation(length)
    return tuple(names[i] for i in order)


def _init_worker() -> None:
    cv2.setNumThreads(1)


def _draw_one(job: tuple) -> DrawnSample:
    return draw(*job)


def draw_many(jobs: list[tuple], description: str, workers: int | None = None) -> Iterator[DrawnSample]:
    """``draw(*job)`` for every job, in order, on several processes, with a progress bar.

    Args:
        jobs: positional arguments of :func:`draw`.
        workers: processes; ``None`` takes the cores this process may use. 0 and 1 stay in this process.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    workers = min(workers, max(1, len(jobs) // 4))
    bar: dict = dict(total=len(jobs), desc=description, unit='image')
    if workers <= 1:
        yield from progress(map(_draw_one, jobs), **bar)
        return
    # spawn: this process may hold CUDA or many threads, neither of which survives a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn'), initializer=_init_worker) as pool:
        yield from progress(pool.map(_draw_one, jobs, chunksize=4), **bar)


@DATASETS.register_module()
class DrawnVesselDataset(Dataset):
    """Procedurally drawn vessel images with exact ground truth.

    Args:
        styles: style -> weight; sample counts follow the weights.
        seed: of the whole set. Two seeds share no image.
        length: number of samples.
        size: side of the images in pixels.
        prompt: given out with every sample.
        label_dilation_px: see :func:`draw`.
        demo_shift: fields of :class:`DemoShift` that differ from its defaults.
        cache_dir: folder for caches; ``None`` draws on every access. The cache is made at construction if it is not
            there, under a name that all parameters determine, and mapped into memory: processes share it.
        workers: processes that fill the cache; ``None`` takes every core available.

    Items are dicts: ``image`` uint8 ``[H, W, 3]`` RGB, ``mask`` uint8 ``[H, W]`` 0/255, ``prompt``, ``image_id``.

    Raises:
        InputError: unknown style, weights that do not add up to anything, no length, or a cache folder that cannot be
            written.
    """

    def __init__(self, styles: Mapping[str, float], seed: int = 0, length: int = 1000, size: int = 512,
                 prompt: str = PROMPT, label_dilation_px: float = 0.0, demo_shift: Mapping | None = None,
                 cache_dir: str | None = None, workers: int | None = None) -> None:
        for name in styles:
            check_style(name, 'DrawnVesselDataset: styles')
        if min(styles.values(), default=-1) < 0 or sum(styles.values()) <= 0:
            raise InputError(f'DrawnVesselDataset: styles is {dict(styles)}; give weights >= 0, at least one above 0')
        if length < 1:
            raise InputError(f'DrawnVesselDataset: length is {length}; it must be at least 1')
        try:
            self.shift = DemoShift(**(demo_shift or {}))
        except TypeError as error:
            raise InputError(f'DrawnVesselDataset: demo_shift: {error}; its fields are '
                             f'{", ".join(asdict(DEFAULT_SHIFT))}') from None
        self.styles = tuple(sorted((str(k), float(v)) for k, v in styles.items()))
        self.seed, self.length, self.size = int(seed), int(length), int(size)
        self.prompt, self.label_dilation_px = prompt, float(label_dilation_px)
        self.sequence = style_sequence(self.styles, self.seed, self.length)
        self.cache = self._open_cache(Path(cache_dir), workers) if cache_dir is not None else None
        self._maps: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def job(self, index: int) -> tuple:
        """Arguments of :func:`draw` for a sample."""
        style = self.sequence[index]
        return (style, index, self.seed, self.size, self.label_dilation_px, self.shift if style == 'demo' else None)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(f'index {index} of {self.length} samples')
        if self.cache is None:
            sample = draw(*self.job(index))
            image, mask = sample.image, sample.mask
        else:
            images, masks = self._mapped()
            image, mask = np.array(images[index]), np.array(masks[index])
        return dict(image=image, mask=mask, prompt=self.prompt,
                    image_id=f'{self.sequence[index]}_{self.seed}_{index:05d}')

    # -- cache ----------------------------------------------------------------------------------------------------

    def cache_key(self) -> str:
        """Hex digest of everything that determines the pixels."""
        state = dict(version=VERSION, styles=self.styles, seed=self.seed, length=self.length, size=self.size,
                     label_dilation_px=self.label_dilation_px,
                     demo_shift=asdict(self.shift) if dict(self.styles).get('demo') else None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:20]

    def _open_cache(self, root: Path, workers: int | None) -> Path:
        folder = root / f'drawn_{self.cache_key()}'
        if folder.is_dir():
            return folder
        try:
            with new_directory(folder) as building:
                n, s = self.length, self.size
                images = np.lib.format.open_memmap(building / 'images.npy', 'w+', np.uint8, (n, s, s, 3))
                masks = np.lib.format.open_memmap(building / 'masks.npy', 'w+', np.uint8, (n, s, s))
                for i, sample in enumerate(draw_many([self.job(i) for i in range(n)], 'drawing', workers)):
                    images[i], masks[i] = sample.image, sample.mask
                images.flush()
                masks.flush()
        except InputError:
            # Another process finished the same cache first; its content is the same.
            if not folder.is_dir():
                raise
        return folder

    def _mapped(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            self._maps = tuple(np.load(self.cache / f'{name}.npy', mmap_mode='r') for name in ('images', 'masks'))
        return self._maps

    def __getstate__(self) -> dict:
        # Pickling a memory map would copy the whole cache into every worker.
        return {**self.__dict__, '_maps': None}


def write_dataset(
    out_dir: str | Path,
    style: str,
    seed: int,
    n: int,
    size: int = 512,
    fmt: str = 'png',
    label_dilation_px: float = 0.0,
    shift: DemoShift | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Write samples 0 to n - 1 of (style, seed) as ``images/STEM.fmt`` and ``masks/STEM.png``.

    Every file appears complete or not at all; existing files of the same name are replaced.

    Args:
        out_dir: created if missing.
        fmt: ``png``, ``jpg``, ``tif`` or ``bmp`` for the images; masks are always PNG 0/255.
        workers: processes that draw; ``None`` takes every core available.

    Returns:
        The image files, in order.

    Raises:
        InputError: unknown style or format, or a folder that cannot be written.
    """
    check_style(style)
    if fmt not in ('png', 'jpg', 'tif', 'bmp'):
        raise InputError(f'write_dataset: fmt is {fmt!r}; choose png, jpg, tif or bmp')
    out = Path(out_dir)
    make_directory(out / 'images')
    make_directory(out / 'masks')
    jobs = [(style, i, seed, size, label_dilation_px, shift) for i in range(n)]
    written = []
    for i, sample in enumerate(draw_many(jobs, f'drawing {style}', workers)):
        stem = f'{style}_{seed}_{i:05d}'
        path = out / 'images' / f'{stem}.{fmt}'
        _write_image(path, np.ascontiguousarray(sample.image[..., ::-1]))
        _write_image(out / 'masks' / f'{stem}.png', sample.mask)
        written.append(path)
    return written


def _write_image(path: Path, image: np.ndarray) -> None:
    ok, code = cv2.imencode(path.suffix, image)
    if not ok:
        raise InputError(f'{path}: could not be encoded; choose another fmt')
    write_bytes(path, code.tobytes())
