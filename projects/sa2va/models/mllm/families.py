"""Which family a released configuration is of."""
from __future__ import annotations

from typing import Mapping

from ...errors import InputError
from .base import MultimodalLLM

FAMILIES = ('internvl',)


def family_of(config: Mapping, where: str = 'config.json') -> str:
    """One of ``FAMILIES``.

    Raises:
        InputError: not a Sa2VA configuration, or a language model that Sa2VA was not released with.
    """
    if 'llm_config' in config and 'vision_config' in config:
        return 'internvl'
    raise InputError(f'{where}: neither llm_config (InternVL families) nor text_config (Qwen-VL families) is there; '
                     f'give a directory in the released Sa2VA layout')


def build_mllm(config: Mapping, where: str = 'config.json') -> MultimodalLLM:
    """The family's model with fresh weights (on the meta device inside ``empty_weights``)."""
    family_of(config, where)
    from .internvl import InternVL
    return InternVL(config, where)
