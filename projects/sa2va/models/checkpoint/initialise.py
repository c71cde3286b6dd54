"""Random start values for every tensor of a new checkpoint."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator

import torch
from torch import nn

# Parameters that belong to no standard layer, by the last part of their name.
_CONSTANTS = {'cls_token': 0.02, 'position_embeddings': 0.02, 'pos_embed': 0.02, 'pos_embed_window': 0.02,
              'no_memory_embedding': 0.02, 'class_position': 0.02, 'class_embedding': 0.02}


@dataclass(frozen=True)
class Start:
    """How one tensor of a ``Sa2VAModel`` begins: normal with standard deviation ``std``, or ``value`` everywhere.

    Attributes:
        name: of ``state_dict()``.
        tensor: the parameter or buffer (on any device, also the meta device).
    """

    name: str
    tensor: torch.Tensor
    std: float | None
    value: float = 0.0

    def fill(self, tensor: torch.Tensor) -> torch.Tensor:
        """Draw into ``tensor``, in place."""
        return tensor.fill_(self.value) if self.std is None else tensor.normal_(0.0, self.std)


def starts(model: nn.Module) -> Iterator[Start]:
    """The start of every parameter and of SAM2's Fourier matrix, in the order of the modules; reads shapes only.

    Linear and convolution weights are normal with variance 1/fan_in, so that activations keep their scale at any
    width (a fixed 0.02 starves layers of 24 to 128 channels); norms are the identity; the vocabulary embedding has
    0.02, SAM2's tokens 1 as in SAM; layer scales have the value of the configuration.

    Raises:
        ValueError: a parameter that no rule covers, named (so that none is left to chance).
    """
    done: set[str] = set()

    def start(prefix: str, module: nn.Module, leaf: str, std: float | None, value: float = 0.0) -> Iterator[Start]:
        tensor = getattr(module, leaf, None)
        if tensor is not None:
            name = f'{prefix}.{leaf}' if prefix else leaf
            done.add(name)
            yield Start(name, tensor, std, value)

    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            yield from start(name, module, 'weight', module.in_features ** -0.5)
            yield from start(name, module, 'bias', None)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            yield from start(name, module, 'weight', module.weight[0].numel() ** -0.5)
            yield from start(name, module, 'bias', None)
        elif isinstance(module, nn.ConvTranspose2d):
            # Kernel equals stride here: every output pixel sees each input channel once.
            yield from start(name, module, 'weight', module.in_channels ** -0.5)
            yield from start(name, module, 'bias', None)
        elif isinstance(module, nn.LayerNorm) or 'RMSNorm' in kind:
            yield from start(name, module, 'weight', None, 1.0)
            yield from start(name, module, 'bias', None)
        elif isinstance(module, nn.Embedding):
            yield from start(name, module, 'weight', 1.0 if name.startswith('sam2.') else 0.02)
        elif kind in ('Sam2PositionalEmbedding', 'Sam3TrackerPositionalEmbedding'):
            yield from start(name, module, 'positional_embedding', 1.0)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit('.', 1)[-1]
        if leaf in _CONSTANTS:
            done.add(name)
            yield Start(name, parameter, _CONSTANTS[leaf])
        elif leaf in ('lambda_1', 'lambda_2'):
            done.add(name)
            yield Start(name, parameter, None, model.mllm.vision_model.config.layer_scale_init_value)
        if name not in done:
            raise ValueError(f'{name}: no rule says how to initialise it')


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill every parameter of a ``Sa2VAModel`` in place, as :func:`starts` says.

    Raises:
        ValueError: as :func:`starts`.
    """
    for start in starts(model):
        start.fill(start.tensor)
    # One Fourier matrix serves the image grid and the prompts.
    model.sam2.prompt_encoder.shared_embedding.positional_embedding.copy_(
        model.sam2.shared_image_embedding.positional_embedding)


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
