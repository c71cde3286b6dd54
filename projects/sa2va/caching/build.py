"""Fill caches: run the frozen parts once over every view of every image."""
from __future__ import annotations

import time
from typing import Mapping, Sequence

import torch

from sa2va_dpo.common.console import progress
from sa2va_dpo.common.tensor_store import CacheStore
from sa2va_dpo.datasets.samples import SampleMaker, View
from sa2va_dpo.models.sa2va import Sa2VAModel


@torch.no_grad()
def compute(policy: Sa2VAModel, batch: dict, kinds: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
    """The results of one view: kind -> tensors of its item.

    Args:
        policy: before training, in eval mode.
        batch: one sample, collated, on the policy's device.
        kinds: names of ``caching/kinds.py``.
    """
    results: dict[str, dict[str, torch.Tensor]] = {}
    brought = dict(batch)
    if {'vision_tokens', 'seg_states', 'reference_low_res'} & set(kinds):
        brought['vision_tokens'] = policy.vision_tokens(batch)
        results['vision_tokens'] = dict(vision_tokens=brought['vision_tokens'])
        if 'image_grid_thw' in batch:  # where the language model's positions come from
            results['vision_tokens']['image_grid_thw'] = batch['image_grid_thw']
    if {'seg_states', 'reference_low_res'} & set(kinds):
        brought['seg_states'] = policy.seg_states(brought)
        results['seg_states'] = dict(seg_states=brought['seg_states'])
    if {'sam2_levels', 'sam2_features', 'reference_low_res'} & set(kinds):
        levels = policy.sam2_levels(batch['sam_pixel_values'])
        results['sam2_levels'] = {f'sam2_levels.{i}': level[0] for i, level in enumerate(levels)}
        features = policy.features_of_levels(levels)
        tensors = [features.image_embed, *features.high_res]
        results['sam2_features'] = {f'sam2_features.{i}': tensor[0] for i, tensor in enumerate(tensors)}
    if 'reference_low_res' in kinds:
        output = policy.decode(features, policy.embed_states(brought['seg_states']), batch['seg_index'][:, 0])
        results['reference_low_res'] = dict(reference_low_res=output.low_res)
    size = torch.tensor(batch['original_sizes'][0])
    return {kind: {**results[kind], 'original_size': size} for kind in kinds}


# A view and the names of the kinds that it needs.
Wish = tuple[View, tuple[str, ...]]


def fill(policy: Sa2VAModel, maker: SampleMaker, wishes: Sequence[Wish], stores: Mapping[str, CacheStore],
         rank: int = 0, world_size: int = 1) -> int:
    """Compute what is missing; processes share the views and leave together.

    Args:
        policy: before training, in eval mode.
        maker: without a cache.
        stores: by kind.
        rank, world_size: of this process among those that share a disk.

    Returns:
        The number of views that this process computed.
    """
    # Shares of all views: what is missing changes while processes start, and they would divide different lists.
    mine = [wish for wish in wishes[rank::world_size] if _missing(wish, stores)]
    done = 0
    for wish in progress(mine, desc='cache', unit='view', disable=rank != 0 or not mine):
        done += fill_one(policy, maker, wish, stores)
    # Not a collective: there is no process group yet, and a launcher ends the others when one fails.
    waiting = list(wishes)
    while waiting := [wish for wish in waiting if _missing(wish, stores)]:
        time.sleep(0.2)
    return done


def fill_one(policy: Sa2VAModel, maker: SampleMaker, wish: Wish, stores: Mapping[str, CacheStore]) -> bool:
    """Compute what one view lacks; False where it lacks nothing (the same view twice, or another process was
    faster)."""
    kinds = _missing(wish, stores)
    if kinds:
        for kind, tensors in compute(policy, batch_of(maker, wish[0], policy), kinds).items():
            stores[kind].write(wish[0].key(kind), tensors)
    return bool(kinds)


def batch_of(maker: SampleMaker, view: View, policy: Sa2VAModel) -> dict:
    """One view, collated, on the policy's device."""
    device = next(policy.parameters()).device
    batch = maker.pre.collate([maker(view)])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def missing(wishes: Sequence[Wish], stores: Mapping[str, CacheStore]) -> int:
    """How many views lack something."""
    return sum(bool(_missing(wish, stores)) for wish in wishes)


def _missing(wish: Wish, stores: Mapping[str, CacheStore]) -> list[str]:
    view, names = wish
    return [name for name in names if view.key(name) not in stores[name]]
