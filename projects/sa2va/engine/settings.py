"""Which settings something reads, at any depth of a config: from the signatures of what a config builds."""
from __future__ import annotations

import difflib
import inspect
from dataclasses import fields
from functools import lru_cache

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.losses.objective import PreferenceConfig
from sa2va_dpo.models.trainable import PARTS
from sa2va_dpo.models.view_geometry import ViewGeometry

from .round_settings import RoundSettings

# What FlexibleRunner.from_cfg reads, then what this package reads.
_OF_RUNNER = (
    'model',
    'work_dir',
    'experiment_name',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'val_dataloader',
    'val_evaluator',
    'val_cfg',
    'test_dataloader',
    'test_evaluator',
    'test_cfg',
    'strategy',
    'auto_scale_lr',
    'default_hooks',
    'custom_hooks',
    'data_preprocessor',
    'load_from',
    'resume',
    'launcher',
    'env_cfg',
    'log_processor',
    'log_level',
    'visualizer',
    'default_scope',
    'randomness',
)
TOP_LEVEL = (*_OF_RUNNER, 'runner_type', 'custom_imports', 'cache', 'rounds', 'deepspeed_on_cpu', 'trackers')

_LORA = ('mode', 'r', 'alpha', 'dropout', 'targets', 'lr_mult')
# Dicts without a type, by their path.
_FIXED: dict[tuple, tuple[str, ...]] = {
    ('randomness',): ('seed', 'diff_rank_seed', 'deterministic'),
    ('env_cfg',): ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    ('default_hooks',): ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint',
                         'validation_images', 'hparams'),
    ('optim_wrapper', 'clip_grad'): ('type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'clip_value'),
    ('auto_scale_lr',): ('enable', 'base_batch_size'),
    ('custom_imports',): ('imports', 'allow_failed_imports'),
    ('trackers',): ('wandb', 'mlflow', 'swanlab'),
    ('rounds', 'guard'): ('metric', 'patience', 'tolerance'),
    ('view',): tuple(field.name for field in fields(ViewGeometry)),
}
_HOLDERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Read beside the arguments of the class that is built.
_BESIDE = {
    'optim_wrapper': ('constructor', 'paramwise_cfg'),
    'default_hooks': ('priority',),
    'custom_hooks': ('priority',),
    'param_scheduler': ('convert_to_iter_based',),
}


def known_names(where: tuple, node) -> tuple[str, ...] | None:
    """The names that something reads in the dict ``node`` that stands at ``where``; None where any name may stand.

    Names come from the signature of the class that ``node['type']`` means, and its bases' while it passes keywords on.
    """
    if where in _FIXED:
        return _FIXED[where]
    if where[-1:] == ('preference',) and where[0] == 'model':
        return ('type', *(field.name for field in fields(PreferenceConfig)))
    if where[:2] == ('model', 'trainable'):
        return tuple(PARTS) if len(where) == 2 else _LORA
    if where == ('model', 'activation_checkpointing'):
        return 'llm', 'vision', 'sam2_encoder'
    if where == ('model', 'compile'):
        return 'parts', 'backend', 'mode'
    if where == ('cache',):
        from sa2va_dpo.caching.prepare import SETTINGS

        return tuple(SETTINGS)
    if where == ('rounds',):
        return tuple(field.name for field in fields(RoundSettings))
    if len(where) == 1 and where[0] in _HOLDERS:
        return _of_dataloader()
    if where == ('strategy', 'zero_optimization'):
        return _of_zero()
    if not isinstance(node, dict) or 'type' not in node:
        return None
    names = _of_class(node['type']) if isinstance(node['type'], str) else arguments(node['type'])
    if names is None:
        return None
    beside = _BESIDE.get(where[0], ()) if len(where) <= 2 else ()
    return ('type', '_scope_', *names, *beside)


def arguments(thing) -> tuple[str, ...] | None:
    """Names that a class or function takes; None where keywords of any name are taken."""
    owners = [c.__init__ for c in thing.__mro__ if '__init__' in vars(c)] if inspect.isclass(thing) else [thing]
    names: list[str] = []
    for owner in owners:
        try:
            parameters = inspect.signature(owner).parameters.values()
        except (TypeError, ValueError):
            return None
        names += [p.name for p in parameters
                  if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != 'self']
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return tuple(dict.fromkeys(names))
    # A function with **kwargs takes anything; a chain of classes ends in object, which takes nothing.
    return tuple(dict.fromkeys(names)) if inspect.isclass(thing) else None


