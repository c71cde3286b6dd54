"""From a config file and overrides to the settings of a run (docs/training.md, "Settings").

Three callers: the commands read a file with :func:`read_config`; the runner calls :func:`derive` on whatever config it
is built from; the configs of this package end with :func:`complete`, so that mmengine alone reads the same settings.
"""
from __future__ import annotations

import ast
import copy
import os
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Iterable

from mmengine.config import Config, ConfigDict, DictAction

from sa2va_dpo.common.bundled import config_names, config_path
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_text
from sa2va_dpo.datasets.annotations import VAL_FILE, has_records

from .facts import FACTS, MISSING, get, put, settle, spell, unsettled
from .settings import TOP_LEVEL, check_option

VALIDATION_HOOKS = ('PairValidationHook', 'StartValidationHook', 'PreferenceAlarmHook', 'EarlyStoppingHook')
# Values that are taken as they are written, spaces and commas included.
_PATHS = (
    'checkpoint',
    'data_root',
    'preprocessor',
    'work_dir',
    'load_from',
    'dir',
    'ann_file',
    'unlabelled',
    'unlabelled_gt',
    'predictions',
)


def read_config(path: str, options: Iterable[str] = (), **flags) -> Config:
    """The settled config of a file with overrides.

    Args:
        path: a config file; one of this package's may be named from anywhere, as in the repository or by its bare name.
        options: ``KEY=VALUE`` of ``--cfg-options``: a fact's name (``beta=0.2``) or any setting by its dotted path.
        flags: facts set by a command-line flag of their own (``data_root='...'``); None where the flag was not given.

    Raises:
        InputError: the file cannot be read, an option has no ``=``, is read by nothing or contradicts another one, or a
            setting is bad.
    """
    path = config_path(path)
    cfg = _settled(path)
    asked: dict[str, Any] = {}
    facts = tuple(fact.name for fact in FACTS if fact.live(cfg))
    for spelled, key, value in _parsed(options, flags):
        check_option(cfg, key, spelled, facts)
        if key in asked and asked[key] != value:
            raise InputError(f'--cfg-options {spelled}: {key} is set to {asked[key]!r}, too: give one of them')
        _check_kind(cfg, key, spelled, value)
        asked[key] = value
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(copy.deepcopy(asked))
    except (TypeError, LookupError, AssertionError, AttributeError, ValueError) as error:
        raise InputError(f'--cfg-options {" ".join(asked)}: {error}') from None
    settle(cfg, before, lambda where: any(_covers(key, where) for key in asked), command_line=True)
    check(cfg, path)
    return cfg


def derive(cfg: Config) -> list[str]:
    """Settle a config, however it was changed since it was read, check it and fit it to its data, in place.

    To be called just before a runner is built. Calling it again changes nothing.

    Returns:
        Lines for the log.

    Raises:
        InputError: see :func:`read_config`.
    """
    path = cfg.filename
    if path and Path(path).is_file():
        raw = _read(path)
        settle(cfg, _settled(path), lambda where: get(cfg, where) != get(raw, where))
    else:
        settle(cfg, {}, lambda where: get(cfg, where) is not MISSING)
    check(cfg, str(path))
    return [*_without_validation(cfg), *_unread(cfg)]


def complete(base: ConfigDict, own: dict[str, Any]) -> None:
    """The last line of a config file of this package, ``complete(_base_, globals())``.

    Writes into the file's names what follows from them and from its bases: mmengine reads a file on its bases and
    nothing else, so that ``checkpoint = ...`` alone would not reach the model.
    """
    mine = {name: value for name, value in own.items()
            if not name.startswith('_') and not isinstance(value, (ModuleType, FunctionType))}
    cfg = Config(copy.deepcopy(dict(base)))
    cfg.merge_from_dict(copy.deepcopy(mine))
    for where, value in settle(cfg, base, lambda where: get(mine, where) is not MISSING).items():
        # A list is replaced as a whole by whoever names it.
        for depth, key in enumerate(where):
            if isinstance(key, int) and get(own, where[:depth]) is MISSING:
                put(own, where[:depth], copy.deepcopy(get(cfg, where[:depth])))
        put(own, where, value)


