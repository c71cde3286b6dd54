"""What a generation run is: every setting, checked before anything is read or written."""
from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from ..errors import InputError
from ..datasets.seg_dataset import DEFAULT_PROMPT
from .sources import DEFAULT_SOURCES, SOURCES

MODES = ('generate', 'from_predictions')


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of :func:`projects.sa2va.preferences.generate.generate_pairs`; the names are the command's flags.

    Attributes:
        mode: ``'generate'`` (candidates from the policy) or ``'from_predictions'`` (masks that exist already).
        images_dir: images, or with ``from_predictions`` the predictions folder (one sub-folder per method).
        gt_dir: ground truth.
        output_dir: the data root to write.
        model_path: checkpoint directory (``generate`` only).
        num_samples: distinct candidates per image, the greedy mask among them.
        min_iou_gap: smaller differences make no pair.
        prompt: the question of every image.
        seed: of perturbations, choices and the validation split.
        max_pairs_per_image: ``None`` keeps all.
        val_fraction: share of the patients kept for validation.
        group_regex: how a stem tells its patient (see ``patient_of``).
        source_images_dir: original images (``from_predictions``); ``None`` is the ``images`` folder beside ``gt_dir``.
        include_gt: the ground truth itself is a candidate.
        sources: names in the ``SOURCES`` registry.
        max_candidate_iou: candidates at least this similar are duplicates.
        device: ``None`` is a GPU where there is one.
    """

    mode: str
    images_dir: str
    gt_dir: str
    output_dir: str
    model_path: str | None = None
    num_samples: int = 5
    min_iou_gap: float = 0.05
    prompt: str = DEFAULT_PROMPT
    seed: int = 0
    max_pairs_per_image: int | None = None
    val_fraction: float = 0.0
    group_regex: str | None = None
    source_images_dir: str | None = None
    include_gt: bool = False
    sources: tuple[str, ...] = DEFAULT_SOURCES
    max_candidate_iou: float = 0.98
    device: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f'--mode {self.mode}: must be one of {", ".join(MODES)}')
        if self.mode == 'generate' and not self.model_path:
            raise InputError('--model_path: missing; mode generate needs the checkpoint that makes the candidates')
        if self.mode == 'generate' and self.num_samples < 2:
            raise InputError(f'--num_samples {self.num_samples}: a pair needs at least 2 candidates')
        if not (math.isfinite(self.min_iou_gap) and 0 <= self.min_iou_gap < 1):
            raise InputError(f'--min_iou_gap {self.min_iou_gap}: must be at least 0 and below 1')
        if self.max_pairs_per_image is not None and self.max_pairs_per_image < 1:
            raise InputError(f'--max_pairs_per_image {self.max_pairs_per_image}: must be at least 1')
        if not 0 <= self.val_fraction < 1:
            raise InputError(f'--val_fraction {self.val_fraction}: must be at least 0 and below 1')
        if not 0 < self.max_candidate_iou <= 1:
            raise InputError(f'--max_candidate_iou {self.max_candidate_iou}: must be above 0 and at most 1')
        if self.seed < 0:
            raise InputError(f'--seed {self.seed}: must be at least 0')
        unknown = [name for name in self.sources if SOURCES.get(name) is None]
        if unknown:
            raise InputError(f'--sources {" ".join(unknown)}: unknown; the sources are {", ".join(SOURCES.module_dict)}')

    def fingerprint(self, image_names: list[str]) -> str:
        """Hex digest of what the output depends on; two runs with equal digests write equal files."""
        settings = asdict(self)
        for name in ('device', 'output_dir'):
            settings.pop(name)
        return hashlib.sha256(json.dumps([settings, image_names], sort_keys=True).encode()).hexdigest()
