"""``MODEL_CARD.md``: what an exported model was made from, what was measured of it, and what it is not for.

It names folders and files without where they are, and no image: a card is made to be handed on.
"""
from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import sa2va_dpo
from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_json, read_json
from sa2va_dpo.datasets.annotations import PAIRS_FILE, VAL_FILE
from sa2va_dpo.datasets.names import printable
from sa2va_dpo.engine.facts import get
from sa2va_dpo.engine.recipe import recipe
from sa2va_dpo.engine.run_folder import read_history
from sa2va_dpo.engine.run_record import DIGITS, KIND, plain
from sa2va_dpo.models.checkpoint import base_directory, base_hash, read_sam2_dims, read_view
from sa2va_dpo.models.view_geometry import ViewGeometry

from .comparison import Line, Mean, Verdict, read_lines, test_verdict
from .curves import taken_iteration
from .evidence import WEIGHTS
from .tested import RECORD_FILE, checkpoint_hash
from .text import ASSETS, Text

TEMPLATE = 'model_card.md'
# Settings of the recipe that say where something lies.
_PLACES = ('unlabelled', 'unlabelled_gt', 'predictions', 'members', 'labelled')
_PACKAGES = ('torch', 'transformers', 'mmengine', 'peft')


@dataclass(frozen=True)
class Tested:
    """Figures of a test of the exported model.

    Attributes:
        lines: one a metric.
        source: of the images, without where it is.
        verdict: the sentence above the table.
        chose: the images chose the checkpoint.
    """

    lines: Sequence[Line]
    images: int
    source: str
    verdict: str
    chose: bool = False


def run_card(cfg, checkpoint: str | Path, name: str, *, adapter: bool = False, base: str | Path | None = None,
             tested: Tested | None = None, origin: Sequence[str] = ()) -> str:
    """The card of an exported run.

    Args:
        cfg: the config that it is exported with; what the run itself has on record beside its checkpoint goes before.
        checkpoint: ``iter_N.pth`` or ``best_..._iter_N.pth``.
        name: of the exported directory.
        adapter: only what was trained is exported.
        base: what the run began with, where the config names a copy of it.
        origin: lines (Markdown) on where the data came from, before those that the config says.
    """
    checkpoint = Path(checkpoint)
    folder = checkpoint.resolve().parent
    record = _or_none(lambda: ownership.read_record(folder)) or {}
    identity = (record.get('identity') or {}) if record.get('kind') == KIND else {}
    config = identity.get('config') or plain(cfg)
    history = _or_none(lambda: read_history(folder)) or []
    step = taken_iteration(history, checkpoint.name)
    start = Path(cfg.model.checkpoint)
    used = get(config, ('train_dataloader', 'dataset', 'view'))
    view = ViewGeometry.of(used) if isinstance(used, Mapping) else read_view(start)
    kind = 'preference pairs' if 'preference' in (config.get('model') or {}) else 'masks (supervised)'
    form = 'An adapter for its base' if adapter else 'A whole checkpoint in the layout of its base'
    return _render(
        name,
        summary=f'Sa2VA vessel segmentation, trained on {kind}, from the checkpoint `{_plain(checkpoint.name)}` of the '
                f'run. {form}.',
        # Whatever size it looks at, the weight files are those of the base.
        base=_base(Path(base or start), identity.get('checkpoint')),
        looks=_looks(start, view),
        data=[*origin, *_data(config, identity.get('data') or {})],
        recipe=[(key, _plain(value)) for key, value in recipe(_without_paths(config))],
        steps=_steps(config, step, bool(identity)),
        validation=_validation(history, step),
        tested=tested,
        adapter=adapter,
    )


def untrained_card(directory: str | Path, name: str, *, base: str | Path, why: str, view: ViewGeometry | None = None,
                   tested: Tested | None = None, validation: str = '') -> str:
    """The card of a start that is handed on with its weights as they were, or of an adapter merged into its base.

    Args:
        directory: the whole checkpoint in whose layout it is handed on.
        base: the checkpoint that the user handed in.
        why: one or two sentences.
        view: how closely it looks; None: as ``directory`` states it.
        validation: a sentence.
    """
    return _render(name, summary=f'Sa2VA vessel segmentation. {why}', base=_base(Path(base), None),
                   looks=_looks(Path(directory), view or read_view(directory)), data=[], recipe=[], steps='',
                   validation=validation, tested=tested, adapter=False)


