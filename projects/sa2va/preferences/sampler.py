"""The policy on one image: many masks for few encoder runs.

Encoders run once per view, the language model once per view and question, and all perturbations and hypotheses of a
view are one decoder batch. Everything goes through the same ``encode_image`` / ``encode_prompt`` / ``decode`` that
``Sa2VAModel.mask_logits`` is made of, so the plain request is exactly the policy's answer.
"""
from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
import torch

from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.models.sa2va import MaskOutput, Sa2VAModel, Sam2Features, upsample_logits

from .candidates import Request, generator
from .views import VIEWS

# View -> (horizontal, vertical), as training mirrors its images.
MIRRORS = dict(identity=(False, False), hflip=(True, False), vflip=(False, True), rot180=(True, True))
DECODER_BATCH = 32  # bounds memory: a 1024 px embedding repeats its high-resolution features, 12 MB each


class Policies:
    """Loaded checkpoints by directory; ``None`` is the run's own.

    Args:
        model_path: the run's checkpoint.
        device: ``None`` is a GPU where there is one.
        policy, preprocessor: the run's checkpoint, already loaded.
    """

    def __init__(self, model_path: str | None, device: str | None = None, policy: Sa2VAModel | None = None,
                 preprocessor=None) -> None:
        self.model_path, self.device = model_path, device
        self._loaded = {} if policy is None else {None: (policy, preprocessor)}

    def get(self, checkpoint: str | None = None) -> tuple[Sa2VAModel, object]:
        """(policy, preprocessor), read at first use."""
        if checkpoint not in self._loaded:
            from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
            from sa2va_dpo.models.checkpoint import default_dtype, load_checkpoint

            path = checkpoint or self.model_path
            device = pick_device(self.device)
            self._loaded[checkpoint] = (load_checkpoint(path, dtype=default_dtype(path, device), device=device),
                                        Sa2VAPreprocessor.from_pretrained(path))
        return self._loaded[checkpoint]


