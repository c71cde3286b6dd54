"""Segment an image with a checkpoint:  ``Predictor.from_pretrained(directory).predict(image, prompt)``."""
from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from typing import Iterable, Iterator, Mapping

import numpy as np
import torch
from PIL import Image

from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.image_views import as_rgb
from sa2va_dpo.datasets.preprocess import DEFAULT_ANSWER, Sa2VAPreprocessor
from sa2va_dpo.datasets.samples import SampleMaker, View, digest_of_array
from sa2va_dpo.models.checkpoint import base_directory, default_dtype, load_checkpoint, read_view
from sa2va_dpo.models.generate import generate
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.tiled import MAX_GIB, blend, image_logits, moved
from sa2va_dpo.models.view_geometry import ViewGeometry


def view_of(checkpoint: str | os.PathLike, base: str | os.PathLike | None = None,
            grid: int | str | None = None) -> ViewGeometry:
    """How closely a checkpoint looks, with another number of tiles along each axis where ``grid`` says one.

    Raises:
        InputError: an impossible grid, or a checkpoint whose statement cannot be read.
    """
    view = read_view(checkpoint, base)
    return view if grid is None else ViewGeometry.of({**view.to_dict(), 'grid': grid}, '--grid: view')


@dataclass
class Prediction:
    """One entry per [SEG] token, in the order of the text.

    Attributes:
        text: the answer: the teacher-forced one, or what was generated (control tokens at its end taken off).
        masks: bool ``[n_seg, H, W]`` in the size of the image: probability above 0.5.
        logits: float32 ``[n_seg, H, W]``.
        iou_pred: float32 ``[n_seg]``, SAM2's own estimate of each mask's IoU; over tiles the mean.
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
        view: how closely to look (docs/resolution.md), in place of what the checkpoint states (``preprocessor.view``).
        max_gib: bound on SAM2's working memory on a GPU, where an image is looked at in tiles.
    """

    def __init__(self, model: Sa2VAModel, preprocessor: Sa2VAPreprocessor, view: ViewGeometry | Mapping | None = None,
                 max_gib: float = MAX_GIB) -> None:
        self.model, self.preprocessor = model.eval(), preprocessor
        self.view, self.max_gib = preprocessor.view if view is None else ViewGeometry.of(view), max_gib
        self._vocabulary_head: torch.Tensor | None = None

    @classmethod
    def from_pretrained(cls, checkpoint_dir: str | os.PathLike, dtype: torch.dtype | None = None,
                        device: str | torch.device | None = None,
                        base: str | os.PathLike | None = None, view: ViewGeometry | Mapping | None = None,
                        max_gib: float = MAX_GIB) -> 'Predictor':
        """Load a directory in the released layout, or an adapter.

        Args:
            dtype: of the weights; default bfloat16 for released sizes on a GPU, else float32.
            device: default the GPU when there is one.
            base: the checkpoint of an adapter, where it is not at the recorded path.
            view, max_gib: see above.

        Raises:
            InputError: the directory cannot be used; the message says why.
        """
        device = torch.device(pick_device(str(device) if device is not None else None, 'device'))
        directory = base_directory(checkpoint_dir, base)
        dtype = dtype or default_dtype(directory, device)
        view = read_view(checkpoint_dir, base) if view is None else view
        preprocessor = Sa2VAPreprocessor.from_pretrained(directory)
        return cls(load_checkpoint(checkpoint_dir, dtype=dtype, device=device, base=base), preprocessor, view, max_gib)

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
        if not free_generation:
            return next(self.predict_many([image], prompt, answer))
        pre, model = self.preprocessor, self.model
        picture = np.asarray(as_rgb(image))
        size, maker = picture.shape[:2], SampleMaker(pre, geometry=self.view)
        view = View(lambda: digest_of_array(picture), lambda: picture, prompt, answer=answer)
        encoded = pre.encode_image(picture, for_sam2=False)
        question = pre.encode_question(prompt, num_image_tokens=pre.num_image_tokens(encoded))
        result = generate(model, self._batch({**encoded, 'input_ids': question}), self._head(),
                          seg_token_id=pre.seg_token_id, end_token_ids=pre.end_token_ids,
                          max_new_tokens=max_new_tokens)
        ids = result.token_ids.tolist()
        if ids and ids[-1] in pre.end_token_ids:
            ids.pop()
        text = pre.tokenizer.decode(ids, skip_special_tokens=False)
        if not len(result.seg_states):
            return Prediction(text, np.zeros((0, *size), bool), np.zeros((0, *size), np.float32),
                              np.zeros(0, np.float32))
        # What was said is said of the whole image, whatever each tile's own text would be.
        grid = self.view.tiles(size, pre.sam_size)
        tiles = view.tiles(self.view.boxes(size, pre.sam_size), 'image')
        parts = [self._batch(maker(tile, language=False)) for tile in tiles]
        return self._prediction(text, *blend(model, dict(grid=grid, parts=parts),
                                             model.embed_states(result.seg_states), self.max_gib))

    @torch.no_grad()
    def predict_many(self, images: Iterable[Image.Image | np.ndarray], prompt: str, answer: str = DEFAULT_ANSWER, *,
                     batch_size: int = 1) -> Iterator[Prediction]:
        """Masks of any number of images, one after the other; memory holds one batch.

        Images, prompt and answer are those of :meth:`predict`; images may differ in size. For folders and files on
        disk, tables and interruptions there is :func:`sa2va_dpo.inference.prediction_folder.predict_folder`.

        Args:
            images: read as far as they are needed.
            batch_size: images per forward pass.

        Raises:
            InputError: an unusable prompt or answer.
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size: {batch_size} must be at least 1')
        rest, maker = iter(images), SampleMaker(self.preprocessor, geometry=self.view)
        while chunk := [np.asarray(as_rgb(image)) for image in islice(rest, batch_size)]:
            samples = [maker.prediction(View(lambda p=picture: digest_of_array(p), lambda p=picture: p, prompt,
                                             answer=answer), picture.shape[:2]) for picture in chunk]
            batch = moved(self.preprocessor.collate(samples), self._device)
            for logits, iou_pred in image_logits(self.model, batch, self.max_gib):
                yield self._prediction(answer, logits, iou_pred)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _batch(self, sample: dict) -> dict:
        return moved(self.preprocessor.collate([sample]), self._device)

    def _head(self) -> torch.Tensor:
        # Only free generation needs it, and it is one of the largest tensors, so it is read on first use.
        if self._vocabulary_head is None:
            dtype = next(self.model.mllm.language_model.parameters()).dtype
            self._vocabulary_head = self.model.source.vocabulary_head().to(self._device, dtype)
        return self._vocabulary_head

    @staticmethod
    def _prediction(text: str, logits: torch.Tensor, iou_pred: torch.Tensor) -> Prediction:
        found = logits.cpu().numpy()
        return Prediction(text, found > 0, found, iou_pred.cpu().numpy())
