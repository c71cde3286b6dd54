"""The ways to train that are compared: the obvious implementation, and ours with each saving switched on in turn."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from sa2va_dpo.models.compiled import compilation, compile_layers, undo_compilation
from sa2va_dpo.models.losses import mask_log_prob, supervised_term
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.models.trainable import checkpoint_activations

from .setup import Variant

DECODER = dict(projector='full', mask_decoder='full')
# The parts that move. 'default' is the config sa2va_dpo_vessel.py.
RECIPES: dict[str, dict] = {
    'LLM LoRA': dict(DECODER, llm=dict(mode='lora', r=64, alpha=128)),
    'default': dict(DECODER, llm=dict(mode='lora', r=64, alpha=128), sam2_encoder=dict(mode='lora', r=32, alpha=64)),
    'LLM frozen': DECODER,
    'LLM frozen, SAM2 LoRA': dict(DECODER, sam2_encoder=dict(mode='lora', r=32, alpha=64)),
}
PREFERENCE = dict(beta=0.1, reduction='mean', weight=1.0, supervised_weight=1.0, supervised_bce=2.0,
                  supervised_dice=0.5, supervised_cldice=0.5)


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        name: of the row.
        recipe: a key of ``RECIPES``.
        kind: ``'obvious'`` (a pair is four forward passes with vocabulary logits), ``'pair'`` (a pair is one forward
            pass of policy and reference) or ``'image'`` (all pairs of an image share it).
        cached: what the batch brings instead of computing it.
        checkpointing: of activations.
        mllm: False leaves language model and ViT out of memory.
        compiled: the transformer layers, by torch.compile.
    """

    name: str
    recipe: str
    kind: str = 'image'
    cached: frozenset = field(default_factory=frozenset)
    checkpointing: bool = False
    mllm: bool = True
    compiled: bool = False


def _arms() -> list[Arm]:
    ref, tokens, sam2, states = 'reference_low_res', 'vision_tokens', 'sam2_levels', 'seg_states'
    lora, both, frozen = 'LLM LoRA', 'default', 'LLM frozen'
    return [
        Arm('obvious: 4 forwards a pair', lora, 'obvious'),
        Arm('one forward a pair', lora, 'pair'),
        Arm('one forward an image', lora),
        Arm('+ reference logits cached', lora, cached=frozenset([ref])),
        Arm('+ vision tokens cached', lora, cached=frozenset([ref, tokens])),
        Arm('+ vision tokens cached, compiled', lora, cached=frozenset([ref, tokens]), compiled=True),
        Arm('+ SAM2 features cached', lora, cached=frozenset([ref, tokens, sam2])),
        Arm('+ SAM2 features cached, compiled', lora, cached=frozenset([ref, tokens, sam2]), compiled=True),
        Arm('+ activations checkpointed', lora, cached=frozenset([ref, tokens, sam2]), checkpointing=True),
        Arm('nothing cached, activations checkpointed', lora, checkpointing=True),
        Arm('obvious: 4 forwards a pair', both, 'obvious'),
        Arm('reference and vision tokens cached', both, cached=frozenset([ref, tokens])),
        Arm('reference and vision tokens cached, compiled', both, cached=frozenset([ref, tokens]), compiled=True),
        Arm('+ activations checkpointed', both, cached=frozenset([ref, tokens]), checkpointing=True),
        # The full config as it is shipped: no cache; checkpointing where memory asks for it.
        Arm('nothing cached', both),
        Arm('nothing cached, activations checkpointed', both, checkpointing=True),
        Arm('nothing cached, activations checkpointed, compiled', both, checkpointing=True, compiled=True),
        Arm('obvious: 4 forwards a pair', frozen, 'obvious'),
        Arm('one forward an image', frozen),
        Arm('[SEG] states and reference cached', frozen, cached=frozenset([ref, states]), mllm=False),
        Arm('+ SAM2 features cached', frozen, cached=frozenset([ref, states, sam2]), mllm=False),
        Arm('[SEG] states and reference cached', 'LLM frozen, SAM2 LoRA', cached=frozenset([ref, states]), mllm=False),
        Arm('+ activations checkpointed', 'LLM frozen, SAM2 LoRA', cached=frozenset([ref, states]), mllm=False,
            checkpointing=True),
    ]


ARMS = _arms()
_INPUTS = {
    'vision_tokens': ('pixel_values', 'image_grid_thw'),
    'sam2_levels': ('sam_pixel_values',),
    'seg_states': ('pixel_values', 'image_grid_thw', 'input_ids', 'labels', 'attention_mask', 'image_token_mask'),
}


def build_model(
    variant: Variant, arm: Arm, device: str, dtype: torch.dtype, trainable_float32: bool = True
) -> Sa2VADPOModel:
    """Random weights under the recipe of ``arm``: frozen in ``dtype``, trained in float32 or (DeepSpeed) as well in
    ``dtype``."""
    name = str(dtype).removeprefix('torch.')
    model = Sa2VADPOModel(
        checkpoint='',
        trainable=RECIPES[arm.recipe],
        preference=PREFERENCE,
        reference='initial',
        score_size=variant.score_size,
        dtype=name,
        trainable_dtype='float32' if trainable_float32 and name != 'float32' else None,
        policy=variant.policy(device, dtype, with_mllm=arm.mllm),
    ).to(device)
    return model.train()


