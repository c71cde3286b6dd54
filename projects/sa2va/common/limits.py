"""How large an input may be before memory is asked for it; each limit can be raised by an environment variable.

``SA2VA_DPO_MAX_JSON_BYTES=2e9`` raises ``json_bytes``, and so for the others.
"""
from __future__ import annotations

import os

from .errors import InputError

LIMITS = dict(
    json_bytes=1 << 30,  # of a JSON file: annotations of a million pairs take a third of it
    json_depth=64,  # nested lists and objects
    json_digits=100,  # of an integer: more is no number that anything here can mean
    image_pixels=1 << 26,  # of one image or mask: the largest fundus cameras make a third of it
    frames=10_000,  # of one file of a sequence or volume
)


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
