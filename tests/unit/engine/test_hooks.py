"""The alarm for preferences learnt at the cost of the masks."""
import json
from types import SimpleNamespace

import pytest

from sa2va_dpo.engine.hooks import PreferenceAlarmHook


@pytest.fixture(autouse=True)
def work_dir(tmp_path):
    Runner.folder = str(tmp_path)
    return tmp_path


class Runner(SimpleNamespace):
    folder = ''

    def __init__(self):
        messages, scalars = [], []
        super().__init__(iter=0, messages=messages, logger=SimpleNamespace(error=messages.append), work_dir=self.folder,
                         visualizer=SimpleNamespace(add_scalar=lambda *args: scalars.append(args)), scalars=scalars,
                         train_loop=SimpleNamespace(stop_training=False))


def run(hook, start_dice, intervals):
    """``intervals``: (accuracy, dice) of each validation after the start."""
    runner = Runner()
    hook.after_val_epoch(runner, dict(dice=start_dice))
    for accuracy, dice in intervals:
        for _ in range(3):
            runner.iter += 1
            hook.after_train_iter(runner, runner.iter, outputs=dict(accuracy=accuracy))
        hook.after_val_epoch(runner, dict(dice=dice))
    return runner


def test_accuracy_up_and_dice_down_raises_the_alarm(work_dir):
    hook = PreferenceAlarmHook(min_drop=0.02)
    runner = run(hook, 0.6, [(0.5, 0.61), (0.8, 0.40)])
    assert [alarm['iter'] for alarm in hook.alarms] == [6] and len(runner.messages) == 1
    assert json.loads((work_dir / 'alarms.json').read_text()) == hook.alarms
    assert hook.alarms[0]['pairs'] == 'training' and hook.alarms[0]['dice'] == 0.4
    assert runner.scalars == [('val/alarm', 0, 3), ('val/alarm', 1, 6)]
    assert 'from 0.6000 to 0.4000' in runner.messages[0] and not runner.train_loop.stop_training


def test_validation_pairs_count_where_there_are_any():
    # Training accuracy falls, accuracy on the validation pairs rises while Dice falls: only the latter is looked at.
    hook, runner = PreferenceAlarmHook(), Runner()
    hook.after_val_epoch(runner, {'dice': 0.6, 'pairs/accuracy': 0.0})
    for step, (training, validation, dice) in enumerate([(0.9, 0.5, 0.6), (0.1, 0.7, 0.3)], 1):
        runner.iter = step
        hook.after_train_iter(runner, step, outputs=dict(accuracy=training))
        hook.after_val_epoch(runner, {'dice': dice, 'pairs/accuracy': validation})
    assert [alarm['pairs'] for alarm in hook.alarms] == ['validation']
    assert 'accuracy on the validation pairs is 0.70 (0.50 at first)' in runner.messages[0]


def test_a_resumed_run_remembers_the_start_and_its_alarms(work_dir):
    history = [{'iter': 0, 'dice': 0.6, 'pairs/accuracy': 0.0}, {'iter': 1, 'dice': 0.6, 'pairs/accuracy': 0.5}]
    (work_dir / 'val_history.json').write_text(json.dumps(history))
    (work_dir / 'alarms.json').write_text(json.dumps([dict(iter=1), dict(iter=9)]))
    hook, runner = PreferenceAlarmHook(), Runner()
    runner.iter = 2
    hook.before_train(runner)
    hook.after_val_epoch(runner, {'dice': 0.2, 'pairs/accuracy': 0.5})
    assert [alarm['iter'] for alarm in hook.alarms] == [1, 2]


def test_stop_ends_the_training():
    assert run(PreferenceAlarmHook(stop=True), 0.6, [(0.9, 0.1)]).train_loop.stop_training


@pytest.mark.parametrize('intervals', [
    [(0.5, 0.61), (0.9, 0.65)],   # both rise
    [(0.5, 0.595), (0.9, 0.59)],  # a fall within the noise
    [(0.8, 0.60), (0.4, 0.30)],   # the preferences are lost, too: the metrics say it themselves
])
def test_no_false_alarm(intervals):
    hook = PreferenceAlarmHook(min_drop=0.02)
    assert run(hook, 0.6, intervals).messages == [] and hook.alarms == []


def test_metrics_without_dice_are_left_alone():
    hook = PreferenceAlarmHook()
    hook.after_val_epoch(Runner(), dict(loss=1.0))
    assert hook.start_dice is None
