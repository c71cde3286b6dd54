"""Start checkpoints of the study: the bundled one, and one that over-segments because its labels were drawn too
thick."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.targets import soft_target
from sa2va_dpo.drawn import draw
from sa2va_dpo.models.checkpoint import copy_with_sam_size, export_checkpoint
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel

from .runs import made_once
from .table import FULL

BASE_LR = 3e-4

TINY = str(Path(__file__).resolve().parents[2] / 'projects/sa2va/assets/tiny_sa2va')
THICKER_PX, IMAGES, STEPS, BATCH, LR, SCORE_SIZE = 2.0, 160, 120, 8, 3e-4, 320


def base_checkpoint(kind: str, out: Path, device: str) -> str:
    """Directory of the ``'tiny'`` or the ``'thick'`` base; the latter is trained on first use, always from the same
    seed.

    ``'tiny@1024'`` is ``'tiny'`` with SAM2 looking at 1024 px.
    """
    if kind == 'tiny':
        return TINY
    if kind.startswith('tiny@'):
        target = out / 'bases' / kind
        size = int(kind.removeprefix('tiny@'))
        return str(made_once(target, lambda folder: copy_with_sam_size(TINY, folder, size)))
    return str(made_once(target, lambda folder: _train_thick(folder, device)))


def _train_thick(target: Path, device: str) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pre = Sa2VAPreprocessor.from_pretrained(TINY)
    samples, masks = [], []
    for index in range(IMAGES):
        drawn = draw('fundus' if index % 2 else 'angiogram', index, seed=77, size=512, label_dilation_px=THICKER_PX)
        samples.append(pre(drawn.image, DEFAULT_PROMPT))
        masks.append(soft_target(drawn.mask > 0, SCORE_SIZE))
    model = Sa2VASegModel(TINY, FULL, score_size=SCORE_SIZE).to(device).train()
    parameters = [p for group in model.parameter_groups() for _, p in group['params']]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group['lr'] = LR * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        picked = rng.choice(IMAGES, BATCH, replace=False)
        batch = {
            k: v.to(device) if torch.is_tensor(v) else v for k, v in pre.collate([samples[i] for i in picked]).items()
        }
        loss = model.loss(batch, torch.from_numpy(np.stack([masks[i] for i in picked])).to(device))['supervised_loss']
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    export_checkpoint(model.policy.cpu(), TINY, target)


def labelled_base(bank, k: int, out: Path, steps: int) -> str:
    """The bundled checkpoint after supervised training on the first ``k`` labelled images of a bank; itself for
    ``k=0``."""
    from .regimes import Regime
    from .rounds import SCORE_SIZE, Run

    if not k:
        return TINY

    def make(folder: Path) -> None:
        run = Run(TINY, bank, Regime('base', lr=BASE_LR), steps, bank.seed)
        pool = {stem: [(bank.target(bank.truth[stem], SCORE_SIZE),) * 2] for stem in bank.labelled(k)}
        for _ in range(steps):
            run.step(run.data(run.draw(pool, {})))
        export_checkpoint(run.model.policy.cpu(), TINY, folder)

    # Every recipe of a seed starts from one base, whoever trained it.
    return str(made_once(out / 'bases' / f'{bank.name}_{bank.seed}_k{k}_{steps}', make))
