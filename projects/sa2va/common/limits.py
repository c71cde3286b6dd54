"""How large an input may be before memory is asked for it; each limit can be raised by an environment variable.

``SA2VA_DPO_MAX_JSON_BYTES=2e9`` raises ``json_bytes``, and so for the others.
"""
from __future__ import annotations

import os
from typing import Mapping

from .errors import InputError

LIMITS = dict(
    json_bytes=1 << 30,  # of a JSON file: annotations of a million pairs take a third of it
    json_depth=64,  # nested lists and objects
    json_digits=100,  # of an integer: more is no number that anything here can mean
    image_pixels=1 << 26,  # of one image or mask: the largest fundus cameras make a third of it
    frames=10_000,  # of one file of a sequence or volume
    prompt_characters=20_000,  # of a question: tokenising a megabyte takes minutes
    model_size=1 << 20,  # of a width, a vocabulary or an image side that a config.json states
    model_layers=1000,  # of one part of a model
)
# Fields of a config.json or sam2_dims.json that say how much is built, in the words of every family.
_LAYERS = ('num_hidden_layers', 'num_layers', 'depth', 'stages', 'memory_attention_layers', 'mask_decoder_depth',
           'iou_head_depth', 'num_maskmem')
_SIZES = ('hidden_size', 'intermediate_size', 'vocab_size', 'num_attention_heads', 'num_key_value_heads', 'head_dim',
          'image_size', 'patch_size', 'out_hidden_size', 'num_position_embeddings', 'num_channels', 'in_channels',
          'embed_dim', 'hidden_dim', 'mem_dim', 'decoder_mlp_dim', 'iou_head_hidden_dim', 'memory_attention_ffn',
          'num_heads', 'decoder_num_heads', 'num_multimask_outputs', 'prompt_mask_in_chans', 'head_mul', 'dim_mul',
          'mlp_ratio', 'window_spec', 'global_att_blocks', 'window_pos_embed_bkg_spatial_size', 'backbone_stride')


def limit(name: str) -> int:
    """The limit in force.

    Args:
        name: a key of ``LIMITS``.

    Raises:
        InputError: its environment variable holds no positive number.
    """
    variable = variable_of(name)
    text = os.environ.get(variable)
    if text is None:
        return LIMITS[name]
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise InputError(f'{variable}={text}: must be a number above 0')
    return value


def variable_of(name: str) -> str:
    """The environment variable that overrides a limit."""
    return f'SA2VA_DPO_MAX_{name.upper()}'


def check_pixels(path: object, width: int, height: int) -> None:
    """Raises InputError for a picture without pixels or above the limit, before memory is asked for it."""
    if width < 1 or height < 1:
        raise InputError(f'{path}: is {width} x {height} px: it holds no picture')
    if width * height > limit('image_pixels'):
        raise InputError(
            f'{path}: is {width} x {height} px, the limit is {limit("image_pixels")} pixels: make it smaller, or raise '
            f'{variable_of("image_pixels")}'
        )


def check_model_sizes(where: str, config: Mapping) -> None:
    """The sizes that a model's configuration states, in its sections too, are within the limits: what they ask for is
    never allocated to find out.

    Raises:
        InputError: names the field.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_model_sizes(f'{where}: {name}', value)
            continue
        kind = 'model_layers' if name in _LAYERS else 'model_size' if name in _SIZES else None
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if kind is None or number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= limit(kind):
                raise InputError(f'{where}: {name} is {_shown(value)}, the limit is {limit(kind)}: repair or download '
                                 f'it again, or raise {variable_of(kind)}')


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