class PolicySampler:
    """Answers requests about one image.

    Args:
        policies: in eval mode.
        image: uint8 [H, W, 3].
        stem, seed: fix the random draws, whatever the order of requests.
        prompt: the question of requests without one of their own.
        frozen: gives the sample (``datasets/samples.py``) of a mirrored view with what a cache holds of the run's
            policy, or None where it holds nothing; what is in the sample is not computed again.
    """

    def __init__(self, policies: Policies, image: np.ndarray, stem: str, prompt: str, seed: int,
                 frozen: Callable[[bool, bool], dict | None] | None = None) -> None:
        self.frozen = frozen
        self.policies, self.image, self.stem, self.prompt, self.seed = policies, image, stem, prompt, seed
        self._features: dict[tuple, Sam2Features] = {}
        self._embeddings: dict[tuple, torch.Tensor] = {}
        self._probabilities: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def masks(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, float]]:
        """(bool [H, W], predicted IoU) of every request."""
        answers: list = [None] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((request.checkpoint, request.view, request.prompt or self.prompt), []).append(index)
        for (checkpoint, view, prompt), indices in groups.items():
            variants = list(dict.fromkeys(_variant(requests[i]) for i in indices))
            output = self._decode(checkpoint, view, prompt, variants)
            # Requests that differ in nothing but the threshold share the map.
            by_map: dict[tuple, list[int]] = {}
            for i in indices:
                by_map.setdefault((variants.index(_variant(requests[i])), requests[i].rank), []).append(i)
            for (variant, rank), members in by_map.items():
                logits, predicted_iou = self._restore(checkpoint, view, output, variant, len(variants), rank)
                for i in members:
                    p = requests[i].threshold
                    answers[i] = (logits > float(np.log(p / (1 - p)))).cpu().numpy(), predicted_iou
        return answers

    @torch.no_grad()
    def probability(self, view: str = 'identity') -> np.ndarray:
        """Vessel probability of the greedy answer to a view, in the image's own pixels, float32 [H, W]."""
        if view not in self._probabilities:
            output = self._decode(None, view, self.prompt, [(0.0, 0.0, 0)])
            self._probabilities[view] = self._restore(None, view, output, 0, 1, 0)[0].sigmoid().cpu().numpy()
        return self._probabilities[view]

    def _inputs(self, checkpoint: str | None, view: str, prompt: str) -> dict:
        policy, pre = self.policies.get(checkpoint)
        device = next(policy.parameters()).device
        sample = None
        if self.frozen is not None and checkpoint is None and prompt == self.prompt and view in MIRRORS:
            sample = self.frozen(*MIRRORS[view])
        if sample is not None:
            batch = pre.collate([sample])
        else:
            pictures = [np.ascontiguousarray(picture) for picture in VIEWS[view].images(self.image)]
            batch = pre.collate([pre(picture, prompt) for picture in pictures])
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}

    def _encode(self, checkpoint: str | None, view: str, prompt: str) -> tuple[Sam2Features, torch.Tensor]:
        policy, _ = self.policies.get(checkpoint)
        if (checkpoint, view, prompt) not in self._embeddings:
            batch = self._inputs(checkpoint, view, prompt)
            if (checkpoint, view) not in self._features:
                self._features[checkpoint, view] = policy.image_features(batch)
            self._embeddings[checkpoint, view, prompt] = policy.encode_prompt(batch)
        return self._features[checkpoint, view], self._embeddings[checkpoint, view, prompt]

    def _decode(self, checkpoint: str | None, view: str, prompt: str, variants: list[tuple]) -> MaskOutput:
        """All variants of all pictures of a view; row ``variant * pictures + picture``."""
        policy, _ = self.policies.get(checkpoint)
        features, embedding = self._encode(checkpoint, view, prompt)
        pictures = len(embedding)
        outputs = []
        step = max(1, DECODER_BATCH // pictures)
        for start in range(0, len(variants), step):
            chunk = variants[start:start + step]
            embeddings = torch.cat([self._perturb(embedding, noise, draw) for noise, _, draw in chunk])
            repeated = features[torch.arange(pictures, device=embedding.device).repeat(len(chunk))]
            if any(rate for _, rate, _ in chunk):
                repeated = Sam2Features(torch.cat([self._drop(features.image_embed, rate, draw)
                                                   for _, rate, draw in chunk]), repeated.high_res)
            outputs.append(policy.decode(repeated, embeddings))
        return MaskOutput(*(torch.cat([getattr(output, name) for output in outputs])
                            for name in ('low_res', 'hypotheses', 'iou_pred', 'seg_embedding')))

    def _perturb(self, embedding: torch.Tensor, scale: float, draw: int) -> torch.Tensor:
        if not scale:
            return embedding
        # One draw for all pictures of a view: they are one question.
        noise = generator(self.seed, self.stem, 'seg_noise', scale, draw).standard_normal(embedding.shape[1])
        noise = torch.from_numpy(noise).to(embedding.device, embedding.dtype)
        return embedding + scale * embedding.square().mean(1, keepdim=True).sqrt() * noise

    def _drop(self, embed: torch.Tensor, rate: float, draw: int) -> torch.Tensor:
        if not rate:
            return embed
        uniform = generator(self.seed, self.stem, 'dropout', rate, draw).random(tuple(embed.shape), np.float32)
        return embed * (torch.from_numpy(uniform).to(embed.device) > rate).to(embed.dtype) / (1 - rate)

    def _restore(self, checkpoint: str | None, view: str, output: MaskOutput, variant: int, variants: int,
                 rank: int) -> tuple[torch.Tensor, float]:
        """Logits float32 [H, W] and mean predicted IoU of one variant and hypothesis."""
        policy, _ = self.policies.get(checkpoint)
        pictures = len(output.low_res) // variants
        logits, scores = [], []
        for picture, shown in enumerate(VIEWS[view].images(self.image)):
            row = variant * pictures + picture
            hypothesis = torch.argsort(output.iou_pred[row], descending=True, stable=True)[rank]
            low_res = output.hypotheses[row, hypothesis] if rank else output.low_res[row]
            logits.append(upsample_logits(low_res[None].float(), policy.sam_size, shown.shape[:2])[0])
            scores.append(float(output.iou_pred[row, hypothesis]))
        return VIEWS[view].restore(logits, self.image.shape[:2]), float(np.mean(scores))


def _variant(request: Request) -> tuple[float, float, int]:
    """What the decoder has to be run anew for."""
    return request.seg_noise, request.dropout, request.draw if request.seg_noise or request.dropout else 0
