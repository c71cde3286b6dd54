"""A checkpoint of a released size with random weights: whatever a release would ask of a machine, without the
download."""
from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import torch

from sa2va_dpo.models.checkpoint import stream_checkpoint
from sa2va_dpo.models.mllm import family_of
from sa2va_dpo.models.mllm.qwen_vl import QwenImageProcessor
from sa2va_dpo.models.tiny import write_tokenizer
from sa2va_dpo.models.variants import GROUNDING, RELEASED, released_name

# What Qwen3-VL's image processor changes in that of Qwen2.5-VL, beside sizes that config.json states.
_QWEN3_COLOURS = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])

# What the template of LLaVA's language model adds.
_VICUNA_TOKENS = ('<s>', '</s>', '<image>')


def write_random_checkpoint(size: str, output: str | os.PathLike, tokenizer: str | os.PathLike | None = None,
                            seed: int = 0, *, dtype: torch.dtype = torch.bfloat16,
                            device: str | torch.device = 'cpu') -> tuple[str, int]:
    """Write the directory that a released model would be downloaded as, with weights drawn at random.

    Names, shapes, shards and ``config.json`` are those of the release; masks are noise. A step, a prediction and an
    export cost what they cost with the real weights.

    Args:
        size: see :func:`released_name`.
        output: new or empty.
        tokenizer: directory whose tokenizer and processor files are copied. ``None``: a small byte-level tokenizer with
            the released special tokens; texts come out some tokens longer, beside the thousands of an image.
        seed, dtype, device: see :func:`sa2va_dpo.models.checkpoint.stream_checkpoint`.

    Returns:
        The full name of the release and the number of parameters.

    Raises:
        InputError: no such size, the directory is in use, or the disk has no room.
    """
    name = released_name(size)
    config = copy.deepcopy(RELEASED[name])
    config.setdefault('template', 'internlm2_chat' if 'InternLM2ForCausalLM' in str(config) else 'qwen_chat')
    with tempfile.TemporaryDirectory() as made:
        if tokenizer is None:
            write_tokenizer(Path(made), _VICUNA_TOKENS if family_of(config) == 'llava' else ())
            if family_of(config).startswith('qwen'):
                _write_qwen_processor(config, Path(made))
        return name, stream_checkpoint(config, GROUNDING.get(name), tokenizer or made, output, seed, dtype=dtype,
                                       device=device)


def _write_qwen_processor(config: dict, directory: Path) -> None:
    vision = config['vision_config']
    QwenImageProcessor(
        patch_size=vision['patch_size'], merge_size=vision['spatial_merge_size'],
        temporal_patch_size=vision['temporal_patch_size'],
        **(_QWEN3_COLOURS if family_of(config) == 'qwen3_vl' else {})).save_pretrained(directory)
