"""What a generation run is: every setting, checked before anything is read or written."""
from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Callable, Iterable, get_args, get_origin, get_type_hints

from mmengine.registry import Registry

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_directory, hash_json
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.splits import TEST_FRACTION, VAL_FRACTION

from . import votes  # noqa: F401  (registers its judges)
from .judges import JUDGES, Mixture
from .pairing import PAIRINGS, Pair, Scored
from .sources import DEFAULT_SOURCES, SOURCES, Source

MODES = ('generate', 'from_predictions')
# Settings that change nothing in the files that are written.
_NO_EFFECT = ('device', 'output_dir', 'link')


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of :func:`sa2va_dpo.preferences.generate.generate_pairs`; the names are the command's flags.

    Attributes:
        mode: ``'generate'`` (candidates from the policy) or ``'from_predictions'`` (masks that exist already).
        images_dir: images, or with ``from_predictions`` the predictions folder (one sub-folder per method).
        gt_dir: ground truth; may be ``None`` with judges that need none.
        output_dir: the data root to write.
        model_path: checkpoint directory (``generate`` only).
        num_samples: distinct candidates per image, the greedy mask among them; masks on disk are all used.
        min_iou_gap: smaller differences of the judge's scores make no pair.
        prompt: the question of every image.
        seed: of perturbations, choices and the split.
        split_seed: of the split alone; ``None`` is ``seed``.
        max_pairs_per_image: ``None`` keeps all.
        val_fraction, test_fraction: shares of the patients kept for validation and for the test, of whom no pair is
            mined for the test; at least one patient each. ``None`` is ``VAL_FRACTION`` and ``TEST_FRACTION`` with
            ground truth, 0
            without: there would be nothing to score them by.
        group_regex: how a stem tells its patient (see ``patient_of``).
        source_images_dir: original images (``from_predictions``); ``None`` is the ``images`` folder beside ``gt_dir``.
        include_gt: the ground truth itself is a candidate.
        sources: registered candidate sources, each ``'Name'``, ``'Name=weight'`` or ``dict(type=, weight=, ...)``.
            ``None``: the policy's own (``DEFAULT_SOURCES``), or none but the masks on disk with ``from_predictions``.
        candidate_models: more checkpoints whose greedy masks are candidates.
        judge: registered judges, each ``'Name'``, ``'Name=weight'`` or ``dict(type=, weight=, ...)``.
        pairing: a registered pairing strategy.
        dice_tolerance: with ``pairing='TopologyMatched'``: how far the Dice of two masks may be apart.
        cells: chosen is put together from the best candidate of each cell of a ``cells`` x ``cells`` grid and meets
            every candidate (``composite.py``); ``None`` chooses whole masks.
        compared: further judges whose scores are noted for every candidate and decide nothing.
        policy_digest: says which state of the policy makes the candidates, where ``model_path`` alone does not.
        balance: as many over- as under-segmenting rejected masks per image.
        max_candidate_iou: candidates at least this similar are duplicates.
        link: hard links to the images instead of copies, where the file system can.
        device: ``None`` is a GPU where there is one.
    """

    mode: str
    images_dir: str
    gt_dir: str | None
    output_dir: str
    model_path: str | None = None
    num_samples: int = 5
    min_iou_gap: float = 0.05
    prompt: str = DEFAULT_PROMPT
    seed: int = 0
    split_seed: int | None = None
    max_pairs_per_image: int | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    group_regex: str | None = None
    source_images_dir: str | None = None
    include_gt: bool = False
    sources: tuple[str | dict, ...] | None = None
    candidate_models: tuple[str, ...] = ()
    judge: tuple[str | dict, ...] = ('IoU',)
    pairing: str = 'AllPairs'
    dice_tolerance: float = 0.01
    cells: int | None = None
    compared: tuple[str | dict, ...] = ()
    policy_digest: str | None = None
    balance: bool = False
    max_candidate_iou: float = 0.98
    link: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        for name, default in (('val_fraction', VAL_FRACTION), ('test_fraction', TEST_FRACTION)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default if self.gt_dir is not None else 0.0)
        if self.mode not in MODES:
            raise InputError(f'--mode {self.mode}: must be one of {", ".join(MODES)}')
        if self.mode == 'generate' and not self.model_path:
            raise InputError('--model_path: missing; mode generate needs the checkpoint that makes the candidates')
        for name, low in (
            ('num_samples', 2 if self.mode == 'generate' else 0),
            ('seed', 0),
            ('split_seed', 0),
            ('max_pairs_per_image', 1),
        ):
            value = getattr(self, name)
            if value is None and name in ('split_seed', 'max_pairs_per_image'):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f'--{name} {value}: must be a whole number of at least {low}'
                                 + (': a pair needs two candidates' if name == 'num_samples' else ''))
        for name in ('min_iou_gap', 'val_fraction', 'test_fraction', 'dice_tolerance'):
            if not (math.isfinite(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                raise InputError(f'--{name} {getattr(self, name)}: must be at least 0 and below 1')
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError(
                f'--val_fraction {self.val_fraction} and --test_fraction {self.test_fraction}: leave nothing to '
                'train on: together they must be below 1'
            )
        if self.test_fraction and self.gt_dir is None:
            raise InputError(
                f'--test_fraction {self.test_fraction}: without --gt_dir there is nothing to score a test by: leave '
                'it out'
            )
        if not 0 < self.max_candidate_iou <= 1:
            raise InputError(f'--max_candidate_iou {self.max_candidate_iou}: must be above 0 and at most 1')
        if not self.prompt.strip():
            raise InputError('--prompt: is empty; leave it out for the default')
        if self.pairing not in PAIRINGS.module_dict:
            raise InputError(f'--pairing {self.pairing}: unknown; the strategies are {", ".join(PAIRINGS.module_dict)}')
        if self.cells is not None and self.pairing == 'TopologyMatched':
            raise InputError(f'--cells {self.cells}: puts one mask together that meets every other, --pairing '
                             'TopologyMatched compares those of equal Dice: leave one of the two out')
        if self.cells is not None and (
            isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 1
        ):
            raise InputError(f'--cells {self.cells}: must be a whole number of at least 1, or be left out')
        sources, judge = self.build_sources(), self.build_judge()
        self.build_compared()
        if judge.needs_policy and self.mode == 'from_predictions':
            raise InputError(f'--judge {judge.name}: asks the policy, which mode from_predictions has not')
        if (self.cells is not None or self.pairing == 'Components') and not judge.looks_at_pixels:
            what = f'--cells {self.cells}' if self.cells is not None else '--pairing Components'
            raise InputError(f'{what}: needs a judge that can judge parts of an image, {judge.name} cannot')
        for _, source in sources:
            if source.needs_policy and self.mode == 'from_predictions':
                raise InputError(
                    f'--sources {type(source).__name__}: needs a policy, which mode from_predictions has not'
                )
        for flag, needs in (('--include_gt', self.include_gt), ('--judge', judge.needs_ground_truth),
                            ('--sources', any(source.needs_ground_truth for _, source in sources))):
            if needs and self.gt_dir is None:
                raise InputError(f'--gt_dir: missing; {flag} needs ground truth '
                                 '(judges without: Agreement, PredictedIoU, ExpectedIoU, Consensus, Committee)')
        if self.mode == 'from_predictions' and self.gt_dir is None and self.source_images_dir is None:
            raise InputError('--source_images_dir: missing; without --gt_dir there is no folder to look beside')

    def build_sources(self) -> list[tuple[float, Source]]:
        """(weight, source) of every candidate source but the masks on disk."""
        specs = self.sources
        if specs is None:
            specs = DEFAULT_SOURCES if self.mode == 'generate' else ()
        if self.candidate_models:
            specs = (*specs, dict(type='Checkpoints', paths=tuple(self.candidate_models)))
        return _build(SOURCES, specs, '--sources')

    def build_judge(self) -> Mixture:
        return Mixture(_build(JUDGES, self.judge, '--judge'))

    def build_pairing(self) -> Callable[[Scored], Iterable[Pair]]:
        given = dict(dice_tolerance=self.dice_tolerance) if self.pairing == 'TopologyMatched' else {}
        return PAIRINGS.module_dict[self.pairing](**given)

    def build_compared(self) -> list[Mixture]:
        """Each of the judges in ``compared``, alone."""
        return [Mixture(_build(JUDGES, [spec], '--judge')) for spec in self.compared]

    def fingerprint(self, image_names: list[str]) -> str:
        """Hex digest of the settings, the model and the images' names; equal digests on equal files write equal
        files."""
        return hash_json([self.made_with(), image_names])

    def made_with(self) -> dict:
        """The settings that change what is written, and a hash of the content of each checkpoint."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NO_EFFECT}
        if self.split_seed is None:
            # Pairs that were made before there was such a setting are still one's own.
            del settings['split_seed']
        # Whether a checkpoint is there at all is for its loader to say; a model may also have been handed over loaded.
        models = {str(path): hash_directory(path) if Path(path).is_dir() else None
                  for path in (self.model_path, *self.candidate_models) if path}
        return json.loads(json.dumps(dict(settings=settings, models=models), default=list))


