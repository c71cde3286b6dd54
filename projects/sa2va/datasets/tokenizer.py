"""The tokenizer of a checkpoint directory, without running any code from it."""
from __future__ import annotations

from pathlib import Path
from typing import Mapping

from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, Qwen2TokenizerFast

try:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
except ImportError:  # transformers 4.57, whose LlamaTokenizer is sentencepiece itself
    SentencePieceTokenizer = LlamaTokenizer
else:
    class SentencePieceTokenizer(SentencePieceBackend):
        """The pieces that the sentencepiece library finds. LlamaTokenizer of transformers 5 converts the model instead,
        which keeps neither its kind (unigram or byte pairs) nor its treatment of white space."""

        vocab_files_names = {'vocab_file': 'tokenizer.model'}

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json


def load_tokenizer(directory: Path, config: Mapping):
    """The directory's tokenizer.

    Raises:
        InputError: missing or unreadable tokenizer files.
    """
    path = directory / 'tokenizer_config.json'
    stated = read_json(path, 'download it again', 'copy the tokenizer files of the checkpoint along', kind=dict)
    name = stated.get('tokenizer_class') or ''
    if not isinstance(name, str):
        raise InputError(f'{path}: tokenizer_class is {name!r}, must be text: download it again')
    settings = {}
    if name.startswith('Qwen2Tokenizer'):
        has_fast = (directory / 'tokenizer.json').is_file() or (directory / 'vocab.json').is_file()
        kind = Qwen2TokenizerFast if has_fast else Qwen2Tokenizer
    elif (directory / 'tokenizer.json').is_file():
        kind = PreTrainedTokenizerFast
    elif (directory / 'tokenizer.model').is_file():
        # InternLM2's own class is LLaMA's sentencepiece tokenizer (the early behaviour, "legacy") under another name.
        kind, settings = SentencePieceTokenizer, dict(legacy=stated.get('legacy') is not False)
    else:
        raise InputError(f'{directory}: no tokenizer.json, vocab.json or tokenizer.model; copy the tokenizer files of '
                         f'the checkpoint along')
    try:
        return kind.from_pretrained(str(directory), local_files_only=True, **settings)
    except Exception as error:  # the tokenizers library raises bare Exception on damaged files
        raise InputError(f'{directory}: the tokenizer files cannot be read '
                         f'({(str(error).splitlines() or [type(error).__name__])[0]}); download them again') from None


def first_token_ids(tokenizer) -> list[int]:
    """What Sa2VA's training puts before a conversation: the beginning-of-sequence token, and nothing with Qwen."""
    if isinstance(tokenizer, (Qwen2Tokenizer, Qwen2TokenizerFast)) or tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id]
