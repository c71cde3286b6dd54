"""Random start values for every tensor of a new checkpoint."""
from __future__ import annotations

import math

import torch
from torch import nn
from transformers.models.sam2.modeling_sam2 import Sam2PositionalEmbedding

# Parameters that belong to no standard layer, by the last part of their name.
_CONSTANTS = {'cls_token': 0.02, 'position_embeddings': 0.02, 'pos_embed': 0.02, 'pos_embed_window': 0.02,
              'no_memory_embedding': 0.02}


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill every parameter of a ``Sa2VAModel``, for training from scratch at small width.

    Linear and convolution weights are normal with variance 1/fan_in, so that activations keep their scale at any
    width (a fixed 0.02 starves layers of 24 to 128 channels); norms are the identity; the vocabulary embedding has
    0.02, SAM2's tokens 1 as in SAM; layer scales keep the value of the configuration.

    Raises:
        ValueError: a parameter that no rule covers, named (so that none is left to chance).
    """
    done: set[int] = set()

    def fill(parameter: torch.Tensor | None, std: float | None, value: float = 0.0) -> None:
        if parameter is None:
            return
        if std is None:
            parameter.fill_(value)
        else:
            parameter.normal_(0.0, std)
        done.add(id(parameter))

    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            fill(module.weight, module.in_features ** -0.5)
            fill(module.bias, None)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            fill(module.weight, module.weight[0].numel() ** -0.5)
            fill(module.bias, None)
        elif isinstance(module, nn.ConvTranspose2d):
            # Kernel equals stride here: every output pixel sees each input channel once.
            fill(module.weight, module.in_channels ** -0.5)
            fill(module.bias, None)
        elif isinstance(module, nn.LayerNorm) or 'RMSNorm' in kind:
            fill(module.weight, None, 1.0)
            fill(getattr(module, 'bias', None), None)
        elif isinstance(module, nn.Embedding):
            fill(module.weight, 1.0 if name.startswith('sam2.') else 0.02)
        elif isinstance(module, Sam2PositionalEmbedding):
            module.positional_embedding.normal_(0.0, 1.0)
    # One Fourier matrix serves the image grid and the prompts.
    model.sam2.prompt_encoder.shared_embedding.positional_embedding.copy_(
        model.sam2.shared_image_embedding.positional_embedding)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit('.', 1)[-1]
        if leaf in _CONSTANTS:
            fill(parameter, _CONSTANTS[leaf])
        elif leaf in ('lambda_1', 'lambda_2'):
            done.add(id(parameter))
        if id(parameter) not in done:
            raise ValueError(f'{name}: no rule says how to initialise it')


def initial_video_memory(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Start value of one video-memory tensor (never trained on single images)."""
    parts = key.split('.')
    if parts[-1] == 'g_weight':
        return torch.full(shape, 1e-6)
    if len(shape) == 1:
        return torch.ones(shape) if parts[-1] == 'weight' else torch.zeros(shape)
    if parts[-1] == 'weight':
        return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape) * 0.02
