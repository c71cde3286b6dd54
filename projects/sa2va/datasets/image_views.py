"""Images as the networks see them: normalised tensors, InternVL's tiles, the Qwen-VL processor, LLaVA's square."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np
import torch
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.mllm import family_of
from sa2va_dpo.models.mllm.llava import tokens_per_image, vision_fields
from sa2va_dpo.models.mllm.qwen_vl import QwenImageProcessor

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
# CLIP's own (Radford et al., arXiv 2103.00020).
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """An RGB PIL image from a PIL image of any mode or a uint8 array ``[H, W, 3]``."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'image array must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
        image = Image.fromarray(image)
    return image.convert('RGB')


def to_normalised_tensor(image: Image.Image, mean: np.ndarray = _MEAN, std: np.ndarray = _STD) -> torch.Tensor:
    """RGB image -> float32 ``[3, H, W]``, /255, mean and standard deviation taken off (ImageNet's by default)."""
    array = (np.asarray(image, dtype=np.float32) / np.float32(255.0) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def tile_grid(width: int, height: int, tile: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """InternVL's grid (columns, rows): the one whose aspect ratio is nearest to the image's.

    Equal distance: the later grid wins when the image covers more than half its area. Grids of equal area stand in the
    iteration order of a Python set, as in the original; integers hash alike everywhere, so that order is fixed.
    """
    grids = {(c, r) for n in range(min_tiles, max_tiles + 1) for c in range(1, n + 1) for r in range(1, n + 1)
             if min_tiles <= c * r <= max_tiles}
    best, best_distance, aspect = (1, 1), float('inf'), width / height
    for cols, rows in sorted(grids, key=lambda g: g[0] * g[1]):
        distance = abs(aspect - cols / rows)
        if distance < best_distance or (distance == best_distance
                                        and width * height > 0.5 * tile * tile * cols * rows):
            best, best_distance = (cols, rows), distance
    return best


def cut_tiles(image: Image.Image, tile: int, min_tiles: int, max_tiles: int, thumbnail: bool) -> list[Image.Image]:
    """The image resized (bicubic) to its grid and cut row by row; with more than one tile, the whole image last."""
    cols, rows = tile_grid(*image.size, tile, min_tiles, max_tiles)
    resized = image.resize((cols * tile, rows * tile))
    tiles = [resized.crop((c * tile, r * tile, (c + 1) * tile, (r + 1) * tile))
             for r in range(rows) for c in range(cols)]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((tile, tile)))
    return tiles


@dataclass(frozen=True)
class InternVLImages:
    """The InternVL family's image half."""

    tile: int
    tokens_per_tile: int
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    image_token = '<IMG_CONTEXT>'
    prefix, suffix = '<img>', '</img>'
    concatenated = ('pixel_values',)

    @classmethod
    def from_config(cls, config: Mapping) -> 'InternVLImages':
        vision = config['vision_config']
        tile = config.get('force_image_size') or vision['image_size']
        side = tile // vision['patch_size']
        return cls(tile, int((side * config.get('downsample_ratio', 0.5)) ** 2),
                   config.get('min_dynamic_patch', 1), config.get('max_dynamic_patch', 12),
                   config.get('use_thumbnail', True))

    def encode(self, image: Image.Image) -> dict:
        """``pixel_values [tiles, 3, t, t]`` float32."""
        tiles = cut_tiles(image, self.tile, self.min_tiles, self.max_tiles, self.thumbnail)
        return dict(pixel_values=torch.stack([to_normalised_tensor(t) for t in tiles]))

    def num_tokens(self, encoded: Mapping) -> int:
        return len(encoded['pixel_values']) * self.tokens_per_tile

    @property
    def most_tokens(self) -> int:
        """Of the largest image that there can be."""
        return (self.max_tiles + (self.thumbnail and self.max_tiles > 1)) * self.tokens_per_tile


# Limits of the Qwen-VL view of a single image that Sa2VA was trained with.
QWEN_MIN_PIXELS, QWEN_MAX_PIXELS = 512 * 28 * 28, 2048 * 28 * 28


class QwenVLImages:
    """The Qwen-VL families' image half: the checkpoint's own image processor.

    Args:
        processor: ``QwenImageProcessor`` (Qwen3-VL has the same one with other settings).
        min_pixels, max_pixels: limits of the resized image.
    """

    image_token = '<|image_pad|>'
    prefix, suffix = '<|vision_start|>', '<|vision_end|>'
    concatenated = ('pixel_values', 'image_grid_thw')

    def __init__(self, processor, min_pixels: int = QWEN_MIN_PIXELS, max_pixels: int = QWEN_MAX_PIXELS) -> None:
        self.processor, self.min_pixels, self.max_pixels = processor, min_pixels, max_pixels
        self.tokens_per_patch_group = processor.merge_size ** 2

    @classmethod
    def from_directory(cls, directory: Path, **limits) -> 'QwenVLImages':
        path = directory / 'preprocessor_config.json'
        if not path.is_file():
            raise InputError(f'{path}: missing; copy the processor files of the checkpoint along')
        try:
            processor = QwenImageProcessor.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f'{path}: not a Qwen-VL image processor ({str(error).splitlines()[0]})') from None
        return cls(processor, **limits)

    def __repr__(self) -> str:
        p = self.processor
        return (f'QwenVLImages({self.min_pixels}, {self.max_pixels}, {p.patch_size}, {p.merge_size}, '
                f'{p.temporal_patch_size}, {list(p.image_mean)}, {list(p.image_std)}, {p.resample})')

    def encode(self, image: Image.Image) -> dict:
        """``pixel_values [patches, 3 * time * p * p]`` float32 and ``image_grid_thw [1, 3]`` int64."""
        try:
            out = self.processor(images=[image], min_pixels=self.min_pixels, max_pixels=self.max_pixels,
                                 return_tensors='pt')
        except ValueError as error:  # sides more than 200 to 1
            raise InputError(f'image of {image.width} x {image.height} pixels: {error}') from None
        return dict(pixel_values=out['pixel_values'], image_grid_thw=out['image_grid_thw'])

    def num_tokens(self, encoded: Mapping) -> int:
        return int(encoded['image_grid_thw'].prod()) // self.tokens_per_patch_group

    @property
    def most_tokens(self) -> int:
        """Of the largest image that there can be."""
        return self.max_pixels // (self.processor.patch_size * self.processor.merge_size) ** 2


