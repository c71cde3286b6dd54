"""A preference model away from its start, and a batch for it: what tests of equal losses and gradients begin with."""
import numpy as np
import torch

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel

RECIPE = dict(llm=dict(mode='lora', r=4), sam2_encoder=dict(mode='lora', r=4), projector='full', mask_decoder='full')
PREFERENCE = dict(beta=1.0, reduction='balanced', weight=0.5)


def build(checkpoint, trainable=RECIPE, **settings) -> Sa2VADPOModel:
    torch.manual_seed(0)
    model = Sa2VADPOModel(str(checkpoint), trainable, PREFERENCE, score_size=64, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, where policy and reference agree and adapters are at zero
        for _, parameter in model.policy.named_parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model.train()


def data_of(checkpoint, size, images: int, pairs: int = 1) -> dict:
    """``images`` images of noise with ``pairs`` pairs each."""
    rng = np.random.default_rng(0)
    pre = Sa2VAPreprocessor.from_pretrained(checkpoint)
    samples = [pre(rng.integers(0, 255, (*size, 3), np.uint8), 'segment the vessel') for _ in range(images)]
    chosen, rejected = (
        torch.from_numpy(rng.integers(0, 2, (images * pairs, 64, 64)).astype(np.uint8) * 255) for _ in range(2))
    return dict(batch=pre.collate(samples), chosen=chosen, rejected=rejected,
                image_index=torch.arange(images).repeat_interleave(pairs), gaps=torch.full((images * pairs,), 0.2))
