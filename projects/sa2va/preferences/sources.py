"""Candidate sources: each proposes masks of one image and says where they came from."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import numpy as np
import torch
from mmengine.registry import Registry

from .policy_view import VIEWS, PolicyView

SOURCES = Registry('candidate source')


@dataclass(frozen=True)
class Candidate:
    """A mask (bool [H, W]) and the name of its source, parameters included."""

    mask: np.ndarray
    source: str


@SOURCES.register_module()
class Greedy:
    """What the policy answers: logit above 0."""

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        yield Candidate(view.to_image(view.greedy('identity').low_res)[0] > 0, 'greedy')


@SOURCES.register_module()
class Thresholds:
    """The greedy map cut at other probabilities: thinner and thicker masks of the same ranking of pixels."""

    def __init__(self, probabilities: tuple[float, ...] = (0.15, 0.3, 0.7, 0.85)) -> None:
        self.probabilities = probabilities

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        logits = view.to_image(view.greedy('identity').low_res)[0]
        for p in self.probabilities:
            yield Candidate(logits > np.log(p / (1 - p)), f'threshold:{p:g}')


@SOURCES.register_module()
class Hypotheses:
    """SAM 2's several masks of one prompt (arXiv 2408.00714), also those it did not rank first."""

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        output = view.greedy('identity')
        maps = view.to_image(output.hypotheses[0])
        for index in np.argsort(-output.iou_pred[0].cpu().numpy(), kind='stable')[1:]:
            yield Candidate(maps[index] > 0, f'hypothesis:{index}')


@SOURCES.register_module()
class Views:
    """The policy on a transformed image, its map transformed back."""

    def __init__(self, names: tuple[str, ...] = tuple(name for name in VIEWS if name != 'identity')) -> None:
        unknown = sorted(set(names) - set(VIEWS))
        if unknown:
            raise ValueError(f'Views: unknown view {", ".join(unknown)}; the views are {", ".join(VIEWS)}')
        self.names = names

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        for name in self.names:
            yield Candidate(view.to_image(view.greedy(name).low_res, name)[0] > 0, f'view:{name}')


@SOURCES.register_module()
class SegNoise:
    """The [SEG] embedding plus Gaussian noise of ``scale`` times its root mean square."""

    def __init__(self, scales: tuple[float, ...] = (0.3, 0.6, 1.0)) -> None:
        self.scales = scales

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        features, embedding = view.encoded('identity')
        noise = view.noise((len(self.scales), embedding.shape[1]), embedding.device).to(embedding.dtype)
        scales = torch.tensor(self.scales, device=embedding.device, dtype=embedding.dtype)[:, None]
        noisy = embedding + scales * embedding.square().mean().sqrt() * noise
        for scale, logits in zip(self.scales, view.to_image(view.decode(features, noisy).low_res)):
            yield Candidate(logits > 0, f'seg_noise:{scale:g}')


@SOURCES.register_module()
class FeatureDropout:
    """Monte-Carlo dropout on the image embedding (Gal and Ghahramani, arXiv 1506.02142).

    Released checkpoints have no dropout layers that a mask depends on, so the stride-16 embedding takes their place.
    """

    def __init__(self, rates: tuple[float, ...] = (0.2, 0.4)) -> None:
        self.rates = rates

    def __call__(self, view: PolicyView) -> Iterator[Candidate]:
        features, embedding = view.encoded('identity')
        for rate in self.rates:
            # A uniform number from a normal one: one stream of randomness for all sources.
            uniform = torch.special.ndtr(view.noise(features.image_embed.shape, embedding.device))
            keep = (uniform > rate).to(features.image_embed.dtype) / (1 - rate)
            dropped = type(features)(features.image_embed * keep, features.high_res)
            yield Candidate(view.to_image(view.decode(dropped, embedding).low_res)[0] > 0, f'dropout:{rate:g}')


DEFAULT_SOURCES = ('Thresholds', 'Hypotheses', 'Views', 'SegNoise', 'FeatureDropout')
