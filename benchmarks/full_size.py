"""The whole way of a user at a released size with random weights, stage by stage: seconds, images a second, peaks.

    python benchmarks/full_size.py --size 8B --gpus 1 --cap_gib 23 --out work_dirs/full_size
    python benchmarks/full_size.py --size tiny --gpus 0 --images 12 --pixels 256 --iters 6     # CPU, to try it out

Stages: ``checkpoint`` (random weights, no download), ``draw`` (images with masks), ``pairs`` (step 1B of the guide: the
masks of four made-up methods), ``mine`` (step 1A on a few images), ``train`` (``projects/sa2va/configs/
sa2va_dpo_vessel.py`` as shipped, ended by SIGTERM after its first checkpoint), ``resume``, ``test``, ``export``,
``predict``, and ``arm``: one step of the same recipe on one image without loader, DeepSpeed, offload, logs and
validation, activations checkpointed unless training kept them (``train_throughput.py``), of which training should
reach most. The rows of training say what was decided about ``activations``. Every stage is a process of its own, so
that its peaks are its own. What is finished is not done again; ``--stages`` chooses.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIG = 'projects/sa2va/configs/sa2va_dpo_vessel.py'
# By what the run decided about its activations.
ARM, ARM_KEPT = 'nothing cached, activations checkpointed', 'nothing cached'
STAGES = ('checkpoint', 'draw', 'pairs', 'mine', 'train', 'resume', 'test', 'export', 'predict', 'arm')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='1B', help='a released size, or tiny (the bundled checkpoint)')
    parser.add_argument('--gpus', type=int, default=1, help='processes under torchrun; 0: one process without it')
    parser.add_argument('--cap_gib', type=float, default=0.0, help="cap of PyTorch's allocator on each GPU; 0: none")
    parser.add_argument('--images', type=int, default=50)
    parser.add_argument('--pixels', type=int, default=1024, help='side of the drawn images')
    parser.add_argument('--mined', type=int, default=3, help='images of the stage mine')
    parser.add_argument('--iters', type=int, help='steps of training (default: the config says)')
    parser.add_argument('--no_interrupt', action='store_true', help='let the stage train run to its end')
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
    parser.add_argument('--cfg_options', nargs='+', default=[], metavar='KEY=VALUE', help='for training')
    parser.add_argument('--name', default='as_shipped', help='of this way of training, beside others of the same size')
    parser.add_argument('--out', default='work_dirs/full_size')
    return parser.parse_args(argv)


def write_predictions(masks: Path, out: Path) -> None:
    """What four methods might have found: each mask too thick, too thin, with lost branches, with gaps."""
    import cv2
    import numpy as np

    from sa2va_dpo.preferences import corruption

    methods = dict(thick=lambda mask, rng: corruption.thicken(mask, 2), thin=lambda mask, rng: corruption.thin(mask, 2),
                   lost=lambda mask, rng: corruption.drop_branches(mask, 0.35, rng),
                   gaps=lambda mask, rng: corruption.break_centrelines(mask, 40, rng))
    for name, change in methods.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(sorted(masks.iterdir())):
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127
            cv2.imwrite(str(out / name / path.name), 255 * change(mask, np.random.default_rng(i)).astype(np.uint8))


def step_times(work_dir: Path, skip: int = 3) -> dict:
    """Medians of a run's log: seconds of a step, and of its wait for data.

    Left out: the first steps of each start, and those after a validation, whose clocks hold its end and the checkpoint.
    """
    found: list[dict] = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith('{')]
        validated = {row['step'] for row in rows if 'val/dice' in row}
        steps = [row for row in rows if 'optim/time' in row][skip:]
        found += [row for row in steps if row['step'] - 1 not in validated]
    if not found:
        return {}
    return dict(step_seconds=statistics.median(row['optim/time'] for row in found),
                wait_for_data_seconds=statistics.median(row['optim/data_time'] for row in found), steps=len(found))


def activations(work_dir: Path) -> str | None:
    """What the last start of a run decided about activations, as its log says it; None where nothing was decided."""
    logs = sorted(work_dir.glob('*/*.log'))
    lines = logs[-1].read_text().splitlines() if logs else []
    found = [line.partition(' - INFO - ')[2] for line in lines if ' - INFO - activations' in line]
    return found[-1] if found else None


def kept_all(line: str | None) -> bool:
    """Whether a line of :func:`activations` says that every part keeps them; of a resumed run it says that it measured
    again."""
    return ': kept (' in (line or '')


class Way:
    """The stages of one size; each method returns a row of the table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.data = Path(args.out).absolute() / f'images_{args.images}x{args.pixels}'
        self.root = Path(args.out).absolute() / args.size
        self.run = self.root / args.name
        self.run.mkdir(parents=True, exist_ok=True)
        self.tiny = args.size == 'tiny'
        self.checkpoint = Path('projects/sa2va/assets/tiny_sa2va') if self.tiny else self.root / 'checkpoint'
        self.work = self.run / 'work'

    def _stage(self, name: str, script: str, *arguments, **settings) -> dict:
        from benchmarks.speed.processes import run

        settings.setdefault('gib', self.args.cap_gib)
        return run(script, [str(a) for a in arguments], self.run / f'{name}.log', **settings)

    def checkpoint_(self) -> dict:
        if self.tiny:
            return {}
        return self._stage('checkpoint', 'benchmarks/speed/command.py', 'random-checkpoint', self.args.size,
                           self.checkpoint)

    def draw_(self) -> dict:
        import time

        from sa2va_dpo.drawn import write_dataset

        began = time.perf_counter()
        write_dataset(self.data, 'fundus', seed=0, n=self.args.images, size=self.args.pixels)
        write_predictions(self.data / 'masks', self.data / 'predictions')
        return dict(seconds=time.perf_counter() - began, images=self.args.images)

    def pairs_(self) -> dict:
        row = self._stage('pairs', 'scripts/generate_dpo_dataset.py', '--mode', 'from_predictions', '--images_dir',
                          self.data / 'predictions', '--gt_dir', self.data / 'masks', '--source_images_dir',
                          self.data / 'images', '--output_dir', self.data / 'pairs', '--overwrite')
        return dict(row, images=self.args.images,
                    pairs=len(json.loads((self.data / 'pairs/dpo_annotations.json').read_text())))

    def mine_(self) -> dict:
        few = self.run / 'few'
        few.mkdir(exist_ok=True)
        for path in sorted((self.data / 'images').iterdir())[:self.args.mined]:
            (few / path.name).write_bytes(path.read_bytes())
        row = self._stage('mine', 'scripts/generate_dpo_dataset.py', '--mode', 'generate', '--images_dir', few,
                          '--gt_dir', self.data / 'masks', '--output_dir', self.run / 'mined', '--model_path',
                          self.checkpoint, '--val_fraction', 0, '--test_fraction', 0, '--min_iou_gap', 0.0001,
                          '--overwrite')
        return dict(row, images=self.args.mined)

    def _training(self, name: str, *more: str, **settings) -> dict:
        options = ['log_interval=1', *self.args.cfg_options]
        if self.args.iters:
            options.append(f'max_iters={self.args.iters}')
        launcher = ['--launcher', 'pytorch'] if self.args.gpus > 1 else []
        return self._stage(name, 'tools/train.py', CONFIG, '--checkpoint', self.checkpoint, '--data-root',
                           self.data / 'pairs', '--work-dir', self.work, *launcher, *more, '--cfg-options', *options,
                           gpus=self.args.gpus if self.args.gpus > 1 else 0, **settings)

    def train_(self) -> dict:
        # torchrun itself ends with 1 where a signal ended it.
        until = None if self.args.no_interrupt else (self.work / 'last_checkpoint').is_file
        row = self._training('train', '--overwrite', until=until,
                             expect=(0, 143, 1) if self.args.gpus > 1 else (0, 143))
        return dict(row, interrupted=row['exit'] != 0, activations=activations(self.work), **self._speed())

    def resume_(self) -> dict:
        row = self._training('resume', '--resume')
        return dict(row, activations=activations(self.work), **self._speed())

    def _speed(self) -> dict:
        times = step_times(self.work)
        images = max(1, self.args.gpus)
        return dict(times, images_per_second=images / times['step_seconds']) if times else {}

    def last(self) -> Path:
        """The last checkpoint of the run."""
        return max(self.work.glob('iter_*.pth'), key=lambda path: int(path.stem.removeprefix('iter_')))

    def test_(self) -> dict:
        row = self._stage('test', 'tools/test.py', self.work / 'config.py', self.last(), '--work-dir',
                          self.run / 'test', '--no-overlays')
        return dict(row, images=len((self.run / 'test/per_image.csv').read_text().splitlines()) - 1)

    def export_(self) -> dict:
        return self._stage('export', 'tools/export_hf.py', self.work / 'config.py', self.last(),
                           self.run / 'exported')

    def predict_(self) -> dict:
        row = self._stage('predict', 'benchmarks/speed/command.py', 'predict', '--model', self.run / 'exported',
                          '--input', self.data / 'images', '--output', self.run / 'predicted')
        return dict(row, images=self.args.images)

    def arm_(self) -> dict:
        side = () if self.tiny else ('--pixels', self.args.pixels, self.args.pixels)
        device = 'cuda' if self.args.gpus else 'cpu'
        row = self._stage('arm', 'benchmarks/train_throughput.py', '--device', device, '--variant', self.args.size,
                          '--recipe', 'default', '--arm', ARM_KEPT if kept_all(activations(self.work)) else ARM, *side,
                          '--out', self.run / 'arm', gib=0)
        [found] = json.loads((self.run / 'arm/throughput.json').read_text())['rows']
        return dict(row, step_seconds=found['seconds'], images_per_second=found['images_per_second'],
                    step_peak_allocated_gib=found['peak_allocated_gib'])


