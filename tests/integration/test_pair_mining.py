"""The pair generator as a user starts it: the command, a kill, several processes, a real checkpoint."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sa2va_dpo.commands.pairs import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs, read_segs
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.drawn import write_dataset
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.preferences.candidates import Request
from sa2va_dpo.preferences.sampler import Policies, PolicySampler

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn')
    write_dataset(root, style='demo', seed=3, n=12, size=96)
    return root


def command(drawn, checkpoint, out, *more):
    return ['scripts/generate_dpo_dataset.py', '--mode', 'generate', '--images_dir', str(drawn / 'images'),
            '--gt_dir', str(drawn / 'masks'), '--output_dir', str(out), '--model_path', str(checkpoint),
            '--num_samples', '4', '--min_iou_gap', '0.0005', '--val_fraction', '0.25', '--device', 'cpu', *more]


def environment():
    return dict(os.environ, OMP_NUM_THREADS='1')


def contents(folder):
    """What a data root holds, but for the log: it says how fast the work went and where."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file() and path.name != 'pairs.log'
    }


@pytest.fixture(scope='module')
def whole(drawn, micro_checkpoint, repo_root, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole') / 'out'
    done = subprocess.run([sys.executable, *command(drawn, micro_checkpoint, out)], cwd=repo_root, env=environment(),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'training pairs' in done.stdout
    return out


def test_the_command_writes_what_training_reads(whole):
    assert (
        read_pairs(whole / 'dpo_annotations.json', whole) and len(read_segs(whole / 'val_annotations.json', whole)) == 3
    )
    report = json.loads((whole / 'generation_report.json').read_text(encoding='utf-8'))
    # Twelve patients: two are the test's, of whom no pair is made.
    assert len(read_segs(whole / 'test_annotations.json', whole)) == 2
    assert report['images'] == 10 and report['candidates_per_image']['max'] == 4


def test_killed_at_random_moments_it_ends_the_same(drawn, micro_checkpoint, repo_root, whole, tmp_path):
    out, moments = tmp_path / 'out', random.Random(1)
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, *command(drawn, micro_checkpoint, out)],
            cwd=repo_root,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Importing takes most of the time; the journal shows when the work begins.
        while process.poll() is None and not list(out.glob('*journal*')):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    subprocess.run(
        [sys.executable, *command(drawn, micro_checkpoint, out)],
        cwd=repo_root,
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert contents(out) == contents(whole)


def test_two_processes_write_what_one_writes(drawn, micro_checkpoint, repo_root, whole, tmp_path):
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                    *command(drawn, micro_checkpoint, tmp_path / 'out')],
                   cwd=repo_root, env=environment(), check=True, capture_output=True)
    assert contents(tmp_path / 'out') == contents(whole)


def test_bad_input_is_one_line_and_exit_code_2(drawn, micro_checkpoint, repo_root, tmp_path):
    done = subprocess.run([sys.executable, *command(drawn, micro_checkpoint, tmp_path / 'out', '--num_samples', '1')],
                          cwd=repo_root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / 'out').exists()
    assert done.stderr.startswith('error: --num_samples 1') and len(done.stderr.strip().splitlines()) == 1


def test_a_missing_checkpoint_claims_nothing(drawn, tmp_path):
    with pytest.raises(InputError, match='none'):
        main(command(drawn, tmp_path / 'none', tmp_path / 'out')[1:])
    assert not (tmp_path / 'out').exists()


def test_greedy_candidate_is_what_the_parity_fixture_says(shared_dir):
    """Pairs are mined from the same masks that the original implementation predicts."""
    from PIL import Image

    fixture = shared_dir / 'fixtures' / 'sa2va_parity' / 'internvl_qwen2'
    model, pre = load_checkpoint(fixture), Sa2VAPreprocessor.from_pretrained(fixture)
    image = np.asarray(Image.open(fixture / 'image.png').convert('RGB'))
    prompt = '<image>Please segment the blood vessels.'
    with torch.no_grad():
        output = model.mask_logits(pre.collate([pre(image, prompt)]))
    expected = upsample_logits(output.low_res, model.sam_size, image.shape[:2])[0].numpy()
    sampler = PolicySampler(Policies(None, 'cpu', model, pre), image, 'image', prompt, 0)
    answers = sampler.masks(
        [Request(), Request(rank=1), Request(seg_noise=2.0), Request(dropout=0.4), Request(view='tiles2')]
    )
    assert (answers[0][0] != (expected > 0)).mean() < 1e-4
    np.testing.assert_allclose(sampler.probability(), 1 / (1 + np.exp(-expected)), atol=1e-5)
    assert all(mask.shape == image.shape[:2] for mask, _ in answers)