def check(cfg: Config, path: str) -> None:
    """Check what can be checked without the checkpoint.

    Raises:
        InputError: naming the config and the setting.
    """
    from sa2va_dpo import plugins  # noqa: F401  (a config without custom_imports works as well)
    from sa2va_dpo.models.run_model import check_model

    if not isinstance(cfg.get('model'), dict):
        raise InputError(f'{path}: no model: derive the config from one in projects/sa2va/configs')
    try:
        check_model(cfg.model)
    except ValueError as error:
        raise InputError(f'{path}: model.{error}') from None


def check_settled(cfg: Config) -> None:
    """For those who build a runner from a config that nobody settled.

    Raises:
        InputError: a name at the top is not what its place says, so that it would be ignored.
    """
    for difference in unsettled(cfg):
        raise InputError(f'{cfg.filename}: {difference}: train with tools/train.py or xtuner train, end the config '
                         f'with complete(_base_, globals()), or call sa2va_dpo.engine.config.derive(cfg) before the '
                         f'runner is built')


def save(cfg: Config, path: str | os.PathLike) -> None:
    """Write what runs, and nothing else, as a config that starts the same run."""
    names = {*TOP_LEVEL, *(fact.name for fact in FACTS if fact.live(cfg))} - {'launcher', 'resume'}
    if cfg.get('resume') or cfg.get('load_from') is None:
        names.discard('load_from')
    kept = Config({name: value for name, value in cfg.to_dict().items() if name in names})
    write_text(path, kept.pretty_text)


def test_source(cfg: Config) -> tuple[dict, str]:
    """The data set that a test scores, and one line that says what it is.

    ``test_annotations.json`` of the data root; where there is none, the validation images, which chose the checkpoint.

    Raises:
        InputError: there are neither.
    """
    test = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset')
    if test is None:
        raise InputError(f'{cfg.filename}: no test_dataloader: name the images with --images and --gt')
    val = (cfg.get('val_dataloader') or {}).get('dataset')
    test, source = copy.deepcopy(test), test.get('source') or {}
    if source.get('type') != 'AnnotatedMasks':
        same = val is not None and val.get('source') == source
        used = ', which validation used, too: it chose the checkpoint' if same else ''
        return test, f'images: the data set of the config{used}'
    path = Path(source.data_root) / source.get('ann_file', VAL_FILE)
    if has_records(path):
        return test, f'images: {path}, held out from training and validation'
    # Beside the test images: a config without validation names no other place.
    fallback = path.with_name(((val or {}).get('source') or {}).get('ann_file', VAL_FILE))
    if not has_records(fallback):
        raise InputError(f'{path}: no test images, and no validation images in {fallback}: make them with '
                         f'scripts/generate_dpo_dataset.py (--test_fraction, --val_fraction), or name others with '
                         f'--images and --gt')
    test.source.ann_file = fallback.name
    return test, (f'{path}: no test images, so the validation images of {fallback} are scored: these images chose the '
                  f'checkpoint')


# ---- reading -------------------------------------------------------------------------------------------------------
def _read(path: str) -> Config:
    """As mmengine reads it; raises InputError naming the file."""
    if not Path(path).is_file():
        raise InputError(f'{path}: no such config file: give a path, or one of {", ".join(config_names())}')
    try:
        return Config.fromfile(path)
    except InputError:
        raise
    except Exception as error:  # a config is Python: whatever it raises is about this file
        raise InputError(f'{path}: cannot be read as a config: {error}') from error


