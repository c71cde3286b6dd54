"""Images of one data set and seed with everything that no recipe changes, kept on the device.

The language model is frozen in the study, so an image's SAM2 input and [SEG] state under any view are constants: a
recipe, its mining rounds included, costs SAM2 alone.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of, split_by_group
from sa2va_dpo.datasets.mask_io import list_images, read_image_rgb, read_mask
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.targets import soft_target
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.preferences.sampler import Policies, PolicySampler
from sa2va_dpo.preferences.views import VIEWS

# Which patients are labelled validation: a fixed few of the half that is otherwise the test.
VALIDATION = 0.2


class Bank:
    """Args:
        checkpoint: the directory whose language model makes the [SEG] states; bases share it.
        policy: that checkpoint, loaded.
        seed: of the split into training, validation and test patients.
        name: of the data set, for files.
    """

    def __init__(self, checkpoint: str, policy: Sa2VAModel, images: Path, masks: Path, seed: int, device: str,
                 name: str) -> None:
        self.policy, self.device, self.seed, self.name = policy, device, seed, name
        self.pre = Sa2VAPreprocessor.from_pretrained(checkpoint)
        files = dict((image.stem, (image, mask)) for image, mask in match_ground_truth(list_images(images), masks)[0])
        train, rest = split_by_group(list(files), 0.5, seed, key=patient_of)
        test, validation = split_by_group(rest, VALIDATION, seed, key=patient_of)
        self.train, self.test, self.validation = train, test, validation
        self.pixels = {stem: read_image_rgb(image) for stem, (image, _) in files.items()}
        self.truth = {stem: read_mask(mask) for stem, (_, mask) in files.items()}
        self._inputs: dict[tuple[str, str], dict] = {}

    def labelled(self, k: int) -> list[str]:
        """The first ``k`` training images of a fixed shuffle: two k of one seed are nested."""
        order = np.random.default_rng([self.seed, 77]).permutation(len(self.train))
        return [self.train[i] for i in order[:k]]

    @torch.no_grad()
    def inputs(self, stem: str, view: str) -> dict:
        """The policy's input for one view, the language model's work in it done."""
        if (stem, view) not in self._inputs:
            pictures = [np.ascontiguousarray(picture) for picture in VIEWS[view].images(self.pixels[stem])]
            batch = self.pre.collate([self.pre(picture, DEFAULT_PROMPT) for picture in pictures])
            batch = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}
            self._inputs[stem, view] = dict(
                sam_pixel_values=batch['sam_pixel_values'], seg_states=self.policy.seg_states(batch),
                original_sizes=batch['original_sizes'],
                seg_index=torch.tensor([(i, 0) for i in range(len(pictures))], device=self.device))
        return self._inputs[stem, view]

    def target(self, mask: np.ndarray, size: int) -> torch.Tensor:
        """uint8 [size, size] soft target on the device."""
        return torch.from_numpy(soft_target(mask, size)).to(self.device)

    def sampler(self, policy: Sa2VAModel, stem: str, seed: int) -> PolicySampler:
        return _BankSampler(self, policy, stem, seed)


class _BankSampler(PolicySampler):
    """The product's sampler, its inputs from the bank."""

    def __init__(self, bank: Bank, policy: Sa2VAModel, stem: str, seed: int) -> None:
        super().__init__(Policies(None, bank.device, policy, bank.pre), bank.pixels[stem], stem, DEFAULT_PROMPT, seed)
        self._bank = bank

    def _inputs(self, checkpoint: str | None, view: str, prompt: str) -> dict:
        return self._bank.inputs(self.stem, view)