@dataclass(frozen=True)
class LlavaImages:
    """LLaVA-1.5's image half: the whole image as one square, aspect ratio not kept, one token a patch."""

    side: int
    tokens: int

    image_token = '<image>'
    prefix, suffix = '', ''
    concatenated = ('pixel_values',)

    @classmethod
    def from_config(cls, config: Mapping) -> 'LlavaImages':
        return cls(vision_fields(config)['image_size'], tokens_per_image(config))

    def encode(self, image: Image.Image) -> dict:
        """``pixel_values [1, 3, side, side]`` float32."""
        square = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return dict(pixel_values=to_normalised_tensor(square, _CLIP_MEAN, _CLIP_STD).unsqueeze(0))

    def num_tokens(self, encoded: Mapping) -> int:
        return len(encoded['pixel_values']) * self.tokens

    @property
    def most_tokens(self) -> int:
        """Of any image."""
        return self.tokens


def image_half(directory: Path, config: Mapping, settings: Mapping) -> InternVLImages | QwenVLImages | LlavaImages:
    """The image half of the family that ``config`` names; ``settings`` are limits of the Qwen-VL view."""
    family = family_of(config, str(directory / 'config.json'))
    if family == 'internvl':
        return InternVLImages.from_config(config)
    if family == 'llava':
        return LlavaImages.from_config(config)
    return QwenVLImages.from_directory(directory, **settings)
