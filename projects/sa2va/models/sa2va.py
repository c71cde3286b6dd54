"""Sa2VA: image and prompt -> language model -> [SEG] state -> SAM2 mask decoder -> one map of logits per [SEG].

Sa2VA: Yuan et al., "Sa2VA: Marrying SAM2 with LLaVA for Dense Grounded Understanding of Images and Videos",
arXiv 2501.04001. SAM 2: Ravi et al., arXiv 2408.00714.

``Sa2VAModel.mask_logits`` is the one function that training, pair generation and testing call.
"""
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ContextManager, Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .grounding import build_grounding, complete_dims, patch_embedding
from .mllm import build_mllm, hidden_size_of
from .refinement import Refinement

# Buffers that hold frequencies. Rounded to bfloat16 they shift rotary phases by whole radians at long
# positions, so they keep float32 whatever the model is cast to (DeepSpeed casts buffers as well).
_PRECISE_BUFFERS = ('inv_freq', 'original_inv_freq', 'position_ids', 'positional_embedding')


@dataclass
class MaskOutput:
    """What the mask decoder says about each [SEG] token. Logits and scores are float32.

    Attributes:
        low_res: ``[n_seg, h, w]`` logits of the hypothesis with the highest predicted IoU, at stride 4 of the SAM2
            input; at stride 1 where the model has a refinement.
        hypotheses: ``[n_seg, 3, h, w]`` logits of all hypotheses.
        iou_pred: ``[n_seg, 3]`` predicted IoU of each.
        seg_embedding: ``[n_seg, C]`` the prompt vector.
        object_score: ``[n_seg, 1]`` object-presence logit. No mask is suppressed with it: that would take the gradient
            from exactly the images that need it. Upstream's SAM2 models do the same; its SAM 3 model empties a mask
            whose score is not positive.
    """

    low_res: torch.Tensor
    hypotheses: torch.Tensor
    iou_pred: torch.Tensor
    seg_embedding: torch.Tensor
    object_score: torch.Tensor | None = None


@dataclass
class Sam2Features:
    """Image features as the mask decoder takes them.

    Attributes:
        image_embed: ``[B, C, s, s]`` stride 16, no-memory embedding already added.
        high_res: stride 4 ``[B, C/8, 4s, 4s]`` and stride 8 ``[B, C/4, 2s, 2s]``, after ``conv_s0`` / ``conv_s1``.
    """

    image_embed: torch.Tensor
    high_res: list[torch.Tensor]

    def __getitem__(self, index) -> 'Sam2Features':
        """The features of some samples of the batch (any batch index: slice, list, tensor)."""
        return Sam2Features(self.image_embed[index], [level[index] for level in self.high_res])


