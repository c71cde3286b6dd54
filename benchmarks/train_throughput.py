"""Training speed and memory: ours with each saving switched on in turn, against the obvious implementation of DPO.

    python benchmarks/train_throughput.py                                             # tiny sizes, this machine's CPU
    python benchmarks/train_throughput.py --device cuda --variant Sa2VA-1B Sa2VA-4B InternVL3-8B --out work_dirs/speed
    python benchmarks/train_throughput.py --device cuda --variant Sa2VA-1B --sweep --compiled --out work_dirs/speed

Weights are random, sizes are the released ones, images make 12 tiles and a thumbnail for the language model and
1024 x 1024 pixels for SAM2. A step is forward, backward and AdamW on one image; medians; all arms in one run, so that
their ratios are of one machine. ``--sweep`` measures how the cost grows with the pairs of an image and the images of a
step; with ``--compiled`` the images of a step once more with compiled layers. A compiled arm compiles in steps before
the clock starts; how long those took is in its row.
"""
from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variant', nargs='+', default=['tiny'], help='released InternVL variants, or tiny')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['bfloat16', 'float32'], help='default: bfloat16 on a GPU, else float32')
    parser.add_argument('--candidates', type=int, default=5, help='masks of an image; all their pairs are trained')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=6.0, help='fewer repeats once an arm has taken this long')
    parser.add_argument('--recipe', nargs='+', help='only these recipes (see benchmarks/speed/arms.py)')
    parser.add_argument('--arm', nargs='+', help='only arms of these names (likewise)')
    parser.add_argument('--pixels', type=int, nargs=2, metavar=('WIDTH', 'HEIGHT'),
                        help='of the image (default: 4 x 3 tiles)')
    parser.add_argument('--sweep', action='store_true', help='cost against pairs per image and images per step instead')
    parser.add_argument('--compiled', action='store_true', help='with --sweep: images per step also compiled')
    parser.add_argument('--out', default='work_dirs/speed', help='folder of the JSON, the table and the plot')
    args = parser.parse_args(argv)
    if args.compiled and not args.sweep:
        parser.error('--compiled: is for --sweep; without it, name compiled arms with --arm')
    return args


def measure_arm(model, optimiser, variant, arm, args, images: int = 1, candidates: int | None = None) -> dict:
    """One row: seconds a step, and what follows from them."""
    import time

    import torch

    from benchmarks.speed import arms as speed
    from benchmarks.speed.measure import counted, free, median_seconds, peak_gib, synchronise

    data = variant.data(images, candidates or args.candidates, truncate=arm.kind != 'obvious', pixels=args.pixels)
    pairs = len(data['gaps'])
    if arm.kind != 'image':
        data, pairs = speed.one_pair(data), 1
    head = None
    if arm.kind == 'obvious':
        width = model.policy.text_hidden_fcs[0].in_features
        frozen = next(model.policy.mllm.language_model.parameters()).dtype
        head = torch.randn(variant.config['llm_config']['vocab_size'], width, device=args.device, dtype=frozen) * 0.02
    speed.switch_checkpointing(model, arm.checkpointing)
    data = speed.stored(model, data, arm, args.device)

    def step() -> None:
        loss = (speed.obvious_loss(model, data, args.device, head) if head is not None
                else speed.our_loss(model, data, args.device))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    compile_seconds = None
    if arm.compiled:
        speed.compile_afresh(model)
        began = time.perf_counter()
        step()
        step()  # finds out whether anything of the first was only for the first
        synchronise(args.device)
        compile_seconds = time.perf_counter() - began
    step()  # the optimiser's states exist from here on and belong to the peak
    free(args.device)
    seconds = median_seconds(step, args.device, args.repeats, args.seconds, warm_up=1)
    peak = peak_gib(args.device)
    if arm.compiled:
        speed.compile_no_more(model)  # operations are counted where they can be seen
    return dict(
        variant=variant.name,
        recipe=arm.recipe,
        arm=arm.name,
        kind=arm.kind,
        checkpointing=arm.checkpointing,
        compiled=arm.compiled,
        compile_seconds=compile_seconds,
        cached=sorted(arm.cached),
        images=images,
        pairs=pairs,
        seconds=seconds,
        pairs_per_second=pairs / seconds,
        images_per_second=images
        * (1 if arm.kind == 'image' else 1 / len_pairs(candidates or args.candidates))
        / seconds,
        flops=counted(step),
        **peak,
    )


