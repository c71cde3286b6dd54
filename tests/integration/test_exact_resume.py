"""An interrupted and resumed run is the uninterrupted one, bit for bit, with dropout and flips, on every strategy."""
import pytest
import torch

from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

OPTIONS = (
    'model.trainable.llm.dropout=0.1',
    'model.trainable.refinement=full',
    'cache=None',
    'train_cfg.val_interval=100',
    'default_hooks.checkpoint.interval=2',
)
KINDS = dict(
    single=([], 1),
    workers=(['train_dataloader.num_workers=2'], 1),
    deepspeed=(['deepspeed_on_cpu=True'], 1),
    deepspeed_two_processes=(['deepspeed_on_cpu=True'], 2),
    ddp=([], 2))


@pytest.mark.parametrize('kind', KINDS)
def test_two_and_two_steps_are_four(cli, run_config, tmp_path, kind):
    options, processes = KINDS[kind]

    def train(name, iters, *more):
        launcher = ['--launcher', 'pytorch'] if processes > 1 else []
        cli(
            'tools/train.py',
            run_config,
            '--work-dir',
            tmp_path / name,
            *launcher,
            *more,
            '--cfg-options',
            *OPTIONS,
            *options,
            f'train_cfg.max_iters={iters}',
            processes=processes,
        )
        return read_trained_tensors(tmp_path / name / f'iter_{iters}.pth')

    whole = train('whole', 4)
    half = train('parts', 2)
    resumed = train('parts', 4, '--resume')
    assert whole.keys() == resumed.keys() and all(
        any(part in name for name in whole) for part in ('lora_', 'refinement.'))
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert different == []
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
