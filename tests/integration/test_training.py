"""tools/train.py on the real runner: what a run leaves behind, exact resume, every strategy."""
import json

import pytest
import torch

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

# Two runs of one config differ by rounding (1e-8 after two steps, amplified by AdamW where a gradient is nearly zero);
# memory alignment decides. A skipped or repeated batch is found by the counters, to which no rounding applies.
ROUNDING = 2e-3

GUIDE_METRICS = ('dpo_loss', 'accuracy', 'margin', 'chosen_rewards', 'rejected_rewards')


@pytest.fixture(scope='module')
def finished_run(run_config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('run')
    assert train_main([str(run_config), '--work-dir', str(work_dir)]) == 0
    return work_dir


def largest_difference(first, second) -> float:
    a, b = read_trained_tensors(first), read_trained_tensors(second)
    assert a.keys() == b.keys() and a
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def test_run_leaves_what_the_guide_lists(finished_run):
    for name in ('iter_2.pth', 'iter_4.pth', 'config.py', 'val_history.json'):
        assert (finished_run / name).is_file(), name
    assert list(finished_run.glob('best_dice_iter_*.pth'))
    assert list(finished_run.glob('*/*.log')) and list(finished_run.glob('*/vis_data'))


def test_the_start_is_validated_before_the_first_step(finished_run):
    history = json.loads((finished_run / 'val_history.json').read_text())
    assert [entry['iter'] for entry in history] == [0, 2, 4]
    assert all({'dice', 'iou', 'cldice'} <= set(entry) for entry in history)


def test_the_five_metrics_of_the_guide_are_in_tensorboard(finished_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [vis_data] = finished_run.glob('*/vis_data')
    events = EventAccumulator(str(vis_data)).Reload()
    scalars = events.Tags()['scalars']
    for name in (*GUIDE_METRICS, 'val/dice', 'val/iou', 'train/loss', 'train/supervised_loss', 'optim/lr',
                 'optim/grad_norm', 'reference/dice'):
        assert name in scalars, f'{name} not in {scalars}'
    assert [event.step for event in events.Scalars('val/dice')] == [0, 2, 4]
    assert events.Scalars('train/preference_nll')[0].value == pytest.approx(0.693147, abs=1e-4), (
        'policy == reference at step 1'
    )


def test_training_moves_the_policy(finished_run):
    assert largest_difference(finished_run / 'iter_2.pth', finished_run / 'iter_4.pth') > 1e-5


def test_resume_is_exact(run_config, finished_run, tmp_path):
    argv = [str(run_config), '--work-dir', str(tmp_path)]
    # Interrupted after the checkpoint of step 2, which a new best mask score makes mmengine write twice.
    train_main([*argv, '--cfg-options', 'train_cfg.max_iters=2'])
    train_main([*argv, '--resume'])
    assert largest_difference(tmp_path / 'iter_4.pth', finished_run / 'iter_4.pth') < ROUNDING
    resumed, straight = (json.loads((path / 'val_history.json').read_text()) for path in (tmp_path, finished_run))
    assert [entry['iter'] for entry in resumed] == [0, 2, 4]
    for a, b in zip(resumed, straight):
        assert a['dice'] == pytest.approx(b['dice'], abs=5e-3)


def test_counters_are_exact_after_a_new_best(finished_run):
    """mmengine 0.10.7 writes iter_2 a second time when it is the best so far, with a counter of 3."""
    from sa2va_dpo.models.checkpoint import weights_only_loads

    history = json.loads((finished_run / 'val_history.json').read_text())
    assert history[1]['dice'] > 0, 'the case is only met when step 2 is a best'
    for step in (2, 4):
        with weights_only_loads():
            assert torch.load(finished_run / f'iter_{step}.pth')['meta']['iter'] == step


def test_saved_config_starts_the_same_run(finished_run, tmp_path):
    train_main([str(finished_run / 'config.py'), '--work-dir', str(tmp_path)])
    assert largest_difference(tmp_path / 'iter_4.pth', finished_run / 'iter_4.pth') < ROUNDING


@pytest.mark.parametrize('more', [[], ['model.activation_checkpointing.llm=True']], ids=['plain', 'checkpointed'])
def test_a_run_with_compiled_layers_is_the_same_run(run_config, finished_run, tmp_path, more):
    torch._dynamo.reset()
    train_main([str(run_config), '--work-dir', str(tmp_path), '--cfg-options', 'train_cfg.max_iters=2',
                'model.compile.backend=aot_eager', *more])
    torch._dynamo.reset()
    assert largest_difference(tmp_path / 'iter_2.pth', finished_run / 'iter_2.pth') < ROUNDING
    [log] = tmp_path.glob('*/*.log')
    assert log.read_text().count('compile: layers 2 of llm, 1 of vision, 5 of sam2_encoder, by aot_eager') == 1


def test_deepspeed_and_compiled_layers_on_cpu(cli, run_config, tmp_path):
    cli('tools/train.py', run_config, '--work-dir', tmp_path, '--cfg-options', 'deepspeed_on_cpu=True',
        'train_cfg.max_iters=2', 'model.compile.backend=aot_eager', 'model.compile.parts=[llm]')
    tensors = read_trained_tensors(tmp_path / 'iter_2.pth')
    assert tensors and all(torch.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize('processes', [1, 2])
def test_deepspeed_zero2_on_cpu(cli, run_config, tmp_path, processes):
    launcher = ['--launcher', 'pytorch'] if processes > 1 else []
    run = cli('tools/train.py', run_config, '--work-dir', tmp_path, *launcher, '--cfg-options',
              'deepspeed_on_cpu=True', 'train_cfg.max_iters=2', processes=processes)
    assert 'DeepSpeed ZeRO-2, bf16, on CPU over gloo' in run.stdout + run.stderr
    assert (tmp_path / 'iter_2.pth').is_dir()
    shards = list((tmp_path / 'iter_2.pth').glob('*optim_states.pt'))
    assert len(shards) == processes
    tensors = read_trained_tensors(tmp_path / 'iter_2.pth')
    assert tensors and all(t.dtype == torch.float32 for t in tensors.values())


def test_ddp_on_cpu(cli, run_config, tmp_path):
    run = cli('tools/train.py', run_config, '--work-dir', tmp_path, '--launcher', 'pytorch', '--cfg-options',
              'train_cfg.max_iters=2', processes=2)
    assert 'DDPStrategy over gloo in float32 on CPU, 2 processes' in run.stdout + run.stderr
    assert (tmp_path / 'iter_2.pth').is_file()


@pytest.mark.parametrize('argv, words', [
    (['no_such_config.py'], 'no such config file'),
    (['{config}', '--cfg-options', 'train_cfg.max_iters'], 'must be KEY=VALUE'),
    (['{config}', '--checkpoint', 'no/such/dir'], 'no/such/dir'),
    (['{config}', '--data-root', 'no/such/data'], 'no/such/data'),
    (['{config}', '--resume', 'no/such/iter_1.pth'], 'no/such/iter_1.pth'),
    (['{config}', '--cfg-options', 'model.preference.loss_type=dpo'], 'loss_type'),
])
def test_bad_input_is_one_line(cli, run_config, tmp_path, argv, words):
    argv = [str(run_config) if part == '{config}' else part for part in argv]
    run = cli('tools/train.py', argv[0], '--work-dir', tmp_path / 'w', *argv[1:], code=None)
    lines = [line for line in run.stderr.splitlines() if line.startswith('error: ')]
    assert run.returncode == 2, run.stderr[-2000:]
    assert len(lines) == 1 and words in lines[0]
    assert 'Traceback' not in run.stderr
