"""Candidates per second: shared encoders and one decoder batch, against as many independent predictions.

    python benchmarks/pair_mining_speed.py                                   # the tiny checkpoint on this machine
    python benchmarks/pair_mining_speed.py --variant Sa2VA-1B --device cuda  # released sizes, random weights

Views are off: every candidate is a perturbed [SEG] embedding, dropout, another hypothesis or another threshold. Both
ways draw the same numbers, so their masks are compared pixel by pixel.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
TINY = 'projects/sa2va/assets/tiny_sa2va'


def load(args):
    """(policy in eval mode, preprocessor)."""
    import torch

    from sa2va_dpo.datasets.image_views import InternVLImages
    from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
    from sa2va_dpo.models.checkpoint import load_checkpoint

    tiny = Sa2VAPreprocessor.from_pretrained(TINY)
    if args.variant is None:
        return load_checkpoint(TINY, device=args.device), tiny
    from sa2va_dpo.models.checkpoint import initialise
    from sa2va_dpo.models.sa2va import Sa2VAModel
    from sa2va_dpo.models.variants import RELEASED

    torch.manual_seed(0)
    config = RELEASED[args.variant]
    dtype = torch.bfloat16 if args.device.startswith('cuda') else torch.float32
    with torch.device(args.device):
        model = Sa2VAModel(config)
    initialise(model)
    model = model.to(dtype).eval().requires_grad_(False)
    return model, Sa2VAPreprocessor(tiny.tokenizer, InternVLImages.from_config(config), model.sam_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--variant', help='a released InternVL variant with random weights (default: the tiny checkpoint)'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--images', type=int, default=5)
    parser.add_argument('--candidates', type=int, default=8)
    parser.add_argument('--size', type=int, default=512)
    args = parser.parse_args()

    import numpy as np
    import torch

    from sa2va_dpo.preferences.candidates import Request
    from sa2va_dpo.preferences.sampler import Policies, PolicySampler

    policy, pre = load(args)
    policies = Policies(None, args.device, policy, pre)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (args.images + 1, args.size, args.size, 3), np.uint8)
    pool = [Request(), Request(rank=1), Request(rank=2), Request(threshold=0.3), Request(dropout=0.3)]
    requests = (pool + [Request(seg_noise=1.0, draw=draw) for draw in range(args.candidates)])[:args.candidates]

    def together(image):
        return PolicySampler(policies, image, 'image', 'Segment the vessels.', 0).masks(requests)

    def one_by_one(image):
        return [
            PolicySampler(policies, image, 'image', 'Segment the vessels.', 0).masks([request])[0]
            for request in requests
        ]

    rates, masks = {}, {}
    for name, way in (('together', together), ('one by one', one_by_one)):
        way(images[-1])
        if args.device.startswith('cuda'):
            torch.cuda.synchronize()
        began = time.perf_counter()
        masks[name] = [[mask for mask, _ in way(image)] for image in images[:args.images]]
        rates[name] = args.images / (time.perf_counter() - began)
        print(f'{name}: {rates[name]:.3f} images/s, {rates[name] * args.candidates:.2f} candidates/s', flush=True)
    differ = np.mean([(a != b).mean() for pair in zip(*masks.values()) for a, b in zip(*pair)])
    print(f'speed-up {rates["together"] / rates["one by one"]:.2f} x with {args.candidates} candidates; '
          f'pixels that differ: {differ:.2e}')


if __name__ == '__main__':
    main()
