"""Logged values are means over the window and over all processes, and the alarm is one decision."""
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from sa2va_dpo.engine.log_processor import GUIDE_METRICS, RunLogProcessor, grouped


def runner_with(name: str, **scalars) -> SimpleNamespace:
    """What a log processor looks at, after as many steps as there are values."""
    hub = MessageHub.get_instance(name)
    for key, values in scalars.items():
        for value in values:
            hub.update_scalar(key.replace('__', '/'), value)
    steps = max(map(len, scalars.values()))
    return SimpleNamespace(message_hub=hub, iter=steps - 1, max_iters=100, _train_loop=object(),
                           val_loop=SimpleNamespace(dataloader=[0]), train_loop=SimpleNamespace(dataloader=[0]))


def test_every_training_value_is_the_mean_of_the_window():
    runner = runner_with('window', train__accuracy=[9, 9, 0.0, 0.5, 1.0], train__margin=[9, 9, 1, 2, 6.0],
                         train__lr=[5, 4, 3, 2, 1.0], train__loss=[0, 0, 3, 3, 6.0])
    tag, line = RunLogProcessor(window_size=3).get_log_after_iter(runner, 4, 'train')
    assert (
        tag['accuracy'] == pytest.approx(0.5)
        and tag['margin'] == pytest.approx(3)
        and tag['train/loss'] == pytest.approx(4)
    )
    assert tag['optim/lr'] == 1.0, 'the learning rate is the present one'
    assert 'accuracy: 0.5000' in line and 'margin: 3.0000' in line


def test_validation_is_that_of_this_moment():
    runner = runner_with('val', val__dice=[0.2, 0.8], val__loss_like=[1, 5.0])
    tag, _ = RunLogProcessor(window_size=3).get_log_after_epoch(runner, 1, 'val')
    assert tag == {'val/dice': 0.8, 'val/loss_like': 5.0}


def test_names_are_grouped_and_the_guide_s_stay():
    assert grouped({name: 0.0 for name in GUIDE_METRICS}, 'train') == {name: 0.0 for name in GUIDE_METRICS}
    assert set(
        grouped(dict(loss=0, supervised_loss=0, lr=0, base_lr=0, grad_norm=0, time=0, memory=0, iter=3), 'train')
    ) == {
        'train/loss',
        'train/supervised_loss',
        'optim/lr',
        'optim/base_lr',
        'optim/grad_norm',
        'optim/time',
        'optim/memory',
    }
    assert set(grouped({'dice': 0, 'pairs/accuracy': 0, 'reference/dice': 0}, 'val')) == {
        'val/dice', 'val/pairs/accuracy', 'reference/dice'}
    assert set(grouped(dict(dice=0), 'test')) == {'test/dice'}


TWO = f'''
import json, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from types import SimpleNamespace
import torch.distributed as dist
from test_log_processor import runner_with
from sa2va_dpo.engine.hooks import PreferenceAlarmHook
from sa2va_dpo.engine.log_processor import RunLogProcessor

dist.init_process_group('gloo')
rank = dist.get_rank()
more = dict(train__only_here=[4.0]) if rank else {{}}
logged = runner_with('two', train__accuracy=[1.0, 0.0] if rank else [0.0, 0.0], train__loss=[2.0 + rank] * 2,
                     train__lr=[1e-3] * 2, **more)
tag, line = RunLogProcessor(window_size=2).get_log_after_iter(logged, 1, 'train')

runner = SimpleNamespace(iter=0, work_dir=sys.argv[1], logger=SimpleNamespace(error=lambda text: None),
                         visualizer=SimpleNamespace(add_scalar=lambda *a: None),
                         train_loop=SimpleNamespace(stop_training=False))
hook = PreferenceAlarmHook(stop=True)
hook.after_val_epoch(runner, dict(dice=0.6))
for accuracy, dice in zip([(0.9, 0.3), (0.1, 0.4)][rank], (0.6, 0.3)):
    runner.iter += 1
    hook.after_train_iter(runner, 0, outputs=dict(accuracy=accuracy))
    hook.after_val_epoch(runner, dict(dice=dice))
answer = dict(rank=rank, tag=tag, line=line, alarms=hook.alarms, stop=runner.train_loop.stop_training,
              first=hook.first_accuracy)
open(sys.argv[1] + f'/{{rank}}.json', 'w').write(json.dumps(answer))
dist.destroy_process_group()
'''


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory) -> list[dict]:
    """What two gloo processes with different values log and decide."""
    folder = tmp_path_factory.mktemp('two')
    (folder / 'two.py').write_text(TWO)
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
                          str(folder / 'two.py'), str(folder)], capture_output=True, text=True, env=env, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in (0, 1)]


def test_two_processes_log_their_mean(two_processes):
    for answer in two_processes:
        assert answer['tag']['accuracy'] == pytest.approx(0.25) and answer['tag']['train/loss'] == pytest.approx(2.5)
        assert answer['tag']['optim/lr'] == pytest.approx(1e-3)
        assert 'accuracy: 0.2500' in answer['line']
    assert [answer['tag'].get('train/only_here') for answer in two_processes] == [None, 4.0]


def test_two_processes_decide_on_one_alarm(two_processes):
    """Training accuracies 0.9 then 0.3, and 0.1 then 0.4: the second process alone would raise the alarm."""
    for answer in two_processes:
        assert answer['first'] == pytest.approx(0.5)
        # Mean accuracy 0.5, then 0.35: below the first and below one half, so the metrics say it themselves.
        assert answer['alarms'] == [] and not answer['stop']
