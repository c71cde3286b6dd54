"""Images a second and peak memory of ``sa2va-dpo predict``, beside a loop of ``Predictor.predict`` image by image.

    python benchmarks/predict_speed.py                                            # the bundled checkpoint, 200 images
    python benchmarks/predict_speed.py --model DIR --device cuda --images 1000 --out work_dirs/speed

Images are drawn (``sa2va_dpo.drawn``). The loop is what a user would write: open, predict, write the mask; the command
writes the table of measures and the journal besides. Every figure is of a process of its own (high-water marks never
fall); ways take turns, ``--repeats`` times, and a ratio is of medians of the same sitting. Seconds are of reading,
computing and writing, by the clock and of the processors (of all threads, which other programs on the machine hardly
change); starting and loading the model are given apart. That memory does not grow with the number of
images is shown by a run on the first ``--few`` of them. In the end the command is killed half-way and started again,
and its files are compared with those of the undisturbed run.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'projects/checkout')]

TINY = ROOT / 'projects/sa2va/assets/tiny_sa2va'
LOOP = 'loop'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=str(TINY), metavar='DIR')
    parser.add_argument('--images', type=int, default=200)
    parser.add_argument('--few', type=int, default=50, help='images of the run that memory is compared with')
    parser.add_argument('--size', type=int, default=512, help='side of a drawn image, pixels')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--device')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/results', help='folder of predict_speed.json')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def worker(way: str, model: str, inputs: Sequence[str], folder: Path, device: str | None) -> dict:
    """One run in this process: seconds without loading, the processors' seconds with it, peaks of memory in MiB (the
    GPU's is of tensors)."""
    import torch

    from sa2va_dpo.common.processes import pick_device
    from sa2va_dpo.inference.prediction_folder import predict_folder

    device, began = pick_device(device), time.monotonic()
    if way == LOOP:
        seconds = loop(model, inputs, folder, device)
    else:
        seconds = predict_folder(model, inputs, folder, batch_size=int(way), device=device, progress=False).seconds
    cuda = device.startswith('cuda')
    return dict(seconds=seconds, loading_seconds=time.monotonic() - began - seconds,
                cpu_seconds=time.process_time(), peak_host_mib=_peak_host(),
                peak_gpu_mib=torch.cuda.max_memory_allocated() / 2 ** 20 if cuda else None)


