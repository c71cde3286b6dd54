"""Configs load, and one flag points them elsewhere."""
import pytest
from mmengine.config import Config

from sa2va_dpo.engine.paths import repoint
from sa2va_dpo.commands.train import read_config
from sa2va_dpo.common.errors import InputError

NAMES = ('sa2va_dpo_vessel', 'sa2va_dpo_vessel_tiny', 'sa2va_dpo_vessel_tiny_own', 'sa2va_sft_tiny', 'sa2va_sft_tiny_640')


@pytest.fixture(params=NAMES)
def config_path(request, repo_root):
    return str(repo_root / 'projects/sa2va/configs' / f'{request.param}.py')


def test_no_use_of_the_old_paths_is_left(config_path):
    cfg = Config.fromfile(config_path)
    old = [cfg.checkpoint, cfg.get('data_root')]
    repoint(cfg, checkpoint='/new/checkpoint', data_root='/new/data' if 'data_root' in cfg else None)
    left = [value for value in old if value and f"'{value}'" in cfg.pretty_text]
    assert left == []
    assert cfg.model.checkpoint == '/new/checkpoint'
    assert cfg.train_dataloader.collate_fn.preprocessor == '/new/checkpoint'


def test_dumped_config_reads_back_the_same(config_path, tmp_path):
    cfg = Config.fromfile(config_path)
    cfg.dump(tmp_path / 'config.py')
    assert Config.fromfile(tmp_path / 'config.py').to_dict() == cfg.to_dict()


def test_the_guide_s_settings(repo_root):
    cfg = Config.fromfile(str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel.py'))
    assert (cfg.beta, cfg.label_smoothing, cfg.lr, cfg.max_epochs, cfg.min_iou_gap) == (0.1, 0.0, 5e-6, 2, 0.05)
    assert cfg.strategy.zero_optimization == dict(stage=2, offload_optimizer=dict(device='cpu'))
    assert cfg.strategy.bf16 == dict(enabled=True)
    assert cfg.model.preference.beta == cfg.beta and cfg.model.preference.label_smoothing == cfg.label_smoothing


@pytest.mark.parametrize('content', ['model = dict(', 'raise RuntimeError("broken")', '_base_ = ["./missing.py"]'])
def test_broken_config_is_named(tmp_path, content):
    path = tmp_path / 'broken.py'
    path.write_text(content)
    with pytest.raises(InputError, match='broken.py'):
        read_config(str(path), [])


def test_help_needs_no_heavy_import(repo_root):
    """tools/train.py --help must answer at once."""
    import subprocess
    import sys

    code = ('import sys; sys.argv = ["train.py", "--help"]\n'
            'from sa2va_dpo.commands.train import parse_args\n'
            'try: parse_args(["--help"])\nexcept SystemExit: pass\n'
            'assert not {"torch", "mmengine", "transformers"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], cwd=repo_root, check=True, stdout=subprocess.DEVNULL)
