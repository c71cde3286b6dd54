"""How far the policy has moved from its reference where the two masks of a pair agree."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .tensors import checked_inputs, ratio, to_pairs


def kl_to_reference(logits: Tensor, reference_logits: Tensor, chosen: Tensor, rejected: Tensor, *,
                    image_index: Tensor | None = None) -> Tensor:
    """Mean Bernoulli KL(reference || policy) over the pixels on which the masks agree, [P].

    ``KL_i = p_ref (z_ref - z) + softplus(z) - softplus(z_ref)``, weighted by ``1 - |y_w - y_l|``. This direction is
    convex in z and its gradient, ``p - p_ref``, does not vanish when the policy saturates on the wrong side, which
    is the collapse it is there to stop; KL(policy || reference) would let go of exactly those pixels.

    Worked: z_ref = 0, z = log 3: p_ref 1/2, p 3/4; KL = log(4) - log(2) - log(3)/2 = 0.1438.

    Returns:
        [P], 0 where the masks disagree everywhere. No gradient flows into the reference.

    Raises:
        ValueError: shapes that differ, integer masks.
    """
    z, z_ref, y_w, y_l = checked_inputs(logits, reference_logits, chosen, rejected, image_index)
    assert z_ref is not None
    kl = z_ref.sigmoid() * (z_ref - z) + F.softplus(z) - F.softplus(z_ref)
    outside = 1 - (y_w - y_l).abs()
    return ratio((outside * to_pairs(kl, image_index)).sum((-2, -1)), outside.sum((-2, -1)))
