"""The policy over the tiles of an image (``models/view_geometry.py``): SAM2 in passes that fit the memory, one map of
logits at the end."""
from __future__ import annotations

from typing import Any, Iterator, Sequence

import torch

from .sa2va import MaskOutput, Sa2VAModel, Sam2Features, upsample_logits

# Of SAM2's working memory, on a GPU: what tiles of one pass take together.
MAX_GIB = 4.0
_SAM2_INPUTS = ('sam_pixel_values', 'sam2_levels', 'sam2_features')


def moved(value: Any, device: torch.device | str) -> Any:
    """A batch with every tensor in it on ``device``, tiles included."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    return [moved(item, device) for item in value] if isinstance(value, list) else value


def image_logits(policy: Sa2VAModel, batch: dict, max_gib: float = MAX_GIB) -> Iterator[tuple[torch.Tensor,
                                                                                              torch.Tensor]]:
    """What the policy says about each image of a batch, at the image's own size.

    Args:
        batch: of ``Sa2VAPreprocessor.collate``; where it brings ``tiles``, images are looked at tile by tile.
        max_gib: bound on SAM2's working memory on a GPU, as far as one tile at a time can keep to it. Elsewhere tiles
            run one by one.

    Yields:
        (logits ``[n_seg, H, W]`` float32, predicted IoU ``[n_seg]``: of tiles the mean).
    """
    if 'tiles' not in batch:
        yield from _whole(policy, policy(batch), batch)
        return
    # With context "tile" there is no prompt of the whole image.
    prompts = policy.encode_prompt(batch) if 'seg_index' in batch else None
    for row, tiles in enumerate(batch['tiles']):
        own = None if prompts is None else prompts[batch['seg_index'][:, 0] == row]
        yield blend(policy, tiles, own, max_gib)


def _whole(policy: Sa2VAModel, output: MaskOutput, batch: dict) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = batch['seg_index'][:, 0].tolist()
    best = output.iou_pred.max(dim=1).values
    for row, size in enumerate(batch['original_sizes']):
        own = [index for index, of in enumerate(rows) if of == row]
        low_res = output.low_res[own[0]:own[-1] + 1] if own else output.low_res[:0]
        yield upsample_logits(low_res.float(), policy.sam_size, tuple(size)), best[own]


def blend(policy: Sa2VAModel, tiles: dict, prompts: torch.Tensor | None,
          max_gib: float = MAX_GIB) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's tiles as one map.

    Args:
        tiles: ``grid`` (a ``TileGrid``) and ``parts``, one batch a tile.
        prompts: ``[n_seg, C]`` of the whole image; None: each part brings a text of its own.

    Returns:
        (logits ``[n_seg, H, W]`` float32, mean predicted IoU ``[n_seg]``).
    """
    grid, canvas, scores, index = tiles['grid'], None, [], 0
    for features, count, own in passes(policy, tiles['parts'], prompts, max_gib):
        rows = torch.arange(count, device=own.device).repeat_interleave(len(own) // count)
        output = policy.decode(features, own, rows)
        best = output.iou_pred.max(dim=1).values
        for low_res, score in zip(output.low_res.split(len(own) // count), best.split(len(own) // count)):
            canvas = canvas or grid.canvas(len(low_res), low_res.device)
            canvas.add(index, upsample_logits(low_res.float(), policy.sam_size, grid.boxes[index].size))
            scores.append(score)
            index += 1
    assert canvas is not None, 'an image has at least one tile'
    return canvas.logits, torch.stack(scores).mean(dim=0)


def passes(policy: Sa2VAModel, parts: Sequence[dict], prompts: torch.Tensor | None,
           max_gib: float = MAX_GIB) -> Iterator[tuple[Sam2Features, int, torch.Tensor]]:
    """SAM2's features of tiles, pass by pass, with their prompt vectors.

    The first pass is a single tile: what it took says how many fit the next ones.

    Yields:
        (features of ``count`` tiles, ``count``, prompts ``[count * n_seg, C]``, tile by tile).
    """
    start, size = 0, 1
    while start < len(parts):
        some = parts[start:start + size]
        device = next(policy.parameters()).device
        measured = device.type == 'cuda' and not start
        if measured:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        own = (prompts.repeat(len(some), 1) if prompts is not None
               else torch.cat([policy.encode_prompt(part) for part in some]))
        yield policy.image_features(merged(some)), len(some), own
        start += len(some)
        if measured:
            taken = torch.cuda.max_memory_allocated(device) - before
            size = max(1, int(max_gib * 2 ** 30 / max(1, taken)))


def merged(parts: Sequence[dict]) -> dict:
    """The SAM2 half of several one-tile batches as one batch."""
    batch: dict = {}
    for name in _SAM2_INPUTS:
        if name in parts[0]:
            found = [part[name] for part in parts]
            batch[name] = torch.cat(found) if isinstance(found[0], torch.Tensor) else [
                torch.cat(levels) for levels in zip(*found)]
    return batch