def switch_checkpointing(model: Sa2VADPOModel, on: bool) -> None:
    """Activation checkpointing of every part through which gradients flow, on or off."""
    for module in model.policy.modules():
        if hasattr(module, 'gradient_checkpointing'):
            module.gradient_checkpointing = False
    checkpoint_activations(model.policy, dict(llm=on, sam2_encoder=on))


def compile_afresh(model: Sa2VADPOModel) -> None:
    """Compile every layer as a run's first steps do, for this batch alone: what another batch left is forgotten."""
    torch._dynamo.reset()
    how = compilation(True)
    assert how is not None
    compile_layers(model.policy, how, say=lambda _: None)


def compile_no_more(model: Sa2VADPOModel) -> None:
    """Layers run as they are written, and nothing of a compilation stays in memory."""
    undo_compilation(model.policy)
    torch._dynamo.reset()


@torch.no_grad()
def stored(model: Sa2VADPOModel, data: dict, arm: Arm, device: str) -> dict:
    """``data`` with what ``arm`` has cached in the place of what it was computed from, in pinned host memory."""
    policy, batch = model.policy, dict(data['batch'])
    moved = to_device(batch, device)
    fresh: dict = {}
    if 'vision_tokens' in arm.cached:
        fresh['vision_tokens'] = policy.vision_tokens(moved)
    if 'sam2_levels' in arm.cached:
        fresh['sam2_levels'] = policy.sam2_levels(moved['sam_pixel_values'])
    if 'seg_states' in arm.cached:
        # The values do not matter to a clock, and the model may have no language model to make them.
        images, width = len(batch['input_ids']), policy.text_hidden_fcs[0].in_features
        fresh['seg_states'] = torch.randn(images, width, dtype=policy.sam2.no_memory_embedding.dtype)
    if 'reference_low_res' in arm.cached:
        side = policy.sam_size // 4
        fresh['reference_low_res'] = torch.randn(len(batch['input_ids']), side, side)
    for name in arm.cached:
        for old in _INPUTS.get(name, ()):
            batch.pop(old, None)
    batch.update(to_host(fresh, device))
    return dict(to_host(data, device), batch=to_host(batch, device))


def to_host(value, device: str):
    """Tensors (nested in dicts and lists) in host memory, pinned where there is a GPU to copy to."""
    if isinstance(value, dict):
        return {key: to_host(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_host(item, device) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return value.pin_memory() if device.startswith('cuda') else value


def to_device(value, device: str):
    """Tensors (nested in dicts and lists) on ``device``."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def optimiser_of(model: Sa2VADPOModel, device: str) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-6, fused=device.startswith('cuda'))


def our_loss(model: Sa2VADPOModel, data: dict, device: str) -> torch.Tensor:
    """The loss that training computes."""
    losses = model(**to_device(data, device), mode='loss')
    return sum(value for name, value in losses.items() if 'loss' in name)


def one_pair(data: dict) -> dict:
    """Only the first pair of the first image."""
    return dict(data, chosen=data['chosen'][:1], rejected=data['rejected'][:1], gaps=data['gaps'][:1],
                image_index=data['image_index'][:1])


def obvious_loss(model: Sa2VADPOModel, data: dict, device: str, head: torch.Tensor) -> torch.Tensor:
    """Text DPO carried over to masks word by word: policy and reference each see the image once for the chosen and once
    for the rejected mask, and every forward pass ends with logits of the whole vocabulary.

    Args:
        data: one image, one pair; text not cut after [SEG].
        head: vocabulary head ``[V, D]``.
    """
    policy = model.policy

    def log_prob(run, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moved = to_device(data['batch'], device)
        logits = model.score_logits(run(moved))
        return mask_log_prob(logits, mask), logits

    def with_vocabulary(batch: dict):
        features = policy.image_features(batch)
        with policy._precision():
            hidden = policy.mllm(batch)
            F.linear(hidden.detach(), head)
        index = batch['seg_index']
        return policy.decode(features, policy.embed_states(hidden[index[:, 0], index[:, 1]]), index[:, 0])

    def reference(batch: dict):
        # The reference gives masks only; its vocabulary logits cost what those of any states of this shape cost.
        F.linear(head.new_zeros(*batch['input_ids'].shape, head.shape[1]), head)
        return model.reference(policy, batch)

    chosen, rejected = (data[side].to(device).float() / 255 for side in ('chosen', 'rejected'))
    (policy_w, logits), (policy_l, _) = log_prob(with_vocabulary, chosen), log_prob(with_vocabulary, rejected)
    (reference_w, _), (reference_l, _) = log_prob(reference, chosen), log_prob(reference, rejected)
    p = model.preference
    margin = (policy_w - reference_w) - (policy_l - reference_l)
    supervised = supervised_term(logits, chosen, bce_weight=p.supervised_bce, dice_weight=p.supervised_dice,
                                 cldice_weight=p.supervised_cldice, cldice_iterations=p.cldice_iterations)
    return (-F.logsigmoid(p.beta * margin) + p.supervised_weight * supervised).mean()
