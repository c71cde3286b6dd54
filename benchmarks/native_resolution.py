"""How closely the policy should look: whole images against tiles at equal steps, beside a plain U-Net.

    python benchmarks/native_resolution.py --out work_dirs/native --data hrf_full hrf chase_db1 arcade

Half of the patients are trained on (supervised, 300 steps of 4), the other half is the test, scored at native size;
figures are those of the last step and nothing is selected on the test. Resumable and shareable: one JSON file a
finished run; any number of processes may work on one folder. ``--report`` writes the tables of what is there.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'projects/checkout')]

from benchmarks.study import runs  # noqa: E402

DATA = ('hrf_full', 'hrf', 'chase_db1', 'arcade')
UNET, CHOICE = 'U-Net', 'choice of the input size'


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/native')
    parser.add_argument('--data', nargs='+', default=list(DATA), choices=DATA)
    parser.add_argument('--only', nargs='+', help='only these arms, in this order')
    parser.add_argument('--first', type=int, default=0, help='which data set and seed this process begins with')
    runs.add_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.report:
        from benchmarks.study.native_report import report

        return report(args.out)
    from benchmarks.study.native import ARMS, Arm, refined_arms

    if args.prepare:
        from benchmarks.study.bases import base_checkpoint

        for size in {arm.size for arm in ARMS} - {640}:
            base_checkpoint(f'tiny@{size}', args.out, 'cpu')
        return None
    table = [*ARMS[:3], Arm(UNET), *ARMS[3:], Arm(CHOICE, steps=0), *refined_arms()]
    if args.only:
        table = [arm for name in args.only for arm in table if arm.name == name]
    groups = [(data, seed) for data in args.data for seed in args.seeds]
    groups = groups[args.first % len(groups):] + groups[:args.first % len(groups)]
    jobs = [(data, seed, arm) for arm in table for data, seed in groups if data in arm.data]
    worker, last = Worker(args), None
    while jobs and not runs.is_late(args):
        # What this process has in memory goes on; else the first in the order of the table.
        jobs.sort(key=lambda job: job[:2] != last)
        data, seed, arm = jobs.pop(0)
        path = runs.path_of(args.out, data, seed, arm.name)
        if path.exists() or not claimed(path):
            continue
        last = data, seed
        try:
            runs.write(path, worker.run(data, seed, arm))
        except BaseException:
            path.with_suffix('.claim').unlink()
            raise
    return None


def claimed(path: Path) -> bool:
    """Whether this process is the first to ask for a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.with_suffix('.claim').touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Worker:
    """Runs arms; images and inputs of the last data set and seed stay in memory."""

    def __init__(self, args: argparse.Namespace) -> None:
        from sa2va_dpo.common.processes import pick_device

        self.args, self.device = args, pick_device(args.device)
        self.pictures, self.inputs = None, {}

    def run(self, data: str, seed: int, arm) -> dict:
        import torch

        from benchmarks.study.bases import TINY, base_checkpoint
        from benchmarks.study.native import DEFAULT_PROMPT, Inputs, Pictures, run_arm
        from benchmarks.study.unet import score_unet, train_unet
        from sa2va_dpo.inference.input_size import choose_size, measure_sizes

        if self.pictures is None or (self.pictures.name, self.pictures.seed) != (data, seed):
            self.pictures, self.inputs = Pictures(self.args.shared / 'data' / data, seed), {}
        pictures, started = self.pictures, time.time()
        if self.device != 'cpu':
            torch.cuda.reset_peak_memory_stats()
        if arm.name == UNET:
            net = train_unet(pictures, self.device, seed, self.args.steps or 2000)
            found = score_unet(net, pictures, self.device)
        elif arm.name == CHOICE:
            source = [dict(image=pictures.pixels[s], mask=pictures.truth[s], prompt=DEFAULT_PROMPT, image_id=s)
                      for s in pictures.train]
            measured = measure_sizes(TINY, source, self.device)
            found = dict(dice=max(measured.values()), cldice=0.0, chosen=choose_size(measured),
                         measured={str(size): value for size, value in measured.items()})
        else:
            base = base_checkpoint('tiny' if arm.size == 640 else f'tiny@{arm.size}', self.args.out, self.device)
            if arm.size not in self.inputs:
                self.inputs[arm.size] = Inputs(pictures, base, self.device)
            policy, found = run_arm(arm, base, self.inputs[arm.size], seed, self.args.steps)
            save_masks(self.args.out, policy, self.inputs[arm.size], arm, data, seed)
        return dict(data=data, seed=seed, arm=arm.name, grid=arm.grid, context=arm.context, size=arm.size,
                    steps=arm.steps, train=len(pictures.train), test=len(pictures.test), **found,
                    peak_gib=torch.cuda.max_memory_allocated() / 2 ** 30 if self.device != 'cpu' else None,
                    seconds=round(time.time() - started, 1))


def save_masks(out: Path, policy, inputs, arm, data: str, seed: int) -> None:
    """The first test image of the first seed, for pictures."""
    from benchmarks.study.native import MIRRORS, logits_of
    from sa2va_dpo.datasets.mask_io import write_mask
    from sa2va_dpo.models.view_geometry import ViewGeometry

    if seed or arm.probe or arm.name not in ('whole, 640 px', 'whole, 1024 px', '2 x 2', '4 x 4'):
        return
    stem = inputs.pictures.test[0]
    logits = logits_of(policy, inputs, stem, ViewGeometry(grid=arm.grid, context=arm.context), MIRRORS[0])
    (out / 'masks').mkdir(exist_ok=True)
    name = f'{data}-{stem}-{arm.name}'.replace(' ', '_')
    write_mask(out / 'masks' / f'{name}.png', (logits > 0).cpu().numpy())


if __name__ == '__main__':
    main()