def len_pairs(candidates: int) -> int:
    """All pairs of so many masks."""
    return candidates * (candidates - 1) // 2


def run_variant(name: str, args, peak_flops: float, dtype) -> list[dict]:
    """All arms of a variant; a model is built once for neighbouring arms that share its trained parts."""
    from benchmarks.speed import arms as speed
    from benchmarks.speed.measure import free
    from benchmarks.speed.setup import Variant, variant_name

    variant = Variant.named(variant_name(name))
    rows = []
    chosen = [arm for arm in speed.ARMS if (not args.recipe or arm.recipe in args.recipe)
              and (not args.arm or arm.name in args.arm)]
    # A compiled arm has a model of its own, so that the others measure what they did without it.
    for _, arms in groupby(chosen, key=lambda arm: (arm.recipe, arm.mllm, arm.compiled)):
        model = optimiser = None
        free(args.device)
        for arm in arms:
            if model is None:
                model = speed.build_model(variant, arm, args.device, dtype)
                optimiser = speed.optimiser_of(model, args.device)
            row = measure_arm(model, optimiser, variant, arm, args)
            row['roofline'] = row.pop('flops') / row['seconds'] / peak_flops
            rows.append(row)
            print(line(row), flush=True)
        del model, optimiser
    return with_ratios(rows)


def with_ratios(rows: list[dict]) -> list[dict]:
    """Each row's pairs a second over those of the obvious implementation of the same recipe (or of its frozen LLM)."""
    for row in rows:
        base = next((r for r in rows if r['kind'] == 'obvious' and r['recipe'] == row['recipe']),
                    next((r for r in rows if r['kind'] == 'obvious' and row['recipe'].startswith(r['recipe'])), None))
        row['ratio'] = row['pairs_per_second'] / base['pairs_per_second'] if base else None
    return rows


def sweep(name: str, args, dtype) -> list[dict]:
    """Seconds a step against pairs of an image (one image) and images of a step (all pairs), these also compiled where
    asked."""
    from benchmarks.speed import arms as speed
    from benchmarks.speed.setup import Variant, variant_name

    variant = Variant.named(variant_name(name))
    obvious, ours, compiled = speed.ARMS[0], *(
        next(arm for arm in speed.ARMS if arm.name == f'+ vision tokens cached{end}') for end in ('', ', compiled'))
    model = speed.build_model(variant, ours, args.device, dtype)
    optimiser = speed.optimiser_of(model, args.device)
    rows = []
    for arm, images, candidates in [
        (obvious, 1, 2),
        *((ours, 1, c) for c in (2, 3, 5, 8)),
        *((ours, i, 5) for i in (2, 4, 8)),
        *((compiled, i, 5) for i in (1, 2, 4, 8) if args.compiled),
    ]:
        row = measure_arm(model, optimiser, variant, arm, args, images, candidates)
        row.pop('flops')
        rows.append(row)
        print(f'{row["arm"]:32} {images} images, {row["pairs"]:4} pairs a step: {row["seconds"]:.3f} s', flush=True)
    return rows


