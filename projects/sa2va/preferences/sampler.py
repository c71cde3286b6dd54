"""The policy on one image: many masks for few encoder runs.

Encoders run once per view, the language model once per view and question, and all perturbations and hypotheses of a
view are one decoder batch. Everything goes through the same ``encode_image`` / ``encode_prompt`` / ``decode`` that
``Sa2VAModel.mask_logits`` is made of, so the plain request is exactly the policy's answer.
"""
from __future__ import annotations

from functools import partial
from typing import Callable, Sequence

import numpy as np
import torch

from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.samples import SampleMaker, digest_of_array
from sa2va_dpo.datasets.samples import View as Sample
from sa2va_dpo.models.checkpoint import default_dtype, load_checkpoint
from sa2va_dpo.models.sa2va import MaskOutput, Sa2VAModel, Sam2Features, upsample_logits
from sa2va_dpo.models.tiled import moved, passes

from .candidates import Request, generator
from .views import VIEWS

# View -> (horizontal, vertical), as training mirrors its images.
MIRRORS = dict(identity=(False, False), hflip=(True, False), vflip=(False, True), rot180=(True, True))
MOST_KEPT = 32  # images or tiles whose SAM2 features are kept, 16 MB each at 1024 px in float32
PLAIN = (0.0, 0.0, 0)  # a request without noise or dropout, as _variant gives it
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
        self._plain: dict[tuple, MaskOutput] = {}
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
            output = self._decode(None, view, self.prompt, [PLAIN])
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
            if pre.view.plain:
                batch = pre.collate([pre(picture, prompt) for picture in pictures])
            else:
                maker = SampleMaker(pre)
                batch = pre.collate([maker.prediction(Sample(partial(digest_of_array, picture), partial(_same, picture),
                                                             prompt), picture.shape[:2]) for picture in pictures])
        return moved(batch, device)

    def _encode(self, checkpoint: str | None, view: str, prompt: str) -> tuple[Sam2Features, torch.Tensor]:
        """Features and prompt vectors, one a picture; of pictures in tiles one a tile, picture by picture."""
        policy, _ = self.policies.get(checkpoint)
        known = (checkpoint, view) in self._features
        if not known or (checkpoint, view, prompt) not in self._embeddings:
            batch = self._inputs(checkpoint, view, prompt)
            features, embeddings = _of_tiles(policy, batch) if 'tiles' in batch else (
                None if known else policy.image_features(batch), policy.encode_prompt(batch))
            if features is not None:
                self._keep(checkpoint, view, features)
            self._embeddings[checkpoint, view, prompt] = embeddings
        return self._features[checkpoint, view], self._embeddings[checkpoint, view, prompt]

    def _keep(self, checkpoint: str | None, view: str, features: Sam2Features) -> None:
        self._features[checkpoint, view] = features
        # Of a tiled image the features of all views together would not fit; those of one view always stay.
        while len(self._features) > 1 and sum(len(f.image_embed) for f in self._features.values()) > MOST_KEPT:
            del self._features[next(iter(self._features))]

    def _decode(self, checkpoint: str | None, view: str, prompt: str, variants: list[tuple]) -> MaskOutput:
        """All variants of all pictures (or their tiles) of a view; row ``variant * pictures + picture``."""
        if variants != [PLAIN]:
            return self._run_decoder(checkpoint, view, prompt, variants)
        # A view's plain answer is a candidate and evidence for judges. Only where it is asked for alone: the same rows
        # of another batch may differ in their last bits.
        key = checkpoint, view, prompt
        if key not in self._plain:
            self._plain[key] = self._run_decoder(checkpoint, view, prompt, variants)
        return self._plain[key]

    def _run_decoder(self, checkpoint: str | None, view: str, prompt: str, variants: list[tuple]) -> MaskOutput:
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
        policy, pre = self.policies.get(checkpoint)
        row = variant * (len(output.low_res) // variants)
        logits, scores = [], []
        for shown in VIEWS[view].images(self.image):
            grid = pre.view.tiles(shown.shape[:2], policy.sam_size)
            canvas = grid.canvas(1, output.low_res.device)
            for tile, box in enumerate(grid.boxes):
                hypothesis = torch.argsort(output.iou_pred[row], descending=True, stable=True)[rank]
                low_res = output.hypotheses[row, hypothesis] if rank else output.low_res[row]
                canvas.add(tile, upsample_logits(low_res[None].float(), policy.sam_size, box.size))
                scores.append(float(output.iou_pred[row, hypothesis]))
                row += 1
            logits.append(canvas.logits[0])
        return VIEWS[view].restore(logits, self.image.shape[:2]), float(np.mean(scores))


def _of_tiles(policy: Sa2VAModel, batch: dict) -> tuple[Sam2Features, torch.Tensor]:
    """SAM2's features and the prompt vectors of all tiles of a batch of pictures."""
    prompts = policy.encode_prompt(batch) if 'seg_index' in batch else None
    found = []
    for row, tiles in enumerate(batch['tiles']):
        own = None if prompts is None else prompts[batch['seg_index'][:, 0] == row]
        found += [(features, vectors) for features, _, vectors in passes(policy, tiles['parts'], own)]
    levels = [torch.cat([features.high_res[level] for features, _ in found])
              for level in range(len(found[0][0].high_res))]
    embed = torch.cat([features.image_embed for features, _ in found])
    return Sam2Features(embed, levels), torch.cat([vectors for _, vectors in found])


def _same(picture: np.ndarray) -> np.ndarray:
    return picture


def _variant(request: Request) -> tuple[float, float, int]:
    """What the decoder has to be run anew for."""
    return request.seg_noise, request.dropout, request.draw if request.seg_noise or request.dropout else 0
