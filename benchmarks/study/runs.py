"""What the studies share: the flags of a resumable, shareable run, and one JSON file in OUT/runs for each finished
one."""
from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What does not depend on the study: seeds, steps, where the data lies, and how processes share the work."""
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--steps', type=int, help='optimiser steps of every recipe (default: as in the table)')
    parser.add_argument('--lr', type=float, help='learning rate of every recipe (default: as in the table)')
    parser.add_argument(
        '--shared', type=Path, default=ROOT.parent / 'shared', help='folder that holds data/hrf, data/chase_db1'
    )
    parser.add_argument('--device')
    parser.add_argument('--shard', default='0/1')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no new run after this long')
    parser.add_argument('--began', type=float, default=time.time(),
                        help='seconds since the epoch from which --minutes counts (default: now)')
    parser.add_argument('--prepare', action='store_true', help='only make the images and the base checkpoints')
    parser.add_argument('--report', action='store_true', help='only write the report')


def is_late(args: argparse.Namespace) -> bool:
    """Whether no new run is started any more."""
    return time.time() - args.began > 60 * args.minutes


def path_of(out: Path, *names: object) -> Path:
    """The file of one run."""
    stem = '-'.join(str(name).replace(' ', '_').replace('/', '_') for name in names)
    return out / 'runs' / f'{stem}.json'


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Keep a finished run, and say what came out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f'.{os.getpid()}')
    temporary.write_text(json.dumps(result))
    os.replace(temporary, path)
    print(f'{path.stem}: dice {result["dice"]:.4f} cldice {result["cldice"]:.4f} ({result["seconds"]} s)', flush=True)


def read_all(out: Path) -> list[dict]:
    """Every finished run; where there is none, says so."""
    rows = [json.loads(path.read_text()) for path in sorted((out / 'runs').glob('*.json'))]
    if not rows:
        print('no finished run yet')
    return rows


def write_csv(out: Path, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """``results.csv``; further fields of the rows are left out."""
    with open(out / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, fields, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """``target``, made by ``make`` (it is given the folder to fill) unless it is there; whole or not at all.

    Of the processes that share a study one makes it while the others wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f'{target.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            temporary = target.with_name(f'{target.name}.part')
            shutil.rmtree(temporary, ignore_errors=True)
            make(temporary)
            temporary.rename(target)
    return target
