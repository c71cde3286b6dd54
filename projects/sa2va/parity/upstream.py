"""Quirks of the original inference helper, reproduced only to compare numbers with it.

The product never goes this way: it has one form of prompt and one image path for training, generation and testing
(``datasets/preprocess.py``). The original helper differs from its own training code in these points:

* the user's text is taken as it is: ``<image>`` becomes the image tokens and nothing adds a newline behind them, so
  ``<image>Please ...`` is a prompt that training never showed;
* Qwen-VL: the text goes through the checkpoint's chat template (which may add a system turn that training never had),
  ``<image>`` is deleted, and the image is resized twice: to multiples of 28 first, then by the image processor.
"""
from __future__ import annotations

import math

import torch
from PIL import Image

from sa2va_dpo.datasets.image_views import QwenVLImages, as_rgb
from sa2va_dpo.datasets.preprocess import IMAGE_PLACEHOLDER, Sa2VAPreprocessor

_FACTOR, _MIN_PIXELS, _MAX_PIXELS = 28, 4 * 28 * 28, 16384 * 28 * 28


def first_resize(image: Image.Image) -> Image.Image:
    """The Qwen vision utility's own resize: both sides to multiples of 28 within its pixel limits, bicubic."""
    width, height = image.size

    def nearest(x: float) -> int:
        return max(_FACTOR, round(x / _FACTOR) * _FACTOR)

    h, w = nearest(height), nearest(width)
    if h * w > _MAX_PIXELS:
        scale = math.sqrt(height * width / _MAX_PIXELS)
        h, w = (max(_FACTOR, math.floor(x / scale / _FACTOR) * _FACTOR) for x in (height, width))
    elif h * w < _MIN_PIXELS:
        scale = math.sqrt(_MIN_PIXELS / (height * width))
        h, w = (math.ceil(x * scale / _FACTOR) * _FACTOR for x in (height, width))
    return image.resize((w, h))


def inference_sample(pre: Sa2VAPreprocessor, image: Image.Image, user_text: str) -> dict:
    """A sample up to where the answer begins, as the original inference helper makes it.

    Args:
        user_text: what the user typed, with its own ``<image>`` and newlines.

    Returns:
        The keys of ``Sa2VAPreprocessor.__call__``, without [SEG] positions.
    """
    image, images = as_rgb(image), pre.images
    sample = pre.encode_image(image)
    if isinstance(images, QwenVLImages):
        sample.update(images.encode(first_resize(image)))
        content = [dict(type='image'), dict(type='text', text=user_text.replace(IMAGE_PLACEHOLDER, ''))]
        text = pre.tokenizer.apply_chat_template([dict(role='user', content=content)], tokenize=False,
                                                 add_generation_prompt=True)
        text = text.replace(images.image_token, images.image_token * pre.num_image_tokens(sample))
    else:
        placed = user_text.replace(IMAGE_PLACEHOLDER,
                                   images.prefix + images.image_token * pre.num_image_tokens(sample) + images.suffix)
        text = pre.template[0].format(input=placed)
    ids = pre.tokenizer.encode(text, add_special_tokens=True)
    return dict(sample, input_ids=torch.tensor(ids), labels=torch.full((len(ids),), -100))
