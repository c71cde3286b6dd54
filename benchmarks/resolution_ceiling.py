"""What each way to represent a mask at N pixels can express at best: Dice and clDice of the mask that comes back.

    python benchmarks/resolution_ceiling.py --data ../shared/data/hrf ../shared/data/chase_db1

No model is involved. Ways: ``nearest`` (mask resized to N with nearest neighbour, as the original training code does
it), ``soft`` (area-averaged target, ``datasets/targets.py``), ``logit map`` (a policy whose SAM2 input is N px gives
logits at N / 4: the area average at N / 4 as probabilities, taken through the policy's own two bilinear resizes). Each
comes back to the size of the file bilinearly and is cut at one half; ``best cut`` chooses the cut that gives the
highest mean Dice instead.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = (256, 512, 640, 768, 1024)
CUTS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


def at_best(mask, way: str, size: int):
    """Probabilities [H, W] float32 of ``mask`` [H, W] bool after the round trip."""
    import cv2
    import numpy as np
    import torch

    from sa2va_dpo.datasets.targets import soft_target
    from sa2va_dpo.models.sa2va import upsample_logits

    height, width = mask.shape
    if way == 'nearest':
        small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if way == 'soft':
        return cv2.resize(
            soft_target(mask, size).astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_LINEAR
        )
    low_res = torch.from_numpy(soft_target(mask, size // 4).astype(np.float32) / 255)[None]
    return upsample_logits(low_res, size, (height, width))[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, nargs='+', required=True, help='folders with images/ and masks/')
    args = parser.parse_args()
    import numpy as np

    from sa2va_dpo.datasets.ground_truth import match_ground_truth
    from sa2va_dpo.datasets.mask_io import list_images, read_mask
    from sa2va_dpo.evaluation.counts import confusion_counts, dice
    from sa2va_dpo.evaluation.topology import cldice

    print('| data | way | ' + ' | '.join(f'{size} px' for size in SIZES) + ' |')
    print('|---' * (len(SIZES) + 2) + '|')
    for folder in args.data:
        masks = [read_mask(gt) for _, gt in match_ground_truth(list_images(folder / 'images'), folder / 'masks')[0]]
        for way in ('nearest', 'soft', 'logit map'):
            cells = []
            for size in SIZES:
                back = [at_best(mask, way, size) for mask in masks]
                by_cut = {
                    cut: np.mean([dice(confusion_counts(p > cut, m)) for p, m in zip(back, masks)]) for cut in CUTS
                }
                topology = np.mean([cldice(p > 0.5, m) for p, m in zip(back, masks)])
                cut = max(by_cut, key=by_cut.get)
                cells.append(f'{by_cut[0.5]:.3f} (clDice {topology:.3f}; best cut {cut:g}: {by_cut[cut]:.3f})')
            print(f'| {folder.name} ({len(masks)}) | {way} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