def read_tested(folder: Path, checkpoint: Path) -> Tested:
    """Figures of a finished test (``tools/test.py --work-dir``) of this very checkpoint.

    Raises:
        InputError: there is none, it is damaged, or it tested another checkpoint.
    """
    missing = 'give the --work-dir of a test of this checkpoint'
    record = read_json(folder / RECORD_FILE, 'test again', missing, kind=dict)
    if record.get('checkpoint_hash') != checkpoint_hash(checkpoint):
        raise InputError(f'--test {folder}: tested another checkpoint than {checkpoint}: test this one, or leave it '
                         'out')
    before = record.get('before')
    found, after, _ = read_lines(folder, None if before is None else Path(before), seed=record.get('seed', 0))
    source = record.get('source') or {}
    place = source.get('images_dir') or source.get('data_root') or source.get('type', 'images')
    return Tested(found, len(after), f'`{folder_name(str(place))}`',
                  sentence(test_verdict(found, len(after))), bool(record.get('chose')))


def sentence(verdict: Verdict) -> str:
    """A verdict in words."""
    return Text('en')(f'verdict_{verdict.kind}', **verdict.values)


# ---- sections -------------------------------------------------------------------------------------------------------
def _base(directory: Path, hashes: Mapping[str, str] | None) -> dict[str, Any]:
    return dict(name=_plain(directory.resolve().name), fingerprint=base_hash(directory)[:DIGITS],
                files=[(_plain(file), value) for file, value in (hashes or {}).items() if file.endswith(WEIGHTS)])


def _looks(checkpoint: Path, view: ViewGeometry) -> str:
    size = read_sam2_dims(base_directory(checkpoint))['image_size']
    tiles = ('the whole image at once' if view.grid == 1 else
             f'images in overlapping tiles (grid {view.grid}, {view.grid} by {view.grid})')
    return (f'SAM2 reads {size} x {size} pixels; it sees {tiles}. Masks come in the size of the image. Another input '
            'size or grid is another model as far as these figures go.')


def _data(config: Mapping[str, Any], hashes: Mapping[str, Mapping[str, str]]) -> list[str]:
    found = []
    for use, loader in (('Training', 'train_dataloader'), ('Validation', 'val_dataloader')):
        dataset = (config.get(loader) or {}).get('dataset')
        if not isinstance(dataset, Mapping):
            found.append(f'{use}: none.')
            continue
        found.append(f'{use}: {_source(dataset.get("source") or dataset, hashes)}.')
    rounds = config.get('rounds')
    if isinstance(rounds, Mapping):
        unlabelled = rounds.get('unlabelled')
        images = '' if not isinstance(unlabelled, str) else (
            f', images without masks: `{folder_name(unlabelled)}`{_hashed(hashes.get(unlabelled))}')
        found.append(f'The pairs were mined anew in {rounds.get("count", "several")} rounds{images}.')
    return found


def _source(source: Mapping[str, Any], hashes: Mapping[str, Mapping[str, str]]) -> str:
    kind, root, images = source.get('type'), source.get('data_root'), source.get('images_dir')
    if kind == 'DrawnVesselDataset':
        styles = ', '.join(source.get('styles') or ())
        return f'{source.get("length")} drawn vessels ({styles}; seed {source.get("seed")}), no photograph of a patient'
    if isinstance(images, str):
        number = len(hashes.get(images) or ())
        return f'`{folder_name(images)}`' + (f', {number} files' if number else '') + _hashed(hashes.get(images))
    if not isinstance(root, str):
        return _plain(str(kind))
    pairs = kind == 'DPOVesselDataset'
    file = Path(root) / str(source.get('ann_file', PAIRS_FILE if pairs else VAL_FILE))
    entries = _or_none(lambda: read_json(file, kind=list)) if file.is_file() else None
    number = ''
    if entries is not None:
        seen = len({str(entry.get('image')) for entry in entries if isinstance(entry, Mapping)})
        what = f'{len(entries)} preference pairs of {seen} images' if pairs else f'{seen} images with ground truth'
        number = f'{what}, '
    return f'{number}`{folder_name(root)}`{_hashed(hashes.get(root))}'


def _hashed(files: Mapping[str, str] | None) -> str:
    return f' ({len(files)} files with their annotations, hash `{hash_json(dict(files))[:DIGITS]}`)' if files else ''


def _steps(config: Mapping[str, Any], step: int | None, on_record: bool) -> str:
    length = get(config, ('train_cfg', 'max_iters'))
    epochs = get(config, ('train_cfg', 'max_epochs'))
    of = f' of {length}' if isinstance(length, int) else ''
    if not of and isinstance(epochs, (int, float)):
        of = f' of a run of {epochs:g} epochs'
    origin = '' if on_record else (
        ' The run left no record beside its checkpoint: these settings are those of the config that it was exported '
        'with.')
    return f'Taken after step {"unknown" if step is None else step}{of}.{origin}'