class Sa2VAModel(nn.Module):
    """The policy: multimodal language model, projector to the SAM2 prompt, SAM2.

    Args:
        config: the released ``config.json`` as a dict.
        sam2_dims: sizes of SAM2 or SAM 3 (see ``models/grounding.py``); None means SAM2, Hiera-Large at 1024 px.
        with_mllm: False leaves the language model and its vision tower out: such a model takes only batches that
            bring their [SEG] states (``seg_states``), and the largest variant fits a small GPU.

    Attributes:
        mllm: the family's language model with its vision tower (``vision_model``, ``language_model``), or None.
        text_hidden_fcs: [SEG] state -> SAM2 prompt vector.
        sam2: ``transformers.Sam2Model`` (everything of SAM2 but its video memory), or ``Sam3TrackerModel``.
        refinement: see ``models/refinement.py``; None where the checkpoint has none and none is trained.
        sam_size: side of its square input, pixels.
        source: where the weights came from (``hf_checkpoint.Source``), or None.
        autocast_dtype: matrix products run in this dtype whatever the parameters are stored in; None: as stored.

    A batch may bring results that were computed before (``projects/sa2va/caching``), which then are not computed again:
    ``vision_tokens`` (:meth:`MultimodalLLM.vision_tokens`), ``seg_states [n_seg, D]`` (:meth:`seg_states`),
    ``sam2_levels`` (:meth:`sam2_levels`) or ``sam2_features`` (:class:`Sam2Features` as a list of three tensors).
    """

    def __init__(self, config: Mapping, sam2_dims: Mapping | None = None, with_mllm: bool = True) -> None:
        super().__init__()
        dims = complete_dims(sam2_dims)
        self.mllm = build_mllm(config) if with_mllm else None
        width = hidden_size_of(config)
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dims['hidden_dim']))
        self.sam2 = build_grounding(dims)
        self.refinement: Refinement | None = None
        self.sam_size: int = dims['image_size']
        self.sam2_dims = dims
        self.source = None
        self.autocast_dtype: torch.dtype | None = None

    def _apply(self, fn, recurse: bool = True):
        kept = [(module, name, buffer) for module in self.modules() for name, buffer in module._buffers.items()
                if name in _PRECISE_BUFFERS and buffer is not None and buffer.dtype == torch.float32]
        super()._apply(fn, recurse)
        for module, name, buffer in kept:
            moved = module._buffers[name]
            if moved.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(moved.device)
        return self

    def gradient_checkpointing_enable(self, below: Iterable[str] = ('',), enable: bool = True) -> int:
        """Trade computation for memory: transformer layers keep their input only and run again in the backward pass
        (Chen et al., arXiv 1604.06174).

        Args:
            below: paths of the modules whose layers do so; the default is all of language model, vision tower and
                SAM2's image encoder.
            enable: False lets them keep everything again.

        Returns:
            The number of layers.
        """
        count = 0
        # Layer by layer: Sam2Model declares no support although its blocks have it.
        for path in below:
            for module in self.get_submodule(path).modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.gradient_checkpointing = enable
                    module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
                    count += 1
        return count

    def _precision(self) -> ContextManager:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.sam2.no_memory_embedding.device.type, self.autocast_dtype)

    def unused_by_masks(self) -> list[str]:
        """Names of parameters that no mask logit depends on, so that no loss on masks can train them.

        The point and mask prompts of SAM2 (Sa2VA prompts with language only), the predicted IoU and object score, the
        single-mask token's own head, a decoder norm that only the vocabulary head reads (Qwen3-VL), and the class
        token's row of SAM 3's positions.
        """
        prefixes = ('mllm.final_norm.', 'sam2.prompt_encoder.point_embed.', 'sam2.prompt_encoder.mask_embed.',
                    'sam2.mask_decoder.pred_obj_score_head.', 'sam2.mask_decoder.iou_prediction_head.',
                    'sam2.mask_decoder.output_hypernetworks_mlps.0.',
                    'sam2.vision_encoder.backbone.embeddings.class_position')
        return [name for name, _ in self.named_parameters() if name.startswith(prefixes)]

    def sam2_levels(self, sam_pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The three FPN levels ``[B, C, 4s, 4s]``, ``[B, C, 2s, 2s]``, ``[B, C, s, s]``; s is S/16, of SAM 3 S/14."""
        pixels = sam_pixel_values.to(patch_embedding(self.sam2).dtype)
        # Not get_image_embeddings of transformers' own classes: it runs under no_grad.
        with self._precision():
            return list(self.sam2.vision_encoder(pixels).fpn_hidden_states)

    def encode_image(self, sam_pixel_values: torch.Tensor) -> Sam2Features:
        """SAM2 image features; differentiable.

        Args:
            sam_pixel_values: ``[B, 3, S, S]`` with S = ``sam_size``, as the preprocessor gives it.
        """
        return self.features_of_levels(self.sam2_levels(sam_pixel_values))

    def features_of_levels(self, levels: Sequence[torch.Tensor]) -> Sam2Features:
        """FPN levels (:meth:`sam2_levels`) -> what the decoder takes; ``conv_s0`` and ``conv_s1`` belong to the
        decoder."""
        stride4, stride8, stride16 = levels
        decoder = self.sam2.mask_decoder
        # A single image has no memory; SAM 2 marks that with a learned vector instead of memory attention.
        no_memory = self.sam2.no_memory_embedding.reshape(1, -1, 1, 1)
        with self._precision():
            return Sam2Features(stride16 + no_memory, [decoder.conv_s0(stride4), decoder.conv_s1(stride8)])

    def image_features(self, batch: dict) -> Sam2Features:
        """SAM2 image features of a batch, from ``sam2_features`` or ``sam2_levels`` where the batch brings them."""
        if 'sam2_features' in batch:
            embed, *high_res = batch['sam2_features']
            return Sam2Features(embed, high_res)
        if 'sam2_levels' in batch:
            return self.features_of_levels(batch['sam2_levels'])
        return self.encode_image(batch['sam_pixel_values'])

    def embed_states(self, seg_states: torch.Tensor) -> torch.Tensor:
        """Language-model states at [SEG] ``[n_seg, D]`` -> SAM2 prompt vectors ``[n_seg, C]``."""
        with self._precision():
            return self.text_hidden_fcs(seg_states.to(self.text_hidden_fcs[0].weight.dtype))

    def vision_tokens(self, batch: dict) -> torch.Tensor:
        """Everything the language model takes from its vision tower, ``[n_image_tokens, W]``."""
        with self._precision():
            return self.mllm.vision_tokens(batch)

    def seg_states(self, batch: dict) -> torch.Tensor:
        """The language model's states at [SEG], ``[n_seg, D]``: from the batch where it brings them, else computed.

        Raises:
            ValueError: the model was built without its language model and the batch brings no states.
        """
        if 'seg_states' in batch:
            return batch['seg_states']
        if self.mllm is None:
            raise ValueError('this model was built without its language model, and the batch brings no seg_states')
        index = batch['seg_index']
        with self._precision():
            parts = list(_rows_of_equal_length(self.mllm, batch))
            if len(parts) == 1:
                return self.mllm(batch)[index[:, 0], index[:, 1]]
            states: list[torch.Tensor | None] = [None] * len(index)
            for rows, part in parts:
                hidden = self.mllm(part)
                place = {row: k for k, row in enumerate(rows)}
                for i, (row, position) in enumerate(index.tolist()):
                    if row in place:
                        states[i] = hidden[place[row], position]
        return torch.stack(states)

    def encode_prompt(self, batch: dict) -> torch.Tensor:
        """The prompt vector of every [SEG] token, ``[n_seg, C]``, in the order of ``batch['seg_index']``.

        Args:
            batch: what ``Sa2VAPreprocessor.collate`` gives, on the model's device.
        """
        return self.embed_states(self.seg_states(batch))

    def decode(self, features: Sam2Features, seg_embedding: torch.Tensor,
               seg_sample_index: torch.Tensor | Sequence[int] | None = None) -> MaskOutput:
        """All masks in one decoder call.

        Args:
            features: of B samples.
            seg_embedding: ``[n_seg, C]``.
            seg_sample_index: ``[n_seg]`` which sample each embedding belongs to; None means one per sample, in order.
        """
        if seg_sample_index is not None:
            features = features[seg_sample_index]
        embed = features.image_embed
        if embed.shape[0] != seg_embedding.shape[0]:
            raise ValueError(f'{seg_embedding.shape[0]} [SEG] embeddings for {embed.shape[0]} images: '
                             f'seg_sample_index must say which belongs to which')
        prompt_encoder, n = self.sam2.prompt_encoder, seg_embedding.shape[0]
        # SAM 2 pads an empty point prompt with two "not a point" tokens; the language prompt follows them.
        padding = prompt_encoder.not_a_point_embed.weight.to(seg_embedding.dtype).expand(n, 2, -1)
        sparse = torch.cat([padding, seg_embedding.unsqueeze(1)], dim=1).unsqueeze(1)
        dense = prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        with self._precision():
            masks, iou, _, score = self.sam2.mask_decoder(
                image_embeddings=embed, image_positional_embeddings=self.dense_position_encoding().to(embed.dtype),
                sparse_prompt_embeddings=sparse.to(embed.dtype), dense_prompt_embeddings=dense, multimask_output=True,
                high_resolution_features=features.high_res)
        masks, iou = masks.squeeze(1).float(), iou.squeeze(1).float()
        best = iou.argmax(dim=1)
        low_res = masks[torch.arange(n, device=masks.device), best]
        if self.refinement is not None:
            low_res = self.refinement(low_res, features.high_res[0])
        return MaskOutput(low_res, masks, iou, seg_embedding, score.squeeze(1).float())

    def dense_position_encoding(self) -> torch.Tensor:
        """Random Fourier encoding of the stride-16 grid, ``[1, C, s, s]`` float32 (Tancik et al., arXiv 2006.10739)."""
        with torch.autocast(device_type=self.sam2.no_memory_embedding.device.type, enabled=False):
            return self.sam2.get_image_wide_positional_embeddings()

    def mask_logits(self, batch: dict) -> MaskOutput:
        """Image and prompt to logits: the one function of training, generation and test."""
        return self.decode(self.image_features(batch), self.encode_prompt(batch), batch['seg_index'][:, 0])

    forward = mask_logits


def _rows_of_equal_length(mllm: nn.Module, batch: dict) -> Iterator[tuple[list[int], dict]]:
    """The rows of a batch in groups without padding: (row numbers, their batch), one group a length.

    Images of different shapes make texts of different lengths, up to thirteen times as long. Padding is no error,
    causal attention never looks at it, but it costs what real tokens cost.
    """
    mask = batch.get('attention_mask')
    lengths = [] if mask is None or len(mask) == 1 else mask.sum(dim=1).tolist()
    if len(set(lengths)) < 2:
        yield list(range(len(batch['input_ids']))), batch
        return
    tokens = mllm.vision_tokens(batch).split(batch['image_token_mask'].sum(dim=1).tolist())
    for length in sorted(set(lengths)):
        rows = [row for row, other in enumerate(lengths) if other == length]
        part = {name: batch[name][rows, :length] for name in ('input_ids', 'attention_mask', 'image_token_mask')}
        if 'image_grid_thw' in batch:
            part['image_grid_thw'] = batch['image_grid_thw'][rows]
        yield rows, dict(part, vision_tokens=torch.cat([tokens[row] for row in rows]))


def upsample_logits(low_res: torch.Tensor, sam_size: int, size_hw: tuple[int, int] | None = None) -> torch.Tensor:
    """Low-resolution logits to the SAM2 input size and on to the image, bilinear both times.

    Two resizes, as Sa2VA does it: a single one gives other numbers.

    Args:
        low_res: ``[N, h, w]``.
        sam_size: S, pixels.
        size_hw: (H, W) of the image; None stops at (S, S).

    Returns:
        ``[N, H, W]`` (or ``[N, S, S]``).
    """
    x = F.interpolate(low_res.unsqueeze(1), size=(sam_size, sam_size), mode='bilinear', align_corners=False)
    if size_hw is not None:
        x = F.interpolate(x, size=tuple(size_hw), mode='bilinear', align_corners=False)
    return x.squeeze(1)
