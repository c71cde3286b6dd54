"""The last releases through the real runner: trained, exported, predicting. SAM 3 needs the second stack."""
import numpy as np
import pytest
import torch

from sa2va_dpo.commands.export import main as export_main
from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.inference.predictor import Predictor
from sa2va_dpo.models.checkpoint import read_trained_tensors
from sa2va_dpo.models.checkpoint.store import read_safetensors

pytestmark = pytest.mark.integration


@pytest.mark.parametrize('name', ['llava', 'sam3'])
def test_trains_exports_and_predicts(name, request, run_config, tmp_path):
    checkpoint = request.getfixturevalue(f'{name}_checkpoint')
    options = ['--cfg-options', f'checkpoint={checkpoint}']
    assert train_main([str(run_config), '--work-dir', str(tmp_path / 'run'), *options, 'train_cfg.max_iters=2']) == 0
    trained = tmp_path / 'run/iter_2.pth'
    assert export_main([str(tmp_path / 'run/config.py'), str(trained), str(tmp_path / 'out')]) == 0
    before, after = (read_safetensors(path / 'model.safetensors') for path in (checkpoint, tmp_path / 'out'))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed and read_trained_tensors(trained)
    assert not any('memory' in key or 'maskmem' in key or 'lm_head' in key for key in changed)
    result = Predictor.from_pretrained(tmp_path / 'out').predict(np.full((96, 128, 3), 90, np.uint8), 'Vessel?')
    assert result.masks.shape == (1, 96, 128)
