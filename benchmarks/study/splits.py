"""Images, pairs and everything frozen of one (base checkpoint, data set, seed), kept on the device.

The language model is frozen in the study, so the [SEG] state of an image and its reference logits are constants: they
are computed once a split and every recipe then costs SAM2 alone.
"""
from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of, split_by_group
from sa2va_dpo.datasets.mask_io import list_images, read_image_rgb, read_mask, write_mask
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.targets import soft_target
from sa2va_dpo.drawn import write_dataset
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.preferences.config import GenerateConfig
from sa2va_dpo.preferences.generate import generate_pairs

from .runs import made_once

LONG_SIDE = 1200
FOLDERS = dict(hrf='hrf', chase='chase_db1', arcade='arcade')


def prepare_images(data: str, seed: int, out: Path, shared: Path) -> tuple[Path, Path]:
    """(images, masks) of a data set; photographs with a longer side above ``LONG_SIDE`` px are reduced by area."""
    def make(root: Path) -> None:
        if data == 'demo':
            write_dataset(root, style='demo', seed=1000 + seed, n=48, size=512, workers=1)
            return
        folder = shared / 'data' / FOLDERS[data]
        (root / 'images').mkdir(parents=True)
        (root / 'masks').mkdir()
        for image, mask in match_ground_truth(list_images(folder / 'images'), folder / 'masks')[0]:
            pixels, label = read_image_rgb(image), read_mask(mask)
            factor = LONG_SIDE / max(label.shape)
            if factor < 1:
                size = (round(label.shape[1] * factor), round(label.shape[0] * factor))
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
                label = cv2.resize(label.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
            grey = (pixels[..., :1] == pixels).all()
            cv2.imwrite(str(root / 'images' / f'{image.stem}.png'), pixels[..., 0] if grey else pixels[..., ::-1])
            write_mask(root / 'masks' / f'{image.stem}.png', label)

    root = made_once(out / 'data' / (f'demo_{seed}' if data == 'demo' else data), make)
    return root / 'images', root / 'masks'


@dataclass
class TestImage:
    sam_pixels: torch.Tensor
    state: torch.Tensor
    mask: np.ndarray


class Split:
    """One half of the patients for pairs, the other for the test.

    Args:
        base: checkpoint directory, the start and the reference of every recipe.
        key: name of the split's folder under ``out/pairs``.
    """

    def __init__(self, base: str, images: Path, masks: Path, seed: int, pairs_root: Path, device: str,
                 num_samples: int = 6, min_iou_gap: float = 0.02) -> None:
        self.base, self.images, self.masks, self.seed, self.device = base, images, masks, seed, device
        self.pairs_root, self.num_samples, self.min_iou_gap = pairs_root, num_samples, min_iou_gap
        self.pre = Sa2VAPreprocessor.from_pretrained(base)
        self.policy = load_checkpoint(base).to(device).eval()
        self.train_images, self.test_images = split_by_group(
            list_images(images), 0.5, seed, key=lambda path: patient_of(path.stem))
        self.gt_of = {image.stem: mask for image, mask in match_ground_truth(list_images(images), masks)[0]}
        self._views: dict[tuple[str, bool, bool], tuple] = {}
        self._targets: dict[tuple[Path, int], torch.Tensor] = {}

    @torch.no_grad()
    def _frozen(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """SAM2 input, [SEG] state and reference logits of an image, without the batch axis."""
        batch = {k: v.to(self.device) if torch.is_tensor(v) else v
                 for k, v in self.pre.collate([self.pre(pixels, DEFAULT_PROMPT)]).items()}
        row, column = batch['seg_index'][0]
        state = self.policy.mllm(batch)[row, column]
        features = self.policy.encode_image(batch['sam_pixel_values'])
        reference = self.policy.decode(features, self.policy.embed_states(state[None])).low_res[0]
        return batch['sam_pixel_values'][0], state, reference

    def view(self, image: Path, horizontal: bool, vertical: bool) -> tuple:
        """``_frozen`` of a training image, mirrored or not."""
        key = (image.stem, horizontal, vertical)
        if key not in self._views:
            pixels = read_image_rgb(image)
            pixels = pixels[:, ::-1] if horizontal else pixels
            pixels = pixels[::-1] if vertical else pixels
            self._views[key] = self._frozen(np.ascontiguousarray(pixels))
        return self._views[key]

    def target(self, path: Path, size: int = 256) -> torch.Tensor:
        """uint8 [size, size] soft target of a mask file, on the device."""
        if (path, size) not in self._targets:
            self._targets[path, size] = torch.from_numpy(soft_target(read_mask(path), size)).to(self.device)
        return self._targets[path, size]

    def forget_targets(self) -> None:
        """After files of the same name were written anew."""
        self._targets.clear()

    @cached_property
    def tests(self) -> list[TestImage]:
        out = []
        for image in self.test_images:
            sam, state, _ = self._frozen(read_image_rgb(image))
            out.append(TestImage(sam, state, read_mask(self.gt_of[image.stem])))
        return out

    def mine(self, policy=None, judge: str = 'IoU') -> list[dict]:
        """Pairs of the start's own candidates, or of a policy's: dicts with ``image``, ``chosen`` and ``rejected``
        (paths), the IoUs. The judge says which is better."""
        root = self.pairs_root / (f'start_{judge}' if policy is None else 'refreshed')
        if policy is not None:
            shutil.rmtree(root, ignore_errors=True)
        if not (root / 'dpo_annotations.json').exists():
            generate_pairs(
                GenerateConfig(
                    mode='generate',
                    images_dir=str(self.images),
                    gt_dir=str(self.masks),
                    output_dir=str(root),
                    model_path=self.base,
                    num_samples=self.num_samples,
                    min_iou_gap=self.min_iou_gap,
                    seed=self.seed,
                    judge=(judge,),
                    val_fraction=0,
                    test_fraction=0,
                    device=self.device,
                ),
                policy=policy or self.policy,
                preprocessor=self.pre,
                images=self.train_images,
            )
        by_stem = {image.stem: image for image in self.train_images}
        return [
            dict(
                image=by_stem[Path(r['image']).stem],
                chosen=root / r['chosen_mask'],
                rejected=root / r['rejected_mask'],
                chosen_iou=r['chosen_iou'],
                rejected_iou=r['rejected_iou'],
            )
            for r in json.loads((root / 'dpo_annotations.json').read_text())
        ]

    def _disagreement(self, pair: dict) -> float:
        return float((self.target(pair['chosen']).float() - self.target(pair['rejected']).float()).abs().sum())

    def select(self, kind: str, own: list[dict]) -> dict[Path, list[dict]]:
        """Pairs of one kind (see ``table.Cell.pairs``), grouped by image."""
        groups: dict[Path, list[dict]] = {}
        for pair in own:
            groups.setdefault(pair['image'], []).append(pair)
        out = {}
        for image, pairs in groups.items():
            best = max(pair['chosen_iou'] for pair in pairs)
            truth = self.gt_of[image.stem]
            against_truth = [dict(image=image, chosen=truth, rejected=path)
                             for path in sorted({p[side] for p in pairs for side in ('chosen', 'rejected')})]
            if kind in ('self', 'self_topology'):
                out[image] = pairs
            elif kind == 'self_best':
                out[image] = [pair for pair in pairs if pair['chosen_iou'] == best]
            elif kind == 'self_hard':
                out[image] = sorted(pairs, key=self._disagreement)[:max(1, len(pairs) // 2)]
            elif kind == 'gt':
                out[image] = pairs + against_truth
            elif kind == 'gt_only':
                out[image] = against_truth
            else:
                raise ValueError(f'pairs {kind!r} is no kind of the study')
        return out
