"""Which family a released configuration is of."""
from __future__ import annotations

from typing import Mapping

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.limits import check_model_sizes

from .base import MultimodalLLM
from .llava import Llava
from .llava import text_fields as llava_text_fields

FAMILIES = ('internvl', 'qwen2_5_vl', 'qwen3_vl', 'llava')


def family_of(config: Mapping, where: str = 'config.json') -> str:
    """One of ``FAMILIES``.

    Raises:
        InputError: not a Sa2VA configuration, or a language model that Sa2VA was not released with.
    """
    for section in ('llm_config', 'text_config', 'vision_config'):
        if not isinstance(config.get(section, {}), Mapping):
            raise InputError(f'{where}: {section} is {config[section]!r}, must be an object')
    if 'llm_config' in config and 'vision_config' in config:
        return 'internvl'
    if 'vision_config' in config:
        kinds = (str(config.get('text_config', {}).get('model_type', '')),
                 str(config['vision_config'].get('model_type', '')), str(config.get('model_type', '')))
        for family in ('qwen2_5_vl', 'qwen3_vl'):
            # text_config: qwen3_vl_text; vision_config: qwen3_vl. Mixture-of-experts kinds have other names.
            if family + '_text' == kinds[0] or (not kinds[0] and family in kinds[1:]):
                return family
        # LLaVA's parts are named by what they are: a LLaMA and a CLIP.
        if kinds[:2] == ('llama', 'clip_vision_model'):
            return 'llava'
        raise InputError(f'{where}: text_config.model_type is {kinds[0]!r}; Sa2VA was released with '
                         f'qwen2_5_vl_text, qwen3_vl_text, and llama beside a CLIP vision tower (LLaVA-1.5)')
    raise InputError(f'{where}: neither llm_config (InternVL families) nor text_config (Qwen-VL, LLaVA) is there; '
                     f'give a directory in the released Sa2VA layout')


_INTERNVL_FIELDS = {
    'llm_config': ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
                   'num_key_value_heads'),
    'vision_config': ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'image_size',
                      'patch_size'),
}
_QWEN_FIELDS = {'text_config': ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
                                'num_attention_heads', 'num_key_value_heads'),
                # transformers leaves defaults out when it writes a nested configuration.
                'vision_config': ()}


def check_config(config: Mapping, where: str = 'config.json') -> None:
    """The sizes without which no model can be built are there and are positive whole numbers.

    Raises:
        InputError: names the field.
    """
    family = family_of(config, where)
    check_model_sizes(where, config)
    fields = _INTERNVL_FIELDS if family == 'internvl' else _QWEN_FIELDS
    for section, names in fields.items():
        # Qwen-VL configurations written before text_config existed have its fields at the top.
        part = llava_text_fields(config) if family == 'llava' else config.get(section, config)
        for name in names:
            value = part.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise InputError(f'{where}: {section}.{name} is {value!r}, must be a positive whole number')


def hidden_size_of(config: Mapping, where: str = 'config.json') -> int:
    """Width D of the language model's states, without building it."""
    family = family_of(config, where)
    if family == 'llava':
        return int(llava_text_fields(config)['hidden_size'])
    return int(config.get('llm_config' if family == 'internvl' else 'text_config', config)['hidden_size'])


def build_mllm(config: Mapping, where: str = 'config.json') -> MultimodalLLM:
    """The family's model with fresh weights (on the meta device inside ``empty_weights``)."""
    family = family_of(config, where)
    if family == 'qwen2_5_vl':
        from .qwen2_5_vl import Qwen25VL as kind
    elif family == 'qwen3_vl':
        from .qwen3_vl import Qwen3VL as kind
    elif family == 'llava':
        kind = Llava
    else:
        from .internvl import InternVL as kind
    return kind(config, where)
