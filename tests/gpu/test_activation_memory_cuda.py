"""On a GPU a checkpoint that counts as released keeps the activations that fit below the allocator's cap."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.full_size import CONFIG, activations, write_predictions
from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.drawn import write_dataset

pytestmark = pytest.mark.gpu
TINY_CHECKPOINT = Path(bundled_checkpoint()).absolute()
STEPS = 4

# Any checkpoint is a released one, the allocator is capped; what was measured is written down, and the peak after it.
PATCH = '''
"""For one run."""
import atexit, json, os
from dataclasses import asdict
import torch
from sa2va_dpo.engine import activation_hook
from sa2va_dpo.models.checkpoint import layout

layout.RELEASED_BYTES = 1000
cap, inner, peak = int(os.environ['CAP']), activation_hook.decide, 0
reset = torch.cuda.reset_peak_memory_stats
if cap:
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)


def look(*args):
    """mmengine starts the count anew with every line of its log."""
    global peak
    peak = max(peak, torch.cuda.max_memory_allocated())
    reset(*args)


def decide(every):
    [one] = every
    found = inner(every)
    numbers = dict(asdict(one), allowed=one.allowed, need=one.need([]), all=one.need(list(one.kept)),
                   allocated=torch.cuda.memory_allocated(), decided=found.kept)
    reset()
    torch.cuda.reset_peak_memory_stats = look

    def write():
        look()
        with open(os.environ['MEASURED'], 'w') as file:
            json.dump(dict(numbers, peak=peak), file)
    atexit.register(write)
    return found


activation_hook.decide = decide
'''


@pytest.fixture(scope='module')
def pairs(tmp_path_factory, repo_root):
    root = tmp_path_factory.mktemp('drawn')
    write_dataset(root, 'fundus', seed=0, n=6, size=256, workers=1)
    write_predictions(root / 'masks', root / 'predictions')
    subprocess.run([sys.executable, 'scripts/generate_dpo_dataset.py', '--mode', 'from_predictions', '--images_dir',
                    root / 'predictions', '--gt_dir', root / 'masks', '--source_images_dir', root / 'images',
                    '--output_dir', root / 'pairs'], cwd=repo_root, check=True, capture_output=True)
    return root / 'pairs'


@pytest.fixture()
def train(pairs, repo_root, tmp_path):
    """The full config (DeepSpeed ZeRO-2, bf16, offload); cap in bytes, 0: none -> (what was measured, line, history)"""
    (tmp_path / 'released.py').write_text(PATCH)
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = [{str(repo_root / CONFIG)!r}]\n"
                      "custom_imports = dict(imports=['sa2va_dpo.plugins', 'released'])\n")

    def run(name, cap, *options):
        work, numbers = tmp_path / name, tmp_path / f'{name}.json'
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
        done = subprocess.run(
            [sys.executable, 'tools/train.py', config, '--checkpoint', TINY_CHECKPOINT, '--data-root', pairs,
             '--work-dir', work, '--cfg-options', f'max_iters={STEPS}', 'log_interval=1', 'lr=1e-4', *options],
            cwd=repo_root, capture_output=True, text=True, timeout=300,
            env={**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHONPATH': path, 'CAP': str(cap), 'MEASURED': str(numbers)})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        line = activations(work)
        assert line is None or line in done.stdout + done.stderr
        return (json.loads(numbers.read_text()) if numbers.exists() else None, line,
                json.loads((work / 'val_history.json').read_text()))
    return run


def test_what_fits_below_the_cap_is_kept(train):
    high, line, free = train('high', 0)
    assert set(high['kept']) == {'llm', 'sam2_encoder'} == set(high['decided'])
    assert all(size > 2 ** 20 for size in high['kept'].values()) and high['step'] > 0
    assert high['limit'] == torch.cuda.get_device_properties(0).total_memory and line.startswith('activations: kept (')
    assert high['peak'] <= high['allocated'] + high['all'], 'what was foreseen is enough'

    # Half of what the smaller part takes is missing: 0.9 of the cap is what is allocated and a step together.
    least = min(high['kept'].values())
    cap = int((high['allocated'] + high['need'] + least / 2) / 0.9)
    low, line, capped = train('low', cap)
    assert low['limit'] == pytest.approx(cap, rel=1e-3) and low['allowed'] < high['all'], (low, high)
    assert low['decided'] == [] and line.startswith('activations: layers keep their inputs only ('), (low, high)

    # Whatever was decided, and where it was chosen, training is the same up to rounding.
    chosen, line, off = train('off', 0, 'model.activation_checkpointing.llm=False')
    assert chosen is None and line is None
    for other in (capped, off):
        assert other[-1]['dice'] == pytest.approx(free[-1]['dice'], abs=0.02)