def _validation(history: Sequence[Mapping[str, Any]], step: int | None) -> str:
    entries = {entry.get('iter'): entry for entry in history if isinstance(entry, Mapping)}
    here, start = entries.get(step, {}), entries.get(0, {})
    if here.get('dice') is None:
        return ''

    def of(entry: Mapping[str, Any]) -> str:
        more = '' if entry.get('cldice') is None else f', clDice {entry["cldice"]:.4f}'
        return f'Dice {entry["dice"]:.4f}{more}'

    before = '' if start.get('dice') is None or step == 0 else f'; the start: {of(start)}'
    return (f'On the validation images: {of(here)}{before}. These images chose the checkpoint among those of the run: '
            'the figure is too good.')


def _limits(tested: Tested | None) -> list[str]:
    """What must not be read into the figures."""
    found = ['Nothing is known about images of other devices, resolutions, populations or diseases than those above.',
             'A mask is a probability above 0.5. It is not calibrated, and thin vessels are what it misses first.',
             'Preference accuracy, margins and rewards are no evidence that masks are good.']
    if tested is None:
        return ['It was not tested on images that neither trained nor chose it. Look at its masks before you use it.',
                *found]
    few = ' So few images prove little.' if tested.images < 10 else ''
    return [f'It was tested on {tested.images} images of {tested.source} and on no other.{few}',
            'Intervals and p are over images, as if they were independent: several of one patient make them too sure.',
            *found]


# ---- words ----------------------------------------------------------------------------------------------------------
def _render(name: str, *, tested: Tested | None, **values: Any) -> str:
    environment = Environment(loader=FileSystemLoader(ASSETS), undefined=StrictUndefined, keep_trailing_newline=True)
    text = environment.get_template(TEMPLATE).render(
        name=_plain(name), tested=None if tested is None else _table(tested), limits=_limits(tested),
        versions=[('sa2va-dpo', sa2va_dpo.__version__), ('Python', platform.python_version()),
                  *((package, importlib.metadata.version(package)) for package in _PACKAGES)], **values)
    return re.sub(r'\n{3,}', '\n\n', text)


def _table(tested: Tested) -> dict[str, Any]:
    compared = any(line.change is not None for line in tested.lines)
    started = any(line.start is not None for line in tested.lines)
    head = ['metric', *['before'] * compared, *['start, resized'] * started, 'after' if compared else 'value',
            *['change', 'p'] * compared]
    rows = [head, ['---'] * len(head)]
    for line in tested.lines:
        row = [_metric(line)]
        if compared:
            row.append(_mean(line.before, line.digits))
        if started:
            row.append(_mean(line.start, line.digits))
        row.append(_mean(line.after, line.digits))
        if compared:
            change = line.change
            row += ['–', '–'] if change is None else [
                f'{change.mean:+.{line.digits}f} ({change.low:+.{line.digits}f} to {change.high:+.{line.digits}f})',
                '–' if change.p_value is None else '< 0.001' if change.p_value < 0.001 else f'{change.p_value:.3f}']
        rows.append(row)
    return dict(rows=rows, images=tested.images, source=tested.source, verdict=tested.verdict, chose=tested.chose)


def _metric(line: Line) -> str:
    try:
        name = Text('en')(f'metric_{line.metric}')
    except KeyError:
        name = _plain(line.metric)
    return f'{name} (lower is better)' if line.lower_is_better else name


def _mean(value: Mean | None, digits: int) -> str:
    return '–' if value is None else f'{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})'


def folder_name(path: str | Path) -> str:
    """Of a path its last name, as it can stand in a line of the card."""
    return _plain(Path(path).resolve().name)


def _without_paths(value: Any, place: bool = False) -> Any:
    """A config in which every path is its last name.

    Args:
        place: the setting is a path, or paths, however it is spelled.
    """
    if isinstance(value, Mapping):
        return {key: _without_paths(below, place or key in _PLACES) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(below, place) for below in value]
    if isinstance(value, str) and (place or value.startswith(('/', '~', './', '../'))):
        return Path(value).name
    return value


def _plain(text: str) -> str:
    """A name that ends no code and no column of a table."""
    return printable(text).replace('`', "'").replace('|', '/').replace('\n', ' ')


def _or_none(read):
    try:
        return read()
    except InputError:
        return None
