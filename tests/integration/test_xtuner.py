"""``xtuner train CONFIG``: XTuner's own entry point on our configs, one process, no launcher, no MPI.

XTuner is no dependency (its pins contradict ours), so this is skipped where it is not installed. docs/environment.md
says how to make an environment that has it.
"""
from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def xtuner() -> str:
    try:
        version = importlib.metadata.version('xtuner')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('xtuner is not installed: docs/environment.md says how to test with it')
    if int(version.partition('.')[0]):
        pytest.skip(f'xtuner {version} no longer trains MMEngine configs')
    command = shutil.which('xtuner', path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip('xtuner is installed, its command is not')
    return command


def train(xtuner: str, *arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """XTuner starts ``python`` from the path, so this interpreter has to be the first one there."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')
    }
    return subprocess.run([xtuner, 'train', *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=900,
                          env={**clean, 'PATH': path, 'OMP_NUM_THREADS': '2', 'CUDA_VISIBLE_DEVICES': '', **env})


def test_a_config_of_ours_trains_and_is_settled(xtuner, run_config, tmp_path):
    done = train(
        xtuner, run_config, '--work-dir', tmp_path / 'run', '--cfg-options', 'beta=0.7', 'lr=2e-4', cwd=tmp_path
    )
    assert (tmp_path / 'run' / 'iter_4.pth').is_file(), done.stdout[-3000:] + done.stderr[-3000:]

    from mmengine.config import Config

    saved = Config.fromfile(tmp_path / 'run' / 'config.py', import_custom_modules=False)
    assert saved.model.preference.beta == 0.7 and saved.optim_wrapper.optimizer.lr == 2e-4


def test_deepspeed_in_one_process_asks_for_no_mpi(xtuner, run_config, tmp_path):
    pytest.importorskip('deepspeed')
    done = train(xtuner, run_config, '--work-dir', tmp_path / 'run', '--cfg-options', 'deepspeed_on_cpu=True',
                 'strategy.bf16.enabled=False', cwd=tmp_path)
    text = done.stdout + done.stderr
    assert 'DeepSpeed ZeRO-2' in text and 'mpi4py' not in text, text[-4000:]
    assert (tmp_path / 'run' / 'iter_4.pth').exists(), text[-4000:]


def test_our_classes_are_in_xtuners_registry(xtuner):
    from xtuner.registry import BUILDER

    from sa2va_dpo import plugins  # noqa: F401
    from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel

    assert BUILDER.get('Sa2VADPOModel') is Sa2VADPOModel