def _check_types(config: GenerateConfig) -> None:
    """Raises InputError for a setting of another type than its annotation says."""
    words = {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false', type(None): 'left out'}
    for name, hint in get_type_hints(GenerateConfig).items():
        value = getattr(config, name)
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if get_origin(hint) is UnionType else (hint,))]
        accepted = tuple({*kinds, *((int,) if float in kinds else ()), *((list,) if tuple in kinds else ())})
        if not isinstance(value, accepted) or isinstance(value, bool) and bool not in kinds:
            raise InputError(f'--{name} {value!r}: must be ' + ' or '.join(words.get(kind, 'a list') for kind in kinds))


def _build(registry: Registry, specs, flag: str) -> list[tuple[float, object]]:
    built = []
    for spec in specs:
        if isinstance(spec, str):
            name, _, text = spec.partition('=')
            arguments: dict = {}
        else:
            arguments = dict(spec)
            name, text = str(arguments.pop('type', '')), str(arguments.pop('weight', ''))
        # Looked up in the dict: Registry.get would search mmengine's scopes and import whole packages.
        if name not in registry.module_dict:
            raise InputError(f'{flag} {name}: unknown; choose from {", ".join(registry.module_dict)}')
        try:
            weight = float(text or 1)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f'{flag} {name}={text}: the weight must be a number above 0')
        try:
            built.append((weight, registry.module_dict[name](**arguments)))
        except (TypeError, ValueError) as error:
            raise InputError(f'{flag} {name}: {error}') from None
    if flag == '--judge' and not built:
        raise InputError(f'{flag}: name at least one of {", ".join(registry.module_dict)}')
    return built