def _settled(path: str) -> Config:
    """The config of a file in which every fact holds, whatever level of its bases set it in whichever spelling.

    mmengine's reading of the file and of its bases tell together what this file itself set.
    """
    cfg, raw_base, base = _read(path), {}, {}
    for name in _base_files(path):
        raw_base.update(_read(name)._cfg_dict.to_dict())
        base.update(_settled(name)._cfg_dict.to_dict())
    raw = copy.deepcopy(cfg)
    try:
        settle(cfg, base, lambda where: get(raw, where) is not MISSING and get(raw, where) != get(raw_base, where))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return cfg


def _base_files(path: str) -> list[str]:
    """Files that a config names in ``_base_``; those of other packages (``package::file``) are left to mmengine."""
    if Path(path).suffix != '.py':
        from mmengine.fileio import load

        named = load(path).get('_base_', [])
    else:
        named = []
        for node in ast.parse(Path(path).read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
                named = ast.literal_eval(node.value)
    named = [named] if isinstance(named, str) else named
    return [str(Path(path).parent / name) for name in named if '::' not in name]


def _parsed(options: Iterable[str], flags: dict[str, Any]) -> Iterable[tuple[str, str, Any]]:
    """(as the user wrote it, dotted path, value) of every override."""
    for name, value in flags.items():
        if value is not None:
            yield f'{name}={value}', name, value
    for option in options:
        key, equals, text = option.partition('=')
        if not equals or not key:
            raise InputError(f'--cfg-options {option}: must be KEY=VALUE')
        if key.rpartition('.')[2] in _PATHS and text != 'None':
            yield option, key, text
            continue
        try:
            yield option, key, DictAction._parse_iterable(text)
        except AssertionError as error:
            raise InputError(f'--cfg-options {option}: {error}') from None


def _check_kind(cfg: Config, key: str, spelled: str, value) -> None:
    """Raises InputError where an option puts a number, or at the top any text, in the place of a section."""
    old = get(cfg, tuple(int(part) if part.isdecimal() else part for part in key.split('.')))
    section = isinstance(old, dict) and value is not None and not isinstance(value, dict)
    if section and ('.' not in key or not isinstance(value, str)):
        raise InputError(f'--cfg-options {spelled}: {key} is a section with settings of its own: set one of '
                         f'{", ".join(f"{key}.{name}" for name in list(old)[:4])}')


def _covers(key: str, where: tuple) -> bool:
    """Whether an override of ``key`` writes the setting at ``where``, or a part of it."""
    spelled = spell(where)
    return spelled == key or spelled.startswith(key + '.') or key.startswith(spelled + '.')


# ---- fitting to the data -------------------------------------------------------------------------------------------
def _without_validation(cfg: Config) -> list[str]:
    """Switch everything of validation off where there are no validation images, or the user wants none."""
    loader = cfg.get('val_dataloader')
    if loader is not None:
        source = (loader.get('dataset') or {}).get('source') or {}
        if source.get('type') != 'AnnotatedMasks' or not Path(source.get('data_root', '')).is_dir():
            return []
        name = source.get('ann_file', VAL_FILE)
        # A file that the user named and that is missing is a mistake, which the data set reports.
        if name != VAL_FILE or has_records(Path(source.data_root) / name):
            return []
        reason = f'{Path(source.data_root) / name}: no validation images'
    else:
        reason = 'val_dataloader=None'
    before = copy.deepcopy(cfg.to_dict())
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') not in VALIDATION_HOOKS]
    if get(cfg, ('default_hooks', 'checkpoint', 'save_best')) is not MISSING:
        cfg.default_hooks.checkpoint.save_best = None
    if cfg.to_dict() == before:
        return []
    return [f'{reason}, so this run is not validated: no best checkpoint, no alarm, no early stopping']


def _unread(cfg: Config) -> list[str]:
    """A line for names at the top of a config that nothing reads: a helper of the file, or a spelling mistake."""
    import difflib

    known = {*TOP_LEVEL, *(fact.name for fact in FACTS)}
    lines = []
    for name in cfg:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            lines += [f'{cfg.filename}: nothing reads {name}: did you mean {near[0]}?'] if near else []
    return lines
