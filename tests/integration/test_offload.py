"""A DeepSpeed run with an offloaded optimiser trains the same weights whether the GPU is asked once a step or for every
tensor."""
import pytest
import torch

from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

# tools/train.py with DeepSpeed's own methods left in their places.
AS_DEEPSPEED = '''
import sys
from sa2va_dpo.engine import offload
from sa2va_dpo.commands.train import main
asked = []
offload.ask_once = lambda optimizer: asked.append(optimizer.cpu_offload)
main(sys.argv[1:])
assert asked == [True], asked
'''


def test_the_same_weights_as_deepspeed_alone(cli, run_config, tmp_path):
    # A bound below every norm, so that each step depends on the norm of its gradient.
    options = ['--cfg-options', 'deepspeed_on_cpu=True', 'strategy.gradient_clipping=0.001', 'cache=None',
               'train_cfg.val_interval=100']
    cli('tools/train.py', run_config, '--work-dir', tmp_path / 'ours', *options)
    cli('-c', AS_DEEPSPEED, run_config, '--work-dir', tmp_path / 'theirs', *options)
    ours, theirs = (read_trained_tensors(tmp_path / name / 'iter_4.pth') for name in ('ours', 'theirs'))
    assert ours.keys() == theirs.keys() and any(bool(tensor.any()) for name, tensor in ours.items() if 'lora_B' in name)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
