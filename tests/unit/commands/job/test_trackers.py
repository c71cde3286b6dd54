"""A job says at once that a tracker is missing, not after hours of mining."""
import sys
from types import SimpleNamespace

import pytest

from sa2va_dpo.commands.job.main import run_stages
from sa2va_dpo.commands.job.state import JobState
from sa2va_dpo.common.errors import InputError


@pytest.fixture
def settings(tmp_path, repo_root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlflow', None)  # as if it were not installed
    return SimpleNamespace(work_dir=tmp_path, cfg_options=('trackers=mlflow',), mines_in_rounds=False, seed=0,
                           config=str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py'))


def test_before_the_first_stage(settings, tmp_path):
    words = r"trackers=mlflow needs the package mlflow.*pip install 'sa2va-dpo\[trackers\]'"
    with pytest.raises(InputError, match=words):
        run_stages(settings)
    assert list(tmp_path.iterdir()) == []


def test_not_once_the_training_is_done(settings, tmp_path):
    JobState(done=['split', 'resize', 'mine', 'train', 'select', 'report']).save(tmp_path)
    assert run_stages(settings)['best_checkpoint'] is None
