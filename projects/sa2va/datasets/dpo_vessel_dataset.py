"""Preference pairs as policy inputs, grouped by image."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS
from torch.utils.data import Dataset

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file
from sa2va_dpo.models.view_geometry import Box, ViewGeometry

from .annotations import PAIRS_FILE, PairRecord, has_records, reaches_gap, read_pairs, resolve
from .draws import choose_in_turn, rng_of
from .mask_io import image_size, read_image_rgb, read_mask
from .samples import SampleMaker, View, draw_tile
from .seg_dataset import geometry_of, jitter, preprocessor_of


@DATASETS.register_module()
class DPOVesselDataset(Dataset):
    """One item is one image (and prompt) with some of its preference pairs.

    One forward pass scores every pair of an image, so pairs are drawn per image: ``pairs_per_image`` of them at every
        visit,
    in turn, so that all have come equally often after as many visits as there are pairs. An image counts the same
    however many pairs it has.

    Args:
        data_root: folder that holds the annotation file and everything it names.
        ann_file: pairs, see ``datasets/annotations.py``.
        preprocessor: checkpoint directory whose tokenizer and image sizes are used.
        score_size: side S of the square on which masks are scored; ``None`` is the SAM2 input size.
        pairs_per_image: pairs per visit; ``None`` takes all of an image's pairs (batch sizes then vary).
        min_iou_gap: pairs with a smaller gap are left out; the gap is ``iou_gap``, or the difference of scores of the
            judge that ranked the pair.
        flip_prob: probability of a horizontal and, independently, of a vertical flip of image and masks.
        brightness: largest relative change of gain and gamma of the image, 0 switches it off.
        seed: of pair sampling and augmentation, which are functions of it and of the draw (``datasets/draws.py``).
        cache: kind -> folder of results that need not be computed (docs/speed.md); not together with ``brightness``.
        view: how closely to look (docs/resolution.md); None: as the checkpoint states it. A draw shows one of the
            image's tiles, or the whole image; pairs that are one within a tile are left out of its draw where another
            is not.

    Raises:
        InputError: the annotation file is bad (see ``read_pairs``) or no pair is left.
        ValueError: ``cache`` together with ``brightness``.
    """

    def __init__(
        self,
        data_root: str,
        preprocessor: str,
        ann_file: str = PAIRS_FILE,
        score_size: int | None = None,
        pairs_per_image: int | None = 4,
        min_iou_gap: float = 0.0,
        flip_prob: float = 0.0,
        brightness: float = 0.0,
        seed: int = 0,
        cache: dict[str, str] | None = None,
        view: dict | None = None,
    ) -> None:
        if cache and brightness:
            raise ValueError(
                f'DPOVesselDataset: brightness {brightness} makes a new image at every visit, so that nothing can '
                f'be cached'
            )
        self.data_root = Path(data_root)
        path = self.data_root / ann_file
        groups: dict[tuple[str, str], list] = {}
        for record in read_pairs(path, self.data_root):
            if reaches_gap(record.preference_gap, min_iou_gap):
                groups.setdefault((record.image, record.prompt), []).append(record)
        if not groups:
            raise InputError(f'{path}: no pair has iou_gap >= {min_iou_gap}: '
                             'lower min_iou_gap or generate more diverse candidates')
        self.groups = list(groups.values())
        self.preprocessor = str(preprocessor)
        self.pre = preprocessor_of(self.preprocessor)
        self.geometry = geometry_of(self.pre, view)
        self.make_sample, self.cache = SampleMaker(self.pre, cache, self.geometry), cache
        self.score_size = score_size or self.pre.sam_size
        self.pairs_per_image = pairs_per_image
        self.flip_prob, self.brightness = flip_prob, brightness
        self.seed = seed

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def num_pairs(self) -> int:
        """Pairs in use, over all images."""
        return sum(len(group) for group in self.groups)

    @property
    def most_pairs(self) -> int:
        """Pairs of the item that brings most."""
        most = max(map(len, self.groups))
        return most if self.pairs_per_image is None else min(most, self.pairs_per_image)

    def _box(self, record: PairRecord, rng: np.random.Generator) -> Box | None:
        if self.geometry.plain:
            return None
        width, height = image_size(resolve(self.data_root, record.image))
        return draw_tile(self.geometry, (height, width), self.pre.sam_size, rng)

    def _view(self, record: PairRecord, horizontal: bool, vertical: bool, rng: np.random.Generator | None = None,
              box: Box | None = None) -> View:
        path = resolve(self.data_root, record.image)
        return View(lambda: hash_file(path), lambda: jitter(read_image_rgb(path), self.brightness, rng), record.prompt,
                    horizontal, vertical, box, self.geometry.context)

    def views(self) -> list[View]:
        """Every view that an item may be: each image with its prompt, as it is or flipped, whole or a tile
        (``brightness`` left aside)."""
        sides = (False,) if self.flip_prob <= 0 else (True,) if self.flip_prob >= 1 else (False, True)
        return [self._view(group[0], horizontal, vertical, box=box)
                for group in self.groups for horizontal in sides for vertical in sides
                for box in boxes_drawn(self.geometry, resolve(self.data_root, group[0].image), self.pre.sam_size)]

    def validation_pairs(self, ann_file: str) -> DPOVesselDataset | None:
        """The pairs of another annotation file of the same root, all of an image at once, whole and never augmented.

        Returns:
            None where there is no such file, or no pair in it (the generator held no patient out).
        """
        path = self.data_root / ann_file
        if not has_records(path):
            return None
        return DPOVesselDataset(str(self.data_root), self.preprocessor, ann_file=ann_file, score_size=self.score_size,
                                pairs_per_image=None, cache=self.cache, view=dict(grid=1))

    def __getitem__(self, index: int) -> dict:
        group, rng = self.groups[index], rng_of(self.seed, index)
        if self.pairs_per_image is not None:
            name = f'{group[0].image} {group[0].prompt}'
            group = [group[i] for i in choose_in_turn(len(group), self.pairs_per_image, self.seed, index, name)]
        horizontal, vertical = (bool(hit) for hit in rng.random(2) < self.flip_prob)
        view = self._view(group[0], horizontal, vertical, rng, self._box(group[0], rng))
        sample = self.make_sample(view)
        # A mask often stands in several pairs of its image.
        names = sorted({name for record in group for name in (record.chosen_mask, record.rejected_mask)})
        masks = {name: view.target(read_mask(resolve(self.data_root, name)), self.score_size) for name in names}
        if view.box is not None:
            group = [record for record in group
                     if not np.array_equal(masks[record.chosen_mask], masks[record.rejected_mask])] or group[:1]
        return dict(
            sample=sample,
            chosen=np.stack([masks[record.chosen_mask] for record in group]),
            rejected=np.stack([masks[record.rejected_mask] for record in group]),
            gaps=np.array([record.preference_gap for record in group], np.float32),
            image_id=Path(group[0].image).stem)


def boxes_drawn(geometry: ViewGeometry, image: Path, sam_size: int) -> list[Box | None]:
    """What a draw of an image may show; None is all of it."""
    if geometry.plain:
        return [None]
    width, height = image_size(image)
    tiles: list[Box | None] = [*geometry.boxes((height, width), sam_size)]
    return [None, *tiles] if geometry.whole_share or not tiles else tiles


@FUNCTIONS.register_module()
def dpo_collate(items: list[dict], preprocessor: str) -> dict:
    """A batch for ``Sa2VADPOModel.forward``: B images, P pairs and the image each pair belongs to.

    Args:
        items: of a ``DPOVesselDataset``.
        preprocessor: the same checkpoint directory as the data set's.
    """
    counts = [len(item['gaps']) for item in items]
    return dict(
        batch=preprocessor_of(str(preprocessor)).collate([item['sample'] for item in items]),
        chosen=torch.from_numpy(np.concatenate([item['chosen'] for item in items])),
        rejected=torch.from_numpy(np.concatenate([item['rejected'] for item in items])),
        gaps=torch.from_numpy(np.concatenate([item['gaps'] for item in items])),
        image_index=torch.repeat_interleave(torch.arange(len(items)), torch.tensor(counts)),
        image_id=[item['image_id'] for item in items])
