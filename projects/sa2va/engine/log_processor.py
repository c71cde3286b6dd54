"""What a log line says: means over the window and over all processes, under names in groups."""
from __future__ import annotations

from typing import Mapping

from mmengine.dist import all_gather_object, get_world_size
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

# The guide's names stay as written, at the top; docs/training.md.
GUIDE_METRICS = ('dpo_loss', 'accuracy', 'margin', 'chosen_rewards', 'rejected_rewards')
_OPTIMISER = ('grad_norm', 'time', 'data_time', 'memory')


@LOG_PROCESSORS.register_module()
class RunLogProcessor(LogProcessor):
    """mmengine's LogProcessor, which shows one process's values, and of most of them the last one only.

    * Every training value is the mean over the last ``window_size`` iterations and over all processes; the learning
      rate is the present one.
    * Names in TensorBoard and in ``vis_data/*.json``: the guide's five as written; ``train/`` other training values,
      ``optim/`` learning rate, gradient norm, times and memory, ``val/`` validation, ``reference/`` the frozen
      reference.

    Args:
        window_size, by_epoch and the others: as in mmengine; the config's ``log_interval`` sets the window.
    """

    def __init__(self, window_size: int = 10, by_epoch: bool = False, **settings) -> None:
        settings.setdefault('mean_pattern', r'^(?!.*lr$).*')
        super().__init__(window_size=window_size, by_epoch=by_epoch, **settings)

    def _collect_scalars(self, custom_cfg, runner, mode: str, reserve_prefix: bool = False) -> dict:
        tag = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        if mode != 'train':
            # Validation metrics are those of all images already; mean over a window of validations they must not be.
            history = runner.message_hub.log_scalars
            return {name: history[f'{mode}/{name}'].current() if name not in ('time', 'data_time')
                    and f'{mode}/{name}' in history else value for name, value in tag.items()}
        return mean_over_processes(tag)

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        return grouped(tag, mode), line

    def get_log_after_epoch(self, runner, batch_idx: int, mode: str, with_non_scalar: bool = False) -> tuple[dict, str]:
        tag, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        return grouped(tag, mode), line


def mean_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Mean of every name over the processes that have it; the same on all of them, in this process's order."""
    if get_world_size() == 1:
        return dict(values)
    everyone = all_gather_object({name: float(value) for name, value in values.items()})
    means = {}
    for name in values:
        found = [process[name] for process in everyone if name in process]
        means[name] = sum(found) / len(found)
    return means


def grouped(tag: Mapping[str, float], mode: str) -> dict[str, float]:
    """The same values under the names that TensorBoard shows.

    Args:
        tag: name -> value, as mmengine names them.
        mode: ``'train'``, ``'val'`` or ``'test'``.
    """
    names = {}
    for name, value in tag.items():
        if name == 'iter':
            continue  # every value has its step
        if mode == 'train':
            group = '' if name in GUIDE_METRICS else 'optim/' if name in _OPTIMISER or name.endswith('lr') else 'train/'
        else:
            group = '' if name.startswith('reference/') else f'{mode}/'
        names[group + name] = value
    return names
