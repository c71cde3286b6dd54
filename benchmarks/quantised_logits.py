"""What a quantised language model does to mask logits, against the same checkpoint in bfloat16 on the same images:

    python benchmarks/quantised_logits.py --checkpoint DIR --images DIR --limit 8 --out work_dirs/quantised.json

Differences of logits are in standard deviations of the bfloat16 logits of an image; ``flipped`` is the share of pixels
whose side of zero changes, ``state`` the relative difference of the [SEG] state. ``KIND, vision tower too``: with
``vision_quantisation`` beside ``llm_quantisation``.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--images', required=True)
    parser.add_argument('--limit', type=int, default=8)
    parser.add_argument('--out', default='work_dirs/quantised.json')
    return parser.parse_args(argv)


def answers(checkpoint: str, images: list[Path], **quantisation: str) -> tuple[list, dict]:
    """([SEG] state, logits of the map) of every image on the CPU, and what the model takes of the GPU."""
    import torch
    from PIL import Image

    from benchmarks.speed.measure import free, peak_gib
    from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
    from sa2va_dpo.models.run_model import Sa2VARunModel

    free('cuda')
    model = Sa2VARunModel(checkpoint, dtype='bfloat16', device='cuda', **quantisation).eval()
    weights = torch.cuda.memory_allocated() / 2 ** 30
    pre, found = Sa2VAPreprocessor.from_pretrained(checkpoint), []
    with torch.no_grad():
        for path in images:
            batch = pre.collate([pre(Image.open(path), '<image>Please segment the blood vessels.')])
            batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            states = model.policy.seg_states(batch)
            output = model.policy.decode(model.policy.image_features(batch), model.policy.embed_states(states))
            found.append((states.float().cpu()[0], output.low_res.cpu()[0]))
    return found, dict(weights_gib=weights, **peak_gib('cuda'))


def compare(plain: list, other: list) -> dict:
    """Means over images."""
    rows = []
    for (state, logits), (state_q, logits_q) in zip(plain, other, strict=True):
        change = (logits_q - logits).abs() / logits.std()
        rows.append(dict(mean=change.mean(), largest=change.max(),
                         flipped=((logits > 0) != (logits_q > 0)).float().mean(),
                         state=(state_q - state).norm() / state.norm()))
    return {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from benchmarks.train_throughput import machine
    from sa2va_dpo.common.files import write_json
    from sa2va_dpo.models.quantised import KINDS

    images = sorted(Path(args.images).iterdir())[:args.limit]
    plain, memory = answers(args.checkpoint, images)
    again, _ = answers(args.checkpoint, images)
    rows = dict(bfloat16=dict(compare(plain, again), **memory))
    for kind in KINDS:
        for words, settings in ((kind, dict(llm_quantisation=kind)),
                                (f'{kind}, vision tower too', dict(llm_quantisation=kind, vision_quantisation=kind))):
            found, memory = answers(args.checkpoint, images, **settings)
            rows[words] = dict(compare(plain, found), **memory)
    for kind, row in rows.items():
        print(kind, {name: round(value, 5) for name, value in row.items()}, flush=True)
    write_json(args.out, dict(machine=machine('cuda'), checkpoint=args.checkpoint, images=len(images), rows=rows))


if __name__ == '__main__':
    main()
