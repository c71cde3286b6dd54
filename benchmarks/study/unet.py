"""A plain U-Net trained from nothing at native pixels: what a user without Sa2VA would take.

Ronneberger et al., arXiv 1505.04597, with batch normalisation; 7.8 million parameters.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.topology import cldice

from .native import MIRRORS, Pictures

STEPS, CROP, CROPS, LR, WIDTH, LEVELS = 2000, 256, 8, 1e-3, 32, 5
BLOCK, MARGIN = 1024, 128  # of prediction: pixels that are kept, and context around them


class UNet(nn.Module):
    """RGB ``[B, 3, H, W]`` (sides that 16 divides) -> logits ``[B, H, W]``."""

    def __init__(self, width: int = WIDTH, levels: int = LEVELS) -> None:
        super().__init__()
        widths = [width * 2 ** level for level in range(levels)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))
        self.join = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if not level else F.max_pool2d(x, 2))
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = self.join[level](torch.cat([self.up[level](x), kept[level]], 1))
        return self.head(x)[:, 0]


def _double(a: int, b: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner in (a, b):
        layers += [nn.Conv2d(inner, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def train_unet(pictures: Pictures, device: str, seed: int, steps: int = STEPS) -> UNet:
    """OneCycle to 1e-3, crops mirrored, turned by quarters and with gamma from 0.8 to 1.25; cross-entropy and Dice."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 23])
    images = [torch.tensor(pictures.pixels[stem]).to(device) for stem in pictures.train]
    masks = [torch.tensor(pictures.truth[stem]).to(device) for stem in pictures.train]
    net = UNet().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        crops, targets = [], []
        for index in rng.integers(len(images), size=CROPS):
            top, left = (int(rng.integers(side - CROP + 1)) for side in masks[index].shape)
            turns, mirrored, gamma = int(rng.integers(4)), rng.random() < 0.5, float(np.exp(rng.uniform(-0.22, 0.22)))
            window = slice(top, top + CROP), slice(left, left + CROP)
            picture = (images[index][window].permute(2, 0, 1).float() / 255) ** gamma
            target = masks[index][window]
            if mirrored:
                picture, target = picture.flip(-1), target.flip(-1)
            crops.append(torch.rot90(picture, turns, (-2, -1)))
            targets.append(torch.rot90(target, turns, (-2, -1)))
        target = torch.stack(targets).float()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = net(_normalised(torch.stack(crops)))
        logits = logits.float()
        p = logits.sigmoid()
        overlap = (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, target) + 1 - overlap.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return ((images - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def unet_logits(net: UNet, image: np.ndarray, device: str) -> torch.Tensor:
    """``[H, W]``, in blocks with a margin, so that memory does not grow with the image."""
    height, width = image.shape[:2]
    bottom, right = -(-height // 16) * 16 - height + MARGIN, -(-width // 16) * 16 - width + MARGIN
    whole = torch.tensor(image).to(device).permute(2, 0, 1)[None].float() / 255
    whole = F.pad(whole, (MARGIN, right, MARGIN, bottom), mode='reflect')
    out = torch.empty(height, width, device=device)
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            kept = min(BLOCK, height - top), min(BLOCK, width - left)
            seen = [-(-side // 16) * 16 + 2 * MARGIN for side in kept]
            block = whole[..., top:top + seen[0], left:left + seen[1]]
            logits = net(_normalised(block))[0]
            out[top:top + kept[0], left:left + kept[1]] = logits[MARGIN:MARGIN + kept[0], MARGIN:MARGIN + kept[1]]
    return out


@torch.no_grad()
def score_unet(net: UNet, pictures: Pictures, device: str) -> dict[str, float]:
    """As ``native.score``, the test half with and without mirrored images."""
    rows = []
    for stem in pictures.test:
        image, truth = pictures.pixels[stem], pictures.truth[stem]
        found = []
        for horizontal, vertical in MIRRORS:
            axes = [axis for axis, on in ((1, horizontal), (0, vertical)) if on]
            found.append(unet_logits(net, np.ascontiguousarray(np.flip(image, axes)), device).flip(axes))
        one, four = ((logits > 0).cpu().numpy() for logits in (found[0], torch.stack(found).mean(0)))
        rows.append(dict(dice=dice(confusion_counts(one, truth)), cldice=cldice(one, truth),
                         flips_dice=dice(confusion_counts(four, truth)), flips_cldice=cldice(four, truth)))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