def loop(model: str, inputs: Sequence[str], folder: Path, device: str) -> float:
    """Image by image, as a user would write it; returns seconds without loading."""
    from PIL import Image

    from sa2va_dpo import Predictor
    from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT

    predictor = Predictor.from_pretrained(model, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for path in map(Path, inputs):
        mask = predictor.predict(Image.open(path), DEFAULT_PROMPT).masks[0]
        Image.fromarray(mask).save(folder / f'{path.stem}.png')
    return time.monotonic() - began


def _peak_host() -> float:
    """High-water mark of this process's resident memory, MiB."""
    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024


def measure(way: str, args: argparse.Namespace, images: Sequence[Path], folder: Path) -> dict:
    """:func:`worker` in a process of its own."""
    task = dict(way=way, model=args.model, inputs=[str(path) for path in images], folder=str(folder),
                device=args.device)
    done = subprocess.run([sys.executable, __file__, '--worker', '-'], input=json.dumps(task), stdout=subprocess.PIPE,
                          text=True, check=True)
    row = dict(way=way, images=len(images), **json.loads(done.stdout.splitlines()[-1]))
    row['images_per_second'] = row['images'] / row['seconds']
    print(f'{way:>4}, {row["images"]} images: {row["images_per_second"]:.2f} images/s, {row["cpu_seconds"]:.0f} s of '
          f'the processors, peak {row["peak_host_mib"]:.0f} MiB of the host', flush=True)
    return row


def summary(rows: Sequence[dict], images: int, few: int) -> list[dict]:
    """A line a way: medians of its runs on all images, its speed over the loop's, the processors' seconds of an image
    (the difference between all images and ``few``: starting and loading fall out), and peaks on all and on ``few``."""
    def median(way: str, count: int, name: str) -> float | None:
        values = [row[name] for row in rows if (row['way'], row['images']) == (way, count)]
        return None if not values or None in values else statistics.median(values)

    found = []
    for way in dict.fromkeys(row['way'] for row in rows):
        speeds = [row['images_per_second'] for row in rows if (row['way'], row['images']) == (way, images)]
        line = dict(way=way, images_per_second=statistics.median(speeds), slowest=min(speeds), fastest=max(speeds))
        line['over_loop'] = line['images_per_second'] / median(LOOP, images, 'images_per_second')
        line['cpu_seconds_an_image'] = (
            median(way, images, 'cpu_seconds') - median(way, few, 'cpu_seconds')) / (images - few)
        for name in ('peak_host_mib', 'peak_gpu_mib'):
            line[name], line[f'{name}_of_few'] = median(way, images, name), median(way, few, name)
        found.append(line)
    return found


def resumed(args: argparse.Namespace, images: Sequence[Path], folder: Path, whole: Path) -> dict:
    """Kill the command (SIGKILL) when half of the images are in its journal, start it again, compare its files with
    those of ``whole``."""
    from sa2va_dpo.inference.prediction_folder import JOURNAL, MASKS, TABLE

    command = [sys.executable, '-m', 'sa2va_dpo', 'predict', '--model', args.model, '--output', str(folder),
               *(['--device', args.device] if args.device else []), '--batch-size', str(args.batch_sizes[0]),
               '--input', *map(str, images)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'projects/checkout')}

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def done() -> int:
        journal = folder / JOURNAL
        return max(0, journal.read_bytes().count(b'\n') - 1) if journal.is_file() else 0

    process, began = start(), time.monotonic()
    while process.poll() is None and done() < len(images) // 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit('the run ended before it was killed')
    first, kept = time.monotonic() - began, done()
    masks = {path: path.stat().st_mtime_ns for path in (folder / MASKS).iterdir() if path.suffix == '.png'}
    began = time.monotonic()
    if start().wait():
        raise SystemExit('the second run failed')
    again = time.monotonic() - began
    names = [TABLE, *(f'{MASKS}/{path.stem}.png' for path in images)]
    return dict(
        killed_after=kept, seconds_until_killed=first, seconds_of_the_rest=again,
        written_twice=sum(path.stat().st_mtime_ns != when for path, when in masks.items()),
        different_files=sum((folder / name).read_bytes() != (whole / name).read_bytes() for name in names))


def about(device: str | None) -> dict:
    """The machine, and how busy it is with other things."""
    import torch

    from sa2va_dpo.common.processes import pick_device

    device = pick_device(device)
    info = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in info.read_text().splitlines()
             if line.startswith('model name')] if info.is_file() else []
    return dict(machine=torch.cuda.get_device_name(device) if device.startswith('cuda') else 'CPU', device=device,
                cpu=names[0] if names else platform.processor(), cores=len(os.sched_getaffinity(0)),
                threads=torch.get_num_threads(), load_before=os.getloadavg()[0], python=platform.python_version(),
                torch=torch.__version__)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.worker:
        task = json.load(sys.stdin)
        print(json.dumps(worker(**{**task, 'folder': Path(task['folder'])})))
        return
    from sa2va_dpo.common.files import write_json
    from sa2va_dpo.drawn import write_dataset

    facts, rows = about(args.device), []
    ways = [LOOP, *map(str, args.batch_sizes)]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = write_dataset(root / 'data', 'demo', seed=0, n=args.images, size=args.size)
        for repeat in range(args.repeats):
            for way in ways:
                rows.append(measure(way, args, images, root / f'{way}_{repeat}'))
        for way in ways:
            rows.append(measure(way, args, images[:args.few], root / f'{way}_few'))
        killed = resumed(args, images, root / 'killed', root / f'{args.batch_sizes[0]}_0')
    lines = summary(rows, args.images, args.few)
    model = Path(args.model).resolve()
    name = model.relative_to(ROOT).as_posix() if model.is_relative_to(ROOT) else model.name
    write_json(args.out / 'predict_speed.json', dict(
        facts, load_after=os.getloadavg()[0], model=name, images=args.images, few=args.few, size=args.size,
        summary=lines, killed=killed, rows=rows))
    print(json.dumps(killed))
    for line in lines:
        print(json.dumps(line))


if __name__ == '__main__':
    main()