@lru_cache(maxsize=None)
def _of_class(name: str) -> tuple[str, ...] | None:
    thing = registered(name)
    return None if thing is None else arguments(thing)


def registered(name: str):
    """The class or function registered in mmengine under ``name``; None where there is none."""
    from mmengine import registry

    from sa2va_dpo import plugins  # noqa: F401  (registers ours)

    for attribute in vars(registry).values():
        if isinstance(attribute, registry.Registry):
            attribute.import_from_location()
            found = attribute.module_dict.get(name.rpartition('.')[2])
            if found is not None:
                return found
    return None


@lru_cache(maxsize=None)
def _of_dataloader() -> tuple[str, ...]:
    from torch.utils.data import DataLoader

    own = ('num_batch_per_epoch', 'worker_init_fn', 'pin_memory')
    return tuple(dict.fromkeys((*arguments(DataLoader), *own)))


@lru_cache(maxsize=None)
def _of_zero() -> tuple[str, ...] | None:
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    except ImportError:
        return None
    return tuple(name for key, field in DeepSpeedZeroConfig.model_fields.items()
                 for name in (key, field.alias) if name)


def check_option(cfg, key: str, spelled: str, facts: tuple[str, ...]) -> None:
    """Refuse an override that nothing would read.

    Args:
        cfg: the config that it is laid on.
        key: dotted path.
        spelled: the option as the user wrote it.
        facts: names at the top that reach a place in this config, beside ``TOP_LEVEL``.

    Raises:
        InputError: naming the nearest setting that is read.
    """
    settings = cfg.to_dict()
    node, where = settings, ()
    for part in key.split('.'):
        if isinstance(node, (list, tuple)):
            if not part.isdecimal() or int(part) >= len(node):
                raise InputError(f'--cfg-options {spelled}: {".".join(map(str, where))} is a list of {len(node)}: '
                                 f'name an item by its position, from 0')
            node, where = node[int(part)], (*where, int(part))
            continue
        if part == '_delete_':
            return
        names = known_names(where, node) if where else (*TOP_LEVEL, *facts)
        if names is None and not isinstance(node, dict):
            return
        if names is not None and part not in names or names is None and part not in node and where and not _free(where):
            raise InputError(f'--cfg-options {spelled}: nothing reads {".".join(map(str, (*where, part)))}: '
                             f'{_nearest(settings, key, where, part, names or tuple(node))}')
        node, where = node.get(part) if isinstance(node, dict) else None, (*where, part)


def _free(where: tuple) -> bool:
    """Dicts that other libraries read by rules of their own, and those whose keys are data."""
    return where[0] in ('strategy', 'env_cfg', 'visualizer') or where[-1] in ('styles', 'paramwise_cfg')


def _nearest(settings: dict, key: str, where: tuple, part: str, names: tuple[str, ...]) -> str:
    paths = list(_paths(settings))
    deeper = [path for path in paths if path.endswith(f'.{key}')]
    if deeper:
        return f'did you mean {deeper[0]}?'
    beside = difflib.get_close_matches(part, names, n=1, cutoff=0.6) or [
        name for name in names if len(name) > 2 and (part.startswith(name) or name.startswith(part))]
    if beside:
        return f'did you mean {".".join(map(str, (*where, beside[0])))}?'
    everywhere = {path.rpartition('.')[2]: path for path in reversed(paths)}
    last = key.rpartition('.')[2]
    match = difflib.get_close_matches(last, everywhere, n=1, cutoff=0.8)
    if match:
        return f'did you mean {everywhere[match[0]]}?'
    shown = sorted(name for name in names if name not in ('type', '_scope_', 'self'))
    return 'there are ' + ', '.join(shown[:30])


def _paths(node, prefix: str = ''):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in items:
        yield f'{prefix}{name}'
        yield from _paths(value, f'{prefix}{name}.')
