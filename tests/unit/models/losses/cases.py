"""Small maps, masks and settings that the tests of the losses share."""
from __future__ import annotations

import math

import torch

REDUCTIONS = ('mean', 'sum', 'disagreement', 'balanced')
# Every (loss, reduction) that is supported, with the label smoothing that the loss needs.
COMBINATIONS = ([(loss, reduction, smoothing) for loss, smoothing in (('sigmoid', 0.0), ('sigmoid', 0.1),
                                                                      ('robust', 0.1), ('hinge', 0.0))
                 for reduction in REDUCTIONS]
                + [('ipo', reduction, 0.0) for reduction in ('mean', 'disagreement', 'balanced')]
                + [('dice', 'mean', 0.0), ('dice', 'mean', 0.1)])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def image(*rows) -> torch.Tensor:
    """One pair's map as float64 [1, H, W]."""
    return torch.tensor(rows, dtype=torch.float64)[None]


def random_case(seed: int, pairs: int = 3, size: int = 5, soft: bool = False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, pairs, size, size, generator=generator, dtype=torch.float64)
    masks = draw if soft else (draw > 0.6).double()
    logits, reference = 3 * torch.randn(2, pairs, size, size, generator=generator, dtype=torch.float64)
    return logits.to(dtype), reference.to(dtype), masks[0].to(dtype), masks[1].to(dtype)


# The example of the docstrings: z = (2, -1), y_w = (1, 0), y_l = (0, 1).
Z, WIN, LOSE = image([2., -1.]), image([1., 0.]), image([0., 1.])
