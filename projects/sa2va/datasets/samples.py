"""Views of images as policy inputs, with what a cache holds in the place of what would compute it."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Callable, Mapping

import numpy as np

from sa2va_dpo.common.tensor_store import CacheStore, item_key

from .preprocess import Sa2VAPreprocessor
from .targets import flip

# A result that is a list of tensors lies in its file as <name>.0, <name>.1, ...
LISTS = ('sam2_levels', 'sam2_features')


@dataclass(frozen=True)
class View:
    """One image as the policy sees it once.

    Attributes:
        digest: gives a digest of the image; called only where there is a cache.
        image: gives the image, uint8 [H, W, 3]; called only where pixels are needed.
        horizontal, vertical: whether it is mirrored.
    """

    digest: Callable[[], str]
    image: Callable[[], np.ndarray]
    prompt: str
    horizontal: bool = False
    vertical: bool = False

    def key(self) -> str:
        return item_key(self.digest(), self.prompt, self.horizontal, self.vertical)


def digest_of_array(image: np.ndarray) -> str:
    """Of an image's pixels and shape."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


class SampleMaker:
    """Makes the samples of a data set.

    Args:
        pre: the checkpoint's preprocessor.
        cache: kind (``caching/kinds.py``) -> folder of its store; None without a cache.
    """

    def __init__(self, pre: Sa2VAPreprocessor, cache: Mapping[str, str] | None = None) -> None:
        self.pre = pre
        self.stores = {kind: CacheStore(directory) for kind, directory in (cache or {}).items()}

    def if_cached(self, view: View) -> dict | None:
        """The sample of a view where every store holds its part of it, or can compute it; else None."""
        key = view.key()
        for store in self.stores.values():
            store.ensure(key, view)
        return self(view) if self.stores and all(key in store for store in self.stores.values()) else None

    def __call__(self, view: View) -> dict:
        """The sample of a view, for ``Sa2VAPreprocessor.collate``.

        Raises:
            InputError: the cache has no whole item of it.
        """
        sample: dict = {}
        if self.stores:
            key = view.key()
            for store in self.stores.values():
                store.ensure(key, view)
                sample.update(store.read(key))
            for name in LISTS:
                parts = sorted(field for field in sample if field.startswith(f'{name}.'))
                if parts:
                    sample[name] = [sample.pop(field) for field in parts]
        for_llm = not {'seg_states', 'vision_tokens'} & sample.keys()
        for_sam2 = not {'sam2_levels', 'sam2_features'} & sample.keys()
        if for_llm or for_sam2:
            image = flip(view.image(), view.horizontal, view.vertical)
            sample.update(self.pre.encode_image(image, for_llm=for_llm, for_sam2=for_sam2))
        else:
            sample['original_size'] = tuple(sample['original_size'].tolist())
        if 'seg_states' not in sample:
            sample.update(self.pre.encode_text(view.prompt, num_image_tokens=self.pre.num_image_tokens(sample)))
        return sample
