"""The alarm for preferences learnt at the cost of the masks."""
from types import SimpleNamespace

import pytest

from projects.sa2va.engine.hooks import PreferenceAlarmHook


class Runner(SimpleNamespace):
    def __init__(self):
        messages = []
        super().__init__(iter=0, messages=messages, logger=SimpleNamespace(error=messages.append),
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


def test_accuracy_up_and_dice_down_raises_the_alarm():
    hook = PreferenceAlarmHook(min_drop=0.02)
    runner = run(hook, 0.6, [(0.5, 0.61), (0.8, 0.40)])
    assert hook.alarms == [6] and len(runner.messages) == 1
    assert 'from 0.6000 to 0.4000' in runner.messages[0] and not runner.train_loop.stop_training


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
