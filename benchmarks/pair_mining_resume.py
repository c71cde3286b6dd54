"""Kill the pair generator at random moments and compare what it ends with to an uninterrupted run.

    python benchmarks/pair_mining_resume.py --images 1000 --kills 10 --out work_dirs/resume

Prints how long both took and whether every file is the same to the byte.
"""
from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def journal_lines(out: Path) -> int:
    return sum(path.read_bytes().count(b'\n') for path in out.glob('generation_journal*'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--model', default='projects/sa2va/assets/tiny_sa2va')
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument(
        '--flags', nargs='+', default=['--num_samples=3', '--sources', 'Thresholds', 'Hypotheses', 'SegNoise']
    )
    args = parser.parse_args()

    from sa2va_dpo.drawn import write_dataset

    if not (args.out / 'data' / 'images').is_dir():
        write_dataset(args.out / 'data', style='demo', seed=args.seed, n=args.images, size=args.size)

    def start(out: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable,
                'scripts/generate_dpo_dataset.py',
                '--mode',
                'generate',
                '--images_dir',
                args.out / 'data/images',
                '--gt_dir',
                args.out / 'data/masks',
                '--output_dir',
                out,
                '--model_path',
                args.model,
                '--val_fraction',
                '0.2',
                *args.flags,
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    began = time.time()
    if start(args.out / 'whole').wait():
        raise SystemExit('the uninterrupted run failed')
    print(f'uninterrupted: {time.time() - began:.0f} s', flush=True)
    began, moments = time.time(), random.Random(args.seed)
    # Random shares of the work, so that kills fall everywhere from the first image to the last.
    for lines in sorted(moments.randrange(args.images) for _ in range(args.kills)):
        process = start(args.out / 'killed')
        while process.poll() is None and journal_lines(args.out / 'killed') <= lines:
            time.sleep(0.05)
        time.sleep(moments.random())
        if process.poll() is not None:
            raise SystemExit('the run ended before it was killed')
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f'killed with {journal_lines(args.out / "killed") - 1} images done', flush=True)
    if start(args.out / 'killed').wait():
        raise SystemExit('the resumed run failed')
    print(f'with {args.kills} kills: {time.time() - began:.0f} s', flush=True)
    names = {name: {str(path.relative_to(args.out / name)) for path in (args.out / name).rglob('*') if path.is_file()}
             for name in ('whole', 'killed')}
    differ = [path for path in names['whole'] & names['killed']
              if (args.out / 'whole' / path).read_bytes() != (args.out / 'killed' / path).read_bytes()]
    print(f'files: {len(names["whole"])}; only in one of the two: {len(names["whole"] ^ names["killed"])}; '
          f'different content: {len(differ)}')
    raise SystemExit(bool(differ or names['whole'] ^ names['killed']))


if __name__ == '__main__':
    main()
