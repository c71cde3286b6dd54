"""Pairs that are mined while a run goes on: labelled and unlabelled images in one data set, at a stated ratio."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from sa2va_dpo.common.files import hash_file

from .annotations import has_records
from .dpo_vessel_dataset import DPOVesselDataset, boxes_drawn
from .draws import Draw
from .mask_io import read_image_rgb
from .samples import View
from .seg_dataset import DEFAULT_PROMPT, geometry_of, preprocessor_of


@DATASETS.register_module()
class RoundPairs(Dataset):
    """The training data of one round (docs/rounds.md).

    Before the first round there is nothing to train on yet: such a data set knows its length, its views and the
    validation pairs, and has no item.

    Args:
        data_root: where the validation pairs are.
        preprocessor: as :class:`DPOVesselDataset`'s, and so are all ``settings``.
        labelled_images, unlabelled_images: originals of which pairs are mined.
        prompt: of all of them.
        labelled_share: share of the draws that are labelled images, where there are pairs of both kinds.
        labelled, unlabelled: data roots of this round; None: no pair of that kind.
        min_iou_gap: of the unlabelled ones; a labelled image is never left out.
    """

    def __init__(self, data_root: str, preprocessor: str, labelled_images: Sequence[str] = (),
                 unlabelled_images: Sequence[str] = (), prompt: str = DEFAULT_PROMPT, labelled_share: float = 0.5,
                 labelled: str | None = None, unlabelled: str | None = None, min_iou_gap: float = 0.0,
                 **settings) -> None:
        self.data_root, self.preprocessor, self.prompt = Path(data_root), str(preprocessor), prompt
        self.images = [Path(image) for image in (*labelled_images, *unlabelled_images)]
        self.settings = settings
        self.pre = preprocessor_of(self.preprocessor)
        self.data_sets = [DPOVesselDataset(root, preprocessor, min_iou_gap=gap, **settings)
                          for root, gap in ((labelled, 0.0), (unlabelled, min_iou_gap)) if root is not None]
        shares = [labelled_share, 1 - labelled_share] if len(self.data_sets) == 2 else [1.0]
        self.parts = [(len(data), share) for data, share in zip(self.data_sets, shares)] or None

    def __len__(self) -> int:
        """Images with a pair; before the first round: all images."""
        return sum(len(data) for data in self.data_sets) if self.data_sets else len(self.images)

    @property
    def num_pairs(self) -> int:
        """Pairs in use, over all images."""
        return sum(data.num_pairs for data in self.data_sets)

    @property
    def most_pairs(self) -> int:
        """Pairs of the item that brings most; 0 before the first round."""
        return max((data.most_pairs for data in self.data_sets), default=0)

    def views(self) -> list[View]:
        """Every view that an item of any round may be."""
        flip_prob = self.settings.get('flip_prob', 0.0)
        geometry = geometry_of(self.pre, self.settings.get('view'))
        sides = (False,) if flip_prob <= 0 else (True,) if flip_prob >= 1 else (False, True)
        return [View(lambda path=path: hash_file(path), lambda path=path: read_image_rgb(path), self.prompt, horizontal,
                     vertical, box, geometry.context)
                for path in self.images for horizontal in sides for vertical in sides
                for box in boxes_drawn(geometry, path, self.pre.sam_size)]

    def validation_pairs(self, ann_file: str) -> DPOVesselDataset | None:
        """See :meth:`DPOVesselDataset.validation_pairs`."""
        path = self.data_root / ann_file
        if not has_records(path):
            return None
        return DPOVesselDataset(str(self.data_root), self.preprocessor, ann_file=ann_file, pairs_per_image=None,
                                score_size=self.settings.get('score_size'), cache=self.settings.get('cache'),
                                view=dict(grid=1))

    def __getitem__(self, index: int) -> dict:
        local, data = int(index), None
        for data in self.data_sets:
            if local < len(data):
                break
            local -= len(data)
        if isinstance(index, Draw):
            local = Draw(local, index.number, index.visit, index.seed)
        return data[local]
