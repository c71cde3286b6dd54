"""The tokenizer of a checkpoint directory, without running any code from it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Mapping

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen2TokenizerFast

from ..errors import InputError


def load_tokenizer(directory: Path, config: Mapping):
    """The directory's tokenizer.

    Raises:
        InputError: missing or unreadable tokenizer files.
    """
    path = directory / 'tokenizer_config.json'
    try:
        name = json.loads(path.read_text(encoding='utf-8')).get('tokenizer_class', '')
    except FileNotFoundError:
        raise InputError(f'{path}: missing; copy the tokenizer files of the checkpoint along') from None
    except ValueError as error:
        raise InputError(f'{path}: not readable as JSON ({error}); download it again') from None
    if name.startswith('Qwen2Tokenizer'):
        has_fast = (directory / 'tokenizer.json').is_file() or (directory / 'vocab.json').is_file()
        kind = Qwen2TokenizerFast if has_fast else Qwen2Tokenizer
    else:
        kind = PreTrainedTokenizerFast
    try:
        return kind.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f'{directory}: the tokenizer files cannot be read ({str(error).splitlines()[0]}); '
                         f'download them again') from None
