"""Segment an image with a checkpoint:  ``Predictor.from_pretrained(directory).predict(image, prompt)``."""
from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.preprocess import DEFAULT_ANSWER, Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import base_directory, default_dtype, load_checkpoint
from sa2va_dpo.models.generate import generate
from sa2va_dpo.models.sa2va import MaskOutput, Sa2VAModel, upsample_logits


@dataclass
class Prediction:
    """One entry per [SEG] token, in the order of the text.

    Attributes:
        text: the answer: the teacher-forced one, or what was generated (control tokens at its end taken off).
        masks: bool ``[n_seg, H, W]`` in the size of the image: probability above 0.5.
        logits: float32 ``[n_seg, H, W]``.
        iou_pred: float32 ``[n_seg]``, SAM2's own estimate of each mask's IoU.
    """

    text: str
    masks: np.ndarray
    logits: np.ndarray
    iou_pred: np.ndarray


class Predictor:
    """A model in eval mode and the preprocessing that belongs to it.

    Args:
        model: on its device; never changed.
        preprocessor: of the same checkpoint.
    """

    def __init__(self, model: Sa2VAModel, preprocessor: Sa2VAPreprocessor) -> None:
        self.model, self.preprocessor = model.eval(), preprocessor
        self._vocabulary_head: torch.Tensor | None = None

    @classmethod
    def from_pretrained(cls, checkpoint_dir: str | os.PathLike, dtype: torch.dtype | None = None,
                        device: str | torch.device | None = None,
                        base: str | os.PathLike | None = None) -> 'Predictor':
        """Load a directory in the released layout, or an adapter.

        Args:
            dtype: of the weights; default bfloat16 for released sizes on a GPU, else float32.
            device: default the GPU when there is one.
            base: the checkpoint of an adapter, where it is not at the recorded path.

        Raises:
            InputError: the directory cannot be used; the message says why.
        """
        device = torch.device(pick_device(str(device) if device is not None else None, 'device'))
        directory = base_directory(checkpoint_dir, base)
        dtype = dtype or default_dtype(directory, device)
        preprocessor = Sa2VAPreprocessor.from_pretrained(directory)
        return cls(load_checkpoint(checkpoint_dir, dtype=dtype, device=device, base=base), preprocessor)

    @torch.no_grad()
    def predict(self, image: Image.Image | np.ndarray, prompt: str, answer: str = DEFAULT_ANSWER, *,
                free_generation: bool = False, max_new_tokens: int = 512) -> Prediction:
        """Masks for a prompt.

        Args:
            image: RGB; PIL or uint8 ``[H, W, 3]``.
            prompt: the question, with or without ``<image>``.
            answer: teacher-forced answer, one mask per [SEG] in it; the same path as training. Ignored in free
                generation.
            free_generation: let the model write the answer (greedy): there are as many masks as it writes [SEG] tokens,
                possibly none.
            max_new_tokens: where a generated answer is cut.

        Raises:
            InputError: an unusable prompt or answer.
        """
        pre, model = self.preprocessor, self.model
        encoded = pre.encode_image(image)
        size, tokens = encoded['original_size'], pre.num_image_tokens(encoded)
        if not free_generation:
            sample = {**encoded, **pre.encode_text(prompt, answer, num_image_tokens=tokens)}
            return self._prediction(answer, model(self._batch(sample)), size)
        sample = {**encoded, 'input_ids': pre.encode_question(prompt, num_image_tokens=tokens)}
        batch = self._batch(sample)
        result = generate(model, batch, self._head(), seg_token_id=pre.seg_token_id,
                          end_token_ids=pre.end_token_ids, max_new_tokens=max_new_tokens)
        ids = result.token_ids.tolist()
        if ids and ids[-1] in pre.end_token_ids:
            ids.pop()
        text = pre.tokenizer.decode(ids, skip_special_tokens=False)
        if not len(result.seg_states):
            return Prediction(text, np.zeros((0, *size), bool), np.zeros((0, *size), np.float32),
                              np.zeros(0, np.float32))
        features = model.encode_image(batch['sam_pixel_values'])
        rows = torch.zeros(len(result.seg_states), dtype=torch.int64, device=self._device)
        return self._prediction(text, model.decode(features, model.embed_states(result.seg_states), rows), size)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _batch(self, sample: dict) -> dict:
        return {k: v.to(self._device) if isinstance(v, torch.Tensor) else v
                for k, v in self.preprocessor.collate([sample]).items()}

    def _head(self) -> torch.Tensor:
        # Only free generation needs it, and it is one of the largest tensors, so it is read on first use.
        if self._vocabulary_head is None:
            dtype = next(self.model.mllm.language_model.parameters()).dtype
            self._vocabulary_head = self.model.source.vocabulary_head().to(self._device, dtype)
        return self._vocabulary_head

    def _prediction(self, text: str, output: MaskOutput, size_hw: tuple[int, int]) -> Prediction:
        logits = upsample_logits(output.low_res, self.model.sam_size, size_hw).cpu().numpy()
        return Prediction(text, logits > 0, logits, output.iou_pred.max(dim=1).values.cpu().numpy())