def table(rows: dict[str, dict]) -> str:
    """The stages in Markdown."""
    def number(value, digits: int = 1) -> str:
        return '' if value is None else f'{value:.{digits}f}'

    lines = ['| stage | seconds | step, s | images/s | GPU, allocated | GPU, nvidia-smi | host |',
             '|---|---|---|---|---|---|---|']
    for name, row in rows.items():
        lines.append(f'| {name} | {number(row.get("seconds"))} | {number(row.get("step_seconds"), 3)} | '
                     f'{number(row.get("images_per_second"), 2)} | {number(row.get("peak_allocated_gib"))} | '
                     f'{number(row.get("peak_gpu_gib"))} | {number(row.get("peak_host_gib"))} |')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from benchmarks.train_throughput import machine
    from sa2va_dpo.common.files import write_json

    way, path = Way(args), Path(args.out) / args.size / args.name / 'full_size.json'
    rows: dict[str, dict] = json.loads(path.read_text())['rows'] if path.is_file() else {}
    for name in args.stages:
        shared = dict(checkpoint=way.checkpoint / 'config.json', draw=way.data / 'predictions/gaps',
                      pairs=way.data / 'pairs/dpo_annotations.json')
        if name in rows or (name in shared and shared[name].exists()):
            continue
        rows[name] = getattr(way, f'{name}_')()
        print(name, json.dumps(rows[name]), flush=True)
        write_json(path, dict(machine=machine('cuda' if args.gpus else 'cpu'), arguments=vars(args), rows=rows))
    trained = rows.get('resume', rows.get('train', {})).get('step_seconds')
    arm = rows.get('arm', {}).get('step_seconds')
    if trained and arm:
        print(f'{args.size}, {args.name}: a step of training takes {trained:.3f} s, the arm {arm:.3f} s: '
              f'{arm / trained:.2f} of its speed a GPU')
    print(table(rows))


if __name__ == '__main__':
    main()
