"""One recipe on one split: train, then score the test half. No selection: the figures are those of the last step."""
from __future__ import annotations

import math

import numpy as np
import torch

from sa2va_dpo.evaluation.counts import confusion_counts, dice, iou, precision, recall
from sa2va_dpo.evaluation.topology import betti_errors, cldice
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel

from .splits import Split
from .step import optimizer_of, step
from .table import PARTS, Cell

BATCH, PAIRS_PER_IMAGE, WARMUP = 4, 4, 10
LOGGED = ('accuracy', 'margin', 'saturation', 'drift_outside')


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth, as a share of the peak."""
    warm = min((step + 1) / WARMUP, 1.0)
    return warm * (0.55 + 0.45 * math.cos(math.pi * max(0, step - WARMUP) / max(1, steps - WARMUP)))


@torch.no_grad()
def score(policy, split: Split) -> dict[str, float]:
    """Means over the test images."""
    rows = []
    policy.eval()
    for test in split.tests:
        output = policy.decode(policy.encode_image(test.sam_pixels[None]), policy.embed_states(test.state[None]))
        logits = upsample_logits(output.low_res.float(), policy.sam_size, test.mask.shape)
        mask = (logits[0] > 0).cpu().numpy()
        counts = confusion_counts(mask, test.mask)
        betti0, betti1 = betti_errors(mask, test.mask)
        rows.append(dict(dice=dice(counts), iou=iou(counts), precision=precision(counts), recall=recall(counts),
                         cldice=cldice(mask, test.mask), betti0_error=betti0, betti1_error=betti1))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def run_cell(cell: Cell, split: Split) -> dict[str, float]:
    """Metrics of the trained policy, and the mean training logs of its last 20 steps."""
    if not cell.steps:
        return score(split.policy, split)
    torch.manual_seed(split.seed)
    rng = np.random.default_rng(split.seed)
    model = Sa2VADPOModel(split.base, PARTS[cell.parts], cell.preference, score_size=cell.score_size,
                          reference='none' if cell.reference == 'none' else 'stored').to(split.device)
    policy = model.policy
    optimizer, parameters = optimizer_of(model, cell.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, cell.steps))
    pairs = split.select(cell.pairs, split.mine(judge='ClDice' if cell.pairs == 'self_topology' else 'IoU'))
    logs: dict[str, list[float]] = {name: [] for name in LOGGED}
    policy.train()
    for done in range(cell.steps):
        if done and done % math.ceil(cell.steps / cell.refresh) == 0:
            pairs = split.select(cell.pairs, split.mine(policy.eval()))
            split.forget_targets()
            policy.train()
        images = list(pairs)
        batch = []
        for image in rng.choice(len(images), BATCH, replace=len(images) < BATCH):
            group = pairs[images[image]]
            picked = rng.choice(len(group), min(PAIRS_PER_IMAGE, len(group)), replace=False)
            batch.append((images[image], [group[i] for i in picked], *(rng.random(2) < 0.5)))
        views = [split.view(image, h, v) for image, _, h, v in batch]
        masks = {side: torch.stack([
            split.target(pair[side], cell.score_size).flip([axis for axis, on in ((1, h), (0, v)) if on])
            for _, group, h, v in batch for pair in group]) for side in ('chosen', 'rejected')}
        index = torch.tensor([i for i, (_, group, _, _) in enumerate(batch) for _ in group], device=split.device)
        inputs = dict(sam_pixel_values=torch.stack([view[0] for view in views]),
                      seg_states=torch.stack([view[1] for view in views]),
                      seg_index=torch.tensor([(i, 0) for i in range(len(views))], device=split.device))
        if model.preference.use_reference:
            inputs['reference_low_res'] = torch.stack([view[2] for view in views])
        losses = step(model, optimizer, schedule, parameters, dict(
            batch=inputs, **masks, image_index=index, gaps=torch.ones(len(index), device=split.device)))
        if done >= cell.steps - 20:
            for name in LOGGED:
                if name in losses:
                    logs[name].append(float(losses[name]))
    return score(policy, split) | {f'train_{name}': float(np.mean(values)) for name, values in logs.items() if values}
