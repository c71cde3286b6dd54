"""Views of images as policy inputs, with what a cache holds in the place of what would compute it."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Sequence

import numpy as np

from sa2va_dpo.common.tensor_store import CacheStore, item_key
from sa2va_dpo.models.view_geometry import Box, ViewGeometry

from .preprocess import DEFAULT_ANSWER, Sa2VAPreprocessor
from .targets import flip, soft_target

# A result that is a list of tensors lies in its file as <name>.0, <name>.1, ...
LISTS = ('sam2_levels', 'sam2_features')
# What the language model's half of the policy gives: of the whole image, where tiles have its context.
_OF_LANGUAGE = ('seg_states', 'vision_tokens')


@dataclass(frozen=True)
class View:
    """One image as the policy sees it once.

    Attributes:
        digest: gives a digest of the image; called only where there is a cache.
        image: gives the image, uint8 [H, W, 3]; called only where pixels are needed.
        horizontal, vertical: whether it is mirrored.
        box: the tile that SAM2 sees, in pixels of the mirrored image; None: all of it.
        context: what the language model sees, ``'image'`` (all of it) or ``'tile'``; without a box both are one.
        answer: teacher-forced, with a [SEG] for each mask.
    """

    digest: Callable[[], str]
    image: Callable[[], np.ndarray]
    prompt: str
    horizontal: bool = False
    vertical: bool = False
    box: Box | None = None
    context: str = 'image'
    answer: str = DEFAULT_ANSWER

    def key(self, kind: str | None = None) -> str:
        """Name of the view's item in a store: of ``kind``, or, for None, a name that tells all views apart."""
        shared = self.context == 'image' and kind in _OF_LANGUAGE
        box = '' if self.box is None or shared else f'{self.box} {self.context}'
        said = '' if self.answer == DEFAULT_ANSWER else f'\n{self.answer}'
        return item_key(self.digest(), self.prompt + said + box, self.horizontal, self.vertical)

    def target(self, mask: np.ndarray, size: int) -> np.ndarray:
        """The soft target of the view: uint8 [size, size] of a bool mask [H, W] of the image as it lies on the disk."""
        seen = flip(mask, self.horizontal, self.vertical)
        return soft_target(seen if self.box is None else self.box.cut(seen), size)

    def tiles(self, boxes: Sequence[Box], context: str) -> list[View]:
        """The view once for each box; itself where there is none."""
        return [replace(self, box=box, context=context) for box in boxes] or [self]


def digest_of_array(image: np.ndarray) -> str:
    """Of an image's pixels and shape."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def draw_tile(geometry: ViewGeometry, size: tuple[int, int], sam_size: int, rng: np.random.Generator) -> Box | None:
    """What a training draw of an image of ``size`` (height, width) shows: one of its tiles, each as often, or, with the
    share that ``geometry`` states, None for the whole. Takes no random number where images are looked at as a whole."""
    boxes = geometry.boxes(size, sam_size)
    if not boxes or rng.random() < geometry.whole_share:
        return None
    return boxes[int(rng.integers(len(boxes)))]


class SampleMaker:
    """Makes the samples of a data set.

    Args:
        pre: the checkpoint's preprocessor.
        cache: kind (``caching/kinds.py``) -> folder of its store; None without a cache.
        geometry: how closely predictions look; None: as the preprocessor's checkpoint says.
    """

    def __init__(self, pre: Sa2VAPreprocessor, cache: Mapping[str, str] | None = None,
                 geometry: ViewGeometry | None = None) -> None:
        self.pre, self.geometry = pre, geometry or pre.view
        self.stores = {kind: CacheStore(directory) for kind, directory in (cache or {}).items()}

    def prediction(self, view: View, size: tuple[int, int]) -> dict:
        """The sample from which the policy predicts the mask of a whole image.

        Args:
            view: without a box.
            size: (height, width) of the image.

        Returns:
            As :meth:`__call__` where images are looked at as a whole. Else ``grid`` (``TileGrid``), ``original_size``,
            ``tiles`` (one sample a tile) and, with the context of the whole image, the language model's half of it.

        Raises:
            InputError: the cache has no whole item of it.
        """
        if self.geometry.plain:
            return self(view)
        grid, context = self.geometry.tiles(size, self.pre.sam_size), self.geometry.context
        views = view.tiles(self.geometry.boxes(size, self.pre.sam_size), context)
        if context == 'tile':
            return dict(grid=grid, original_size=grid.size, tiles=[self(tile) for tile in views])
        tiles = [self(tile, language=False) for tile in views]
        return dict(self(views[0], sam2=False), grid=grid, original_size=grid.size, tiles=tiles)

    def if_predicted(self, view: View, size: tuple[int, int]) -> dict | None:
        """:meth:`prediction` where every store holds its part of all of it, or can compute it; else None."""
        boxes = self.geometry.boxes(size, self.pre.sam_size)
        if not all(self._holds(tile) for tile in view.tiles(boxes, self.geometry.context)):
            return None
        return self.prediction(view, size)

    def _holds(self, view: View) -> bool:
        for kind, store in self.stores.items():
            store.ensure(view.key(kind), view)
        return bool(self.stores) and all(view.key(kind) in store for kind, store in self.stores.items())

    def __call__(self, view: View, *, language: bool = True, sam2: bool = True) -> dict:
        """The sample of a view, for ``Sa2VAPreprocessor.collate``.

        Args:
            language, sam2: False leaves out that half.

        Raises:
            InputError: the cache has no whole item of it.
        """
        sample: dict = {}
        wanted = {kind: store for kind, store in self.stores.items()
                  if (language if kind in _OF_LANGUAGE else sam2)}
        for kind, store in wanted.items():
            store.ensure(view.key(kind), view)
            sample.update(store.read(view.key(kind)))
        for name in LISTS:
            parts = sorted(field for field in sample if field.startswith(f'{name}.'))
            if parts:
                sample[name] = [sample.pop(field) for field in parts]
        for_llm = language and not set(_OF_LANGUAGE) & sample.keys()
        for_sam2 = sam2 and not set(LISTS) & sample.keys()
        if for_llm or for_sam2:
            image = flip(view.image(), view.horizontal, view.vertical)
            tile = image if view.box is None else np.ascontiguousarray(view.box.cut(image))
            whole = for_llm and view.box is not None and view.context == 'image'
            if whole:
                sample.update(self.pre.encode_image(image, for_sam2=False))
            sample.update(self.pre.encode_image(tile, for_llm=for_llm and not whole, for_sam2=for_sam2))
        else:
            sample['original_size'] = tuple(sample['original_size'].tolist())
        if language and 'seg_states' not in sample:
            sample.update(self.pre.encode_text(view.prompt, view.answer,
                                               num_image_tokens=self.pre.num_image_tokens(sample)))
        return sample