def line(row: dict) -> str:
    memory = '' if row['peak_allocated_gib'] is None else f'{row["peak_allocated_gib"]:7.2f} GiB'
    compiled = '' if row['compile_seconds'] is None else f' ({row["compile_seconds"]:.0f} s of compiling)'
    return (f'{row["variant"]:20} {row["recipe"]:22} {row["arm"]:50} {row["pairs_per_second"]:9.2f} pairs/s '
            f'{row["images_per_second"]:8.3f} images/s {memory}{compiled}')


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = ['| sizes | trained | what is computed | pairs/s | × obvious | images/s | peak GiB | roofline |',
             '|---|---|---|---|---|---|---|---|']
    for row in rows:
        ratio = '' if row['ratio'] is None else f'{row["ratio"]:.1f}'
        memory = '' if row['peak_allocated_gib'] is None else f'{row["peak_allocated_gib"]:.1f}'
        lines.append(f'| {row["variant"]} | {row["recipe"]} | {row["arm"]} | {row["pairs_per_second"]:.3g} | {ratio} | '
                     f'{row["images_per_second"]:.3g} | {memory} | {row["roofline"]:.0%} |')
    return '\n'.join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Pairs a second of every arm and how many times the obvious implementation's that is; a column a variant, a row a
    recipe."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    variants = list(dict.fromkeys(row['variant'] for row in rows))
    recipes = list(dict.fromkeys(row['recipe'].split(',')[0] for row in rows))
    cells = {
        (recipe, variant): [row for row in rows if row['variant'] == variant and row['recipe'].split(',')[0] == recipe]
        for recipe in recipes
        for variant in variants
    }
    heights = [len(cells[recipe, variants[0]]) for recipe in recipes]
    figure, axes = plt.subplots(
        len(recipes),
        len(variants),
        figsize=(4 + 2.2 * len(variants), 1 + 0.24 * sum(heights)),
        squeeze=False,
        sharex=True,
        sharey='row',
        gridspec_kw=dict(height_ratios=heights),
    )
    for (recipe, variant), group in cells.items():
        axis = axes[recipes.index(recipe), variants.index(variant)]
        names = [
            row['arm'] if row['recipe'] == recipe else f'{row["recipe"].split(", ")[1]}: {row["arm"]}' for row in group
        ]
        bars = axis.barh(range(len(group)), [row['pairs_per_second'] for row in group],
                         color=['0.6' if row['kind'] == 'obvious' else 'tab:blue' for row in group])
        axis.bar_label(
            bars,
            ['' if row['ratio'] in (None, 1.0) else f'{row["ratio"]:.0f}x' for row in group],
            fontsize=6,
            padding=1,
        )
        axis.set_yticks(range(len(group)), names, fontsize=7)
        axis.set_xscale('log')
        axis.set_title(f'{variant}, trained: {recipe}', fontsize=7, loc='left')
        axis.tick_params(axis='x', labelsize=7)
    for axis in axes[:, 0]:
        axis.invert_yaxis()
    axes[0, 0].set_xlim(right=3 * max(row['pairs_per_second'] for row in rows))
    for axis in axes[-1]:
        axis.set_xlabel('pairs a second (log scale)', fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def machine(device: str) -> str:
    import os

    import torch

    return torch.cuda.get_device_name(0) if device.startswith('cuda') else f'{len(os.sched_getaffinity(0))} CPU cores'


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    from benchmarks.speed.measure import matmul_peak
    from sa2va_dpo.common.files import write_json

    name = args.dtype or ('bfloat16' if args.device.startswith('cuda') else 'float32')
    dtype, out = getattr(torch, name), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    about = dict(machine=machine(args.device), dtype=name, torch=torch.__version__, candidates=args.candidates)
    if args.sweep:
        rows = [row for variant in args.variant for row in sweep(variant, args, dtype)]
        write_json(out / 'sweep.json', dict(about, rows=rows))
        return
    about['matmul_peak_flops'] = matmul_peak(args.device, dtype)
    print(f'{about["machine"]}: {about["matmul_peak_flops"] / 1e12:.3g} TFLOP/s in {name} products')
    rows = []
    for variant in args.variant:
        rows += run_variant(variant, args, about['matmul_peak_flops'], dtype)
        write_json(out / 'throughput.json', dict(about, rows=rows))  # what is measured stays, whatever comes after
    (out / 'throughput.md').write_text(table(rows) + '\n', encoding='utf-8')
    plot(rows, out / 'throughput.png')
    print(table(rows))


if __name__ == '__main__':
    main()
