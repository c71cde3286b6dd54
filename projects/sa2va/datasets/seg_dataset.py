"""Images with ground truth as policy inputs: supervised training, validation and test."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Iterator, Mapping, Sequence

import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS
from torch.utils.data import Dataset

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.view_geometry import ViewGeometry

from .annotations import VAL_FILE, read_segs, resolve
from .draws import rng_of
from .field_of_view import find_field_of_view
from .ground_truth import check_sizes, match_ground_truth
from .mask_io import list_images, read_image_rgb, read_mask
from .names import GT_SUFFIXES, image_ids, key
from .preprocess import Sa2VAPreprocessor
from .samples import SampleMaker, View, digest_of_array, draw_tile

DEFAULT_PROMPT = '<image>Please segment the blood vessels.'


@lru_cache(maxsize=8)
def preprocessor_of(checkpoint: str, view: ViewGeometry | None = None) -> Sa2VAPreprocessor:
    """The preprocessor of a checkpoint directory; read once a process, data sets and collate functions share it.

    Args:
        view: in place of the one that the checkpoint states.
    """
    return Sa2VAPreprocessor.from_pretrained(checkpoint, view)


def geometry_of(pre: Sa2VAPreprocessor, view: Mapping | None) -> ViewGeometry:
    """How closely a data set looks: the setting ``view``, or for None what the checkpoint states.

    Raises:
        InputError: a field or value that there is not.
    """
    return pre.view if view is None else ViewGeometry.of(view)


@DATASETS.register_module()
class AnnotatedMasks(Dataset):
    """Images and ground truth listed in a ``val_annotations.json`` of a data root.

    Raises:
        InputError: the file or one of its records is bad, or a mask has another size than its image.
    """

    def __init__(self, data_root: str, ann_file: str = VAL_FILE) -> None:
        self.data_root = Path(data_root)
        self.records = read_segs(self.data_root / ann_file, self.data_root)
        self.image_ids = image_ids([record.image for record in self.records])
        check_sizes(
            [(resolve(self.data_root, record.image), resolve(self.data_root, record.mask)) for record in self.records]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        item = dict(image=read_image_rgb(resolve(self.data_root, record.image)),
                    mask=read_mask(resolve(self.data_root, record.mask)),
                    prompt=record.prompt, image_id=self.image_ids[index])
        if record.field_of_view is not None:
            item['field_of_view'] = read_mask(resolve(self.data_root, record.field_of_view))
        return item


@DATASETS.register_module()
class FolderMasks(Dataset):
    """Images of a folder with their ground truth and, where there are, fields of view (see ``datasets/names.py``).

    Args:
        images_dir, gt_dir: folders, which may be the same one; ``gt_dir`` may be a JSON file of outlines.
        prompt: one prompt for all images.
        stems: keep only images with these stems (a split); ``None`` keeps all.

    Raises:
        InputError: a folder is missing, no image has ground truth, or a mask has another size than its image.
    """

    def __init__(self, images_dir: str, gt_dir: str, prompt: str = DEFAULT_PROMPT,
                 stems: Sequence[str] | None = None) -> None:
        matched, self.missing = match_ground_truth(list_images(Path(images_dir)), Path(gt_dir))
        if stems is not None:
            wanted = set(map(key, stems))
            matched = [(image, gt) for image, gt in matched if key(image.stem) in wanted]
        if not matched:
            raise InputError(f'{images_dir}: no image has ground truth of the same stem in {gt_dir}: '
                             f'check the two folders (suffixes {", ".join(GT_SUFFIXES)} are understood)')
        check_sizes(matched)
        self.matched, self.prompt = matched, prompt

    def __len__(self) -> int:
        return len(self.matched)

    def __getitem__(self, index: int) -> dict:
        image, gt = self.matched[index]
        item = dict(image=read_image_rgb(image), mask=read_mask(gt), prompt=self.prompt, image_id=image.stem)
        field_of_view = find_field_of_view(image, gt)
        if field_of_view is not None:
            item['field_of_view'] = read_mask(field_of_view)
        return item


@DATASETS.register_module()
class VesselSegDataset(Dataset):
    """A source of (image, mask, prompt) turned into policy inputs.

    Args:
        source: config of a data set yielding dicts with ``image`` (uint8 H x W x 3), ``mask`` (H x W, nonzero is
            vessel; only training needs one), ``prompt``, ``image_id`` and, where pixels are left out of the scores,
            ``field_of_view`` (bool H x W).
        preprocessor: checkpoint directory whose tokenizer and image sizes are used.
        training: adds ``target`` (soft mask, uint8 [S, S]) in place of the full-size ground truth.
        score_size: S; ``None`` is the SAM2 input size.
        flip_prob: probability of a horizontal and, independently, of a vertical flip (training only).
        brightness: training only; largest relative change of gain and gamma, 0 switches it off.
        seed: of the augmentation, which is a function of it and of the draw (``datasets/draws.py``).
        cache: kind -> folder of results that need not be computed (docs/speed.md); not for training.
        view: how closely to look (docs/resolution.md); None: as the checkpoint states it. Images are predicted from all
            of their tiles, a training draw is one of them, or the whole image.

    Raises:
        ValueError: ``cache`` together with ``training``.
    """

    def __init__(
        self,
        source: dict,
        preprocessor: str,
        training: bool = False,
        score_size: int | None = None,
        flip_prob: float = 0.0,
        brightness: float = 0.0,
        seed: int = 0,
        cache: dict[str, str] | None = None,
        view: dict | None = None,
    ) -> None:
        if cache and training:
            raise ValueError('VesselSegDataset: a cache is for validation and test images, not for training ones')
        self.source = DATASETS.build(source) if isinstance(source, dict) else source
        self.pre = preprocessor_of(str(preprocessor))
        self.geometry = geometry_of(self.pre, view)
        self.make_sample = SampleMaker(self.pre, cache, self.geometry)
        self.training = training
        self.score_size = score_size or self.pre.sam_size
        self.flip_prob, self.brightness = flip_prob, brightness
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def views(self) -> Iterator[View]:
        """The view of every item, tile by tile; not for training."""
        for index in range(len(self.source)):
            item = self.source[index]
            digest = digest_of_array(item['image'])
            # The views of a whole data set are held at once: they read their pixels again rather than keep them.
            whole = View(lambda digest=digest: digest, lambda index=index: self.source[index]['image'], item['prompt'])
            yield from whole.tiles(self.geometry.boxes(item['image'].shape[:2], self.pre.sam_size),
                                  self.geometry.context)

    def __getitem__(self, index: int) -> dict:
        item = self.source[index]
        image = item['image']
        mask = np.asarray(item['mask']) > 0 if item.get('mask') is not None else None
        if not self.training:
            view = View(lambda: digest_of_array(image), lambda: image, item['prompt'])
            return dict(sample=self.make_sample.prediction(view, image.shape[:2]), gt_mask=mask,
                        image_id=item['image_id'], image=image, field_of_view=item.get('field_of_view'))
        rng = rng_of(self.seed, index)
        image = jitter(image, self.brightness, rng)
        horizontal, vertical = rng.random(2) < self.flip_prob
        view = View(lambda: digest_of_array(image), lambda: image, item['prompt'], bool(horizontal), bool(vertical),
                    draw_tile(self.geometry, image.shape[:2], self.pre.sam_size, rng), self.geometry.context)
        return dict(sample=self.make_sample(view), target=view.target(mask, self.score_size))


def jitter(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Random gain per channel and gamma, each within 1 +- ``amount``; uint8 in, uint8 out."""
    if not amount:
        return image
    gain = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    gamma = rng.uniform(1 - amount, 1 + amount)
    table = (np.arange(256, dtype=np.float32)[:, None] / 255) ** gamma * gain
    table = np.clip(table * 255, 0, 255).astype(np.uint8)
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)


@FUNCTIONS.register_module()
def vessel_seg_collate(items: list[dict], preprocessor: str) -> dict:
    """A batch for ``Sa2VARunModel.forward``: policy inputs plus targets or ground truth.

    Args:
        items: of a ``VesselSegDataset``.
        preprocessor: the same checkpoint directory as the data set's.
    """
    data = dict(batch=preprocessor_of(str(preprocessor)).collate([item['sample'] for item in items]))
    if 'target' in items[0]:
        data['target'] = torch.from_numpy(np.stack([item['target'] for item in items]))
    else:
        for name in ('gt_mask', 'image_id', 'image'):
            data[name] = [item[name] for item in items]
        if any(item.get('field_of_view') is not None for item in items):
            data['field_of_view'] = [item.get('field_of_view') for item in items]
    return data
