"""Image and conversation preprocessing: one way, shared by training, pair generation and testing.

Conversation. Sa2VA was trained on ``{image tokens}\\n{question}`` in the ``qwen_chat`` template without a system turn.
Whatever way a prompt spells its image placeholder (``<image>Please ...``, ``<image>\\nPlease ...``, none at all), it
reaches the model in exactly that form. Prompt, answer (with its end-of-turn token) and the closing newline are
tokenised separately, as in the original training code. LLaVA has the ``vicuna`` template, likewise without a system
text.

Images. The language model's view follows the family (InternVL tiles, the Qwen-VL processor, LLaVA's square); SAM2 and
SAM 3 see the whole image resized to a square, aspect ratio not kept, bicubic, ImageNet mean and standard deviation in
float32.
"""
from __future__ import annotations

import hashlib
import json
import os
from typing import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from sa2va_dpo.common.errors import InputError, one_line
from sa2va_dpo.common.limits import limit, variable_of
from sa2va_dpo.models.checkpoint import base_directory, read_config, read_sam2_dims, read_view
from sa2va_dpo.models.view_geometry import ViewGeometry

from .image_views import LlavaImages, as_rgb, image_half, to_normalised_tensor
from .tokenizer import first_token_ids, load_tokenizer

DEFAULT_ANSWER = 'Sure, [SEG].'
IMAGE_PLACEHOLDER = '<image>'
SEG = '[SEG]'
# Bumped when the output for the same input changes, so that caches keyed by fingerprint() are not reused.
_VERSION = 1

# (user turn, answer with end of turn, separator). The templates of released checkpoints spell the same text.
_CHAT = ('<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n', '{output}<|im_end|>', '\n')
_VICUNA = ('USER: {input} ASSISTANT:', '{output}</s>', '\n')
_TEMPLATES = {None: _CHAT, 'qwen_chat': _CHAT, 'internlm2_chat': _CHAT, 'vicuna': _VICUNA}
# What ends a turn. In Vicuna's that is the end of a text, so that the next turn opens with its beginning again.
_TURN_ENDS = {_CHAT: '<|im_end|>', _VICUNA: '</s>'}


def normalise_prompt(prompt: str, where: str = 'prompt') -> str:
    """The question alone: image placeholder and surrounding white space taken off.

    Raises:
        InputError: no question, or more than one image placeholder.
    """
    if prompt.count(IMAGE_PLACEHOLDER) > 1:
        raise InputError(f'{where}: {prompt!r} names {IMAGE_PLACEHOLDER} more than once; one image per prompt')
    question = prompt.replace(IMAGE_PLACEHOLDER, '').strip()
    if not question:
        raise InputError(f'{where}: {prompt!r} asks nothing; write a question such as '
                         f'"<image>Please segment the blood vessels."')
    return question


