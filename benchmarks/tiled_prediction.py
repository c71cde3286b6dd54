"""Peak memory and seconds of one prediction, the whole image at once against tiles, at released sizes.

    python benchmarks/tiled_prediction.py --variant InternVL3-2B Qwen3-VL... --sides 512 1024 2048 3504

Weights are random, pictures are noise and square: what is measured does not depend on either. Memory is the GPU's peak
over the weights; the answer is teacher-forced. One JSON line a measurement, a table at the end.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'projects/checkout')]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variant', nargs='+', default=['Sa2VA-1B', 'Sa2VA-8B'])
    parser.add_argument('--sides', nargs='+', type=int, default=[512, 1024, 2048, 3504])
    parser.add_argument('--grids', nargs='+', default=['1', '2', '4', 'auto'])
    parser.add_argument('--max-gib', type=float, default=4.0)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', type=Path, help='file for the JSON lines')
    return parser.parse_args()


def main() -> None:
    args = parse()
    import numpy as np
    import torch

    from benchmarks.speed.setup import PROMPT, Variant, variant_name
    from sa2va_dpo.common.processes import pick_device
    from sa2va_dpo.inference.predictor import Predictor

    device = pick_device()
    cuda = torch.device(device).type == 'cuda'
    rows = []
    for name in args.variant:
        variant = Variant.named(variant_name(name))
        policy = variant.policy(device, torch.bfloat16 if cuda else torch.float32)
        weights = torch.cuda.memory_allocated() if cuda else 0
        for side in args.sides:
            image = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
            for text in args.grids:
                grid = int(text) if text.isdecimal() else text
                predictor = Predictor(policy, variant.pre, dict(grid=grid), max_gib=args.max_gib)
                seconds, peak = [], 0
                # The first is a warm-up.
                for _ in range(args.repeats + 1):
                    peaks = Peak(weights) if cuda else None
                    began = time.time()
                    predictor.predict(image, PROMPT)
                    seconds.append(time.time() - began)
                    peak = max(peak, peaks.taken()) if peaks else 0
                boxes = predictor.view.boxes((side, side), variant.pre.sam_size)
                rows.append(dict(variant=variant.name, side=side, grid=text, tiles=len(boxes) or 1,
                                 seconds=float(np.median(seconds[1:])), weights_gib=weights / 2 ** 30,
                                 peak_gib=peak / 2 ** 30))
                print(json.dumps(rows[-1]), flush=True)
        del policy, predictor
    if args.out:
        args.out.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    print('\n| size | picture, px | tiles | s an image | peak over the weights, GiB |\n|---|---|---|---|---|')
    for row in rows:
        print(f'| {row["variant"]} | {row["side"]} | {row["tiles"]} ({row["grid"]}) | {row["seconds"]:.2f} | '
              f'{row["peak_gib"]:.2f} |')


class Peak:
    """The GPU's peak memory of a stretch, though ``models/tiled.py`` resets the counter on the way."""

    def __init__(self, weights: int) -> None:
        import torch

        self.weights, self.highest, self.cuda = weights, 0, torch.cuda
        self.cuda.reset_peak_memory_stats()
        self.original = self.cuda.reset_peak_memory_stats
        self.cuda.reset_peak_memory_stats = self._reset

    def _reset(self, device=None) -> None:
        self.highest = max(self.highest, self.cuda.max_memory_allocated())
        self.original(device)

    def taken(self) -> int:
        """Bytes over the weights."""
        self.cuda.reset_peak_memory_stats = self.original
        return max(self.highest, self.cuda.max_memory_allocated()) - self.weights


if __name__ == '__main__':
    main()