class Sa2VAPreprocessor:
    """Tokenizer and image processing of one checkpoint.

    Attributes:
        tokenizer: the checkpoint's tokenizer.
        seg_token_id, image_token_id, pad_token_id, eos_token_id: ids; end_token_ids: a set of them.
        sam_size: side of the SAM2 input, pixels.
        view: how closely the checkpoint's policy looks at an image that it predicts.
    """

    context: int | None = None  # tokens that the language model reads; None: not stated

    def __init__(self, tokenizer, images, sam_size: int, template: str | None = None,
                 where: str = 'tokenizer', view: ViewGeometry | None = None) -> None:
        self.tokenizer, self.images, self.sam_size = tokenizer, images, sam_size
        self.view = view or ViewGeometry()
        if template not in _TEMPLATES:
            raise InputError(f'{where}: template is {template!r}; Sa2VA was released with '
                             f'{", ".join(t for t in _TEMPLATES if t)}')
        self.template = _TEMPLATES[template]
        vocabulary = tokenizer.get_vocab()
        for token in (SEG, images.image_token):
            if token not in vocabulary:
                raise InputError(f'{where}: the tokenizer has no {token} token; it is not the tokenizer of a '
                                 f'Sa2VA checkpoint')
        self.seg_token_id: int = vocabulary[SEG]
        self.image_token_id: int = vocabulary[images.image_token]
        end = _TURN_ENDS[self.template]
        if end not in vocabulary:
            raise InputError(f'{where}: the tokenizer has no {end} token, which ends a turn of this template')
        self.eos_token_id: int = vocabulary[end]
        # What ends an answer: the end of the turn, and whatever the tokenizer calls the end of a text.
        self.end_token_ids = frozenset(t for t in (self.eos_token_id, tokenizer.eos_token_id,
                                                   vocabulary.get('<|endoftext|>')) if t is not None)
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_token_id
        # Text that a prompt or an answer may not contain: it would forge image places, turns or masks.
        self._forbidden = tuple(t for t in ('<|im_start|>', '<|im_end|>', '<s>', '</s>', images.image_token,
                                            images.prefix, images.suffix) if t in vocabulary)

    @classmethod
    def from_pretrained(cls, checkpoint_dir: str | os.PathLike, view: ViewGeometry | None = None,
                        **image_settings) -> 'Sa2VAPreprocessor':
        """Tokenizer and image processing of the family that ``config.json`` states.

        Args:
            view: in place of the one that the checkpoint states (``sa2va_dpo.json``).
            image_settings: Qwen-VL families: ``min_pixels``, ``max_pixels`` of the language model's view.

        Raises:
            InputError: no released layout, or a tokenizer without [SEG].
        """
        directory = base_directory(checkpoint_dir)
        config = read_config(directory)
        try:
            images = image_half(directory, config, image_settings)
        except InputError:
            raise
        except Exception as error:  # made of nothing but these settings: whatever is wrong is about them
            raise InputError(f'{directory / "config.json"}: its settings make no images for the language model '
                             f'({one_line(error)}): repair or download it again') from error
        template = config.get('template') or ('vicuna' if isinstance(images, LlavaImages) else None)
        found = cls(load_tokenizer(directory, config), images, read_sam2_dims(directory)['image_size'],
                    template, str(directory), view or read_view(checkpoint_dir))
        text = config.get('llm_config') or config.get('text_config') or config
        context = text.get('max_position_embeddings')
        found.context = context if type(context) is int and context > 0 else None
        return found

    # -- halves ---------------------------------------------------------------------------------------------------

    def encode_image(self, image: Image.Image | np.ndarray, *, for_llm: bool = True, for_sam2: bool = True) -> dict:
        """The image half of a sample (see :meth:`__call__`); depends on nothing but the image.

        Args:
            for_llm, for_sam2: False leaves out the view of one of them, for samples that bring what it gives.
        """
        image = as_rgb(image)
        encoded = dict(self.images.encode(image)) if for_llm else {}
        if for_sam2:
            encoded['sam_pixel_values'] = to_normalised_tensor(image.resize((self.sam_size, self.sam_size)))
        return dict(encoded, original_size=(image.height, image.width))

    def num_image_tokens(self, encoded_image: Mapping) -> int:
        """How many image tokens the prompt of an encoded image holds."""
        if 'vision_tokens' in encoded_image:
            return len(encoded_image['vision_tokens'])
        return self.images.num_tokens(encoded_image)

    def encode_text(self, prompt: str, answer: str = DEFAULT_ANSWER, *, num_image_tokens: int,
                    truncate_after_seg: bool = True) -> dict:
        """The text half of a sample: ``input_ids``, ``seg_positions``, ``labels``."""
        return self.encode_conversation([(prompt, answer)], num_image_tokens=num_image_tokens,
                                        truncate_after_seg=truncate_after_seg)

    def encode_conversation(self, turns: Sequence[tuple[str, str]], *, num_image_tokens: int,
                            truncate_after_seg: bool = True) -> dict:
        """Several turns about one image; the image tokens stand in the first.

        Returns:
            ``input_ids [L]``, ``labels [L]`` (-100 outside answers; aligned with the ids, not shifted) and
            ``seg_positions [n_seg]``, int64.

        Raises:
            InputError: an empty question, an answer without [SEG], or text that holds control tokens.
        """
        ids: list[int] = []
        labels: list[int] = []
        seg_positions: list[int] = []
        user, assistant, separator = self.template
        for i, (prompt, answer) in enumerate(turns):
            question = normalise_prompt(prompt)
            self._check_text('prompt', question, self._forbidden + (SEG,))
            self._check_text('answer', answer, self._forbidden)
            if SEG not in answer:
                raise InputError(f'answer: {answer!r} has no {SEG} token, so there would be no mask')
            if i == 0:
                question = self._image_text(num_image_tokens) + '\n' + question
            asked = self._tokenise(user.format(input=question), first=i == 0 or self.template is _VICUNA)
            said = self._tokenise(assistant.format(output=answer))
            between = self._tokenise(separator)
            start = len(ids) + len(asked)
            seg_positions += [start + k for k, token in enumerate(said) if token == self.seg_token_id]
            ids += asked + said + between
            labels += [-100] * len(asked) + said + [-100] * len(between)
        self._check_length(ids, turns[0][0])
        end = seg_positions[-1] + 1 if truncate_after_seg else len(ids)
        return dict(input_ids=torch.tensor(ids[:end]), labels=torch.tensor(labels[:end]),
                    seg_positions=torch.tensor(seg_positions))

    def encode_question(self, prompt: str, *, num_image_tokens: int) -> torch.Tensor:
        """Ids ``[L]`` up to where the answer begins, for free generation."""
        question = normalise_prompt(prompt)
        self._check_text('prompt', question, self._forbidden + (SEG,))
        text = self.template[0].format(input=self._image_text(num_image_tokens) + '\n' + question)
        ids = self._tokenise(text, first=True)
        self._check_length(ids, prompt)
        return torch.tensor(ids)

    def check_prompt(self, prompt: str) -> None:
        """Raises InputError for a question that cannot be asked, without an image."""
        self.encode_question(prompt, num_image_tokens=1)

    def _check_length(self, ids: Sequence[int], prompt: str) -> None:
        if self.context is not None and len(ids) > self.context:
            raise InputError(f'prompt: {prompt[:40]!r}... makes {len(ids)} tokens with the image, the model reads '
                             f'{self.context} (max_position_embeddings of its config.json): shorten it')

    def _image_text(self, n: int) -> str:
        return self.images.prefix + self.images.image_token * n + self.images.suffix

    def _tokenise(self, text: str, first: bool = False) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return first_token_ids(self.tokenizer) + ids if first else ids

    @staticmethod
    def _check_text(what: str, text: str, forbidden: Sequence[str]) -> None:
        most = limit('prompt_characters')
        if len(text) > most:
            raise InputError(f'{what}: {text[:40]!r}... has {len(text)} characters, the limit is {most}: shorten it, '
                             f'or raise {variable_of("prompt_characters")}')
        found = next((token for token in forbidden if token in text), None)
        if found is not None:
            raise InputError(f'{what}: {text!r} holds the control token {found}; take it out')

    # -- samples and batches --------------------------------------------------------------------------------------

    def __call__(self, image: Image.Image | np.ndarray, prompt: str, answer: str = DEFAULT_ANSWER, *,
                 truncate_after_seg: bool = True) -> dict:
        """One sample.

        Args:
            image: RGB, any size; PIL or uint8 ``[H, W, 3]``.
            prompt: the question, with or without ``<image>`` and with or without a newline after it.
            answer: teacher-forced answer; one mask per [SEG] token in it.
            truncate_after_seg: cut the text right after the last [SEG]. Attention is causal, so the masks are the same.

        Returns:
            ``input_ids [L]``, ``labels [L]``, ``seg_positions [n_seg]`` int64; ``pixel_values`` (InternVL
            ``[tiles, 3, t, t]``, Qwen-VL flattened patches), ``image_grid_thw [1, 3]`` (Qwen-VL only),
            ``sam_pixel_values [3, S, S]`` float32, ``original_size`` (H, W).

        Raises:
            InputError: an unusable prompt or answer.
        """
        encoded = self.encode_image(image)
        return {**self.encode_text(prompt, answer, num_image_tokens=self.num_image_tokens(encoded),
                                   truncate_after_seg=truncate_after_seg), **encoded}

    def collate(self, samples: Sequence[Mapping]) -> dict:
        """Samples -> batch.

        Samples may bring results in place of what would compute them (``datasets/samples.py``); all of a batch bring
        the same.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask [B, L]`` (right padded), ``image_token_mask [B, L]`` bool,
            ``seg_index [n_seg, 2]`` int64 (row, position), ``pixel_values`` (and ``image_grid_thw``) concatenated,
            ``sam_pixel_values [B, 3, S, S]``, ``original_sizes`` list of (H, W). In their place, where samples bring
            them: ``seg_states [n_seg, D]`` (then no text; positions in ``seg_index`` count the states of a row),
            ``vision_tokens [n, W]``, ``sam2_levels`` or ``sam2_features`` (lists of three tensors), and beside all
            that ``reference_low_res [n_seg, h, w]``. Of images in tiles (``SampleMaker.prediction``) ``tiles``: for
            each image its ``grid`` and ``parts``, one such batch a tile; beside them the language model's half of the
            whole images, if that is what it sees.

        Raises:
            ValueError: a sample whose text has places for another number of image tokens than its image gives.
        """
        first = samples[0]
        if 'tiles' in first:
            return self._collate_tiled(samples)
        batch: dict = dict(original_sizes=[tuple(s['original_size']) for s in samples])
        if 'seg_states' in first:
            batch['seg_index'] = torch.tensor(
                [(i, k) for i, s in enumerate(samples) for k in range(len(s['seg_states']))]
            )
        else:
            batch.update(self._collate_text(samples) if 'input_ids' in first else {})
        for key in (*self.images.concatenated, 'vision_tokens', 'seg_states', 'reference_low_res'):
            if key in first:
                batch[key] = torch.cat([s[key] for s in samples])
        for key in ('sam2_levels', 'sam2_features'):
            if key in first:
                batch[key] = [torch.stack(levels) for levels in zip(*(s[key] for s in samples))]
        if 'sam_pixel_values' in first:
            batch['sam_pixel_values'] = torch.stack([s['sam_pixel_values'] for s in samples])
        return batch

    def _collate_tiled(self, samples: Sequence[Mapping]) -> dict:
        batch = self.collate([{name: value for name, value in sample.items() if name not in ('tiles', 'grid')}
                              for sample in samples])
        batch['tiles'] = [dict(grid=sample['grid'], parts=[self.collate([tile]) for tile in sample['tiles']])
                          for sample in samples]
        return batch

    def _collate_text(self, samples: Sequence[Mapping]) -> dict:
        length = max(len(s['input_ids']) for s in samples)
        ids = torch.full((len(samples), length), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((len(samples), length), -100, dtype=torch.int64)
        mask = torch.zeros(len(samples), length, dtype=torch.int64)
        for i, sample in enumerate(samples):
            n = len(sample['input_ids'])
            ids[i, :n], mask[i, :n] = sample['input_ids'], 1
            labels[i, :n] = sample.get('labels', labels[i, :n])
            places = int((sample['input_ids'] == self.image_token_id).sum())
            if places != self.num_image_tokens(sample):
                raise ValueError(f'sample {i}: the text has {places} image tokens, its image gives '
                                 f'{self.num_image_tokens(sample)}')
        return dict(
            input_ids=ids, labels=labels, attention_mask=mask, image_token_mask=ids == self.image_token_id,
            seg_index=torch.tensor([(i, int(p)) for i, s in enumerate(samples)
                                    for p in s.get('seg_positions', ())], dtype=torch.int64).reshape(-1, 2))

    def fingerprint(self) -> str:
        """Hex digest of everything that determines the output: two equal fingerprints give equal samples."""
        backend = getattr(self.tokenizer, 'backend_tokenizer', None)
        state = dict(version=_VERSION, template=self.template, first=first_token_ids(self.tokenizer),
                     images=repr(self.images), sam_size=self.sam_size, answer=DEFAULT_ANSWER,
                     tokenizer=backend.to_str() if backend is not None else sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
