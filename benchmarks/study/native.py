"""How closely to look: supervised training at equal steps, whole images against tiles, tested at native size.

No selection: figures are those of the last step. The language model is frozen, so an image's [SEG] states and SAM2's
inputs are made once; training draws and test predictions follow the product's geometry (``models/view_geometry.py``).
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of, split_by_group
from sa2va_dpo.datasets.mask_io import list_images, read_image_rgb, read_mask
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.samples import SampleMaker, View, digest_of_array, draw_tile
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.targets import flip
from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.topology import cldice
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel
from sa2va_dpo.models.tiled import image_logits, moved
from sa2va_dpo.models.view_geometry import Box, ViewGeometry

from .refinement import SHAPES, attach
from .run import BATCH, learning_rate
from .step import optimizer_of, step
from .table import FULL

STEPS, LR, PROBE_STEPS = 300, 3e-4, 60
MIRRORS = ((False, False), (True, False), (False, True), (True, True))
# What turns SAM2's stride-16 map into stride-4 logits, a part of the mask decoder.
UPSCALING = ('sam2.mask_decoder.upscale_', 'sam2.mask_decoder.conv_s', 'sam2.mask_decoder.output_hypernetworks_mlps.')


@dataclass(frozen=True)
class Arm:
    """One way of looking.

    Attributes:
        grid, context: see ``ViewGeometry``.
        size: side of SAM2's input, pixels.
        data: data sets that it runs on.
        steps: 0 is the start, nothing trained.
        upscaling: False freezes the mask decoder's upscaling path.
        score_size: side of the square on which masks are scored; None: half of ``size``.
        refined: a small learnt refinement on SAM2's stride-4 features follows the decoder, of this name in ``SHAPES``.
        flips: the test is also scored on mean logits of four mirrored images.
        probe: trained on three quarters of the training patients, scored on the others: what a job may look at.
    """

    name: str
    grid: int = 1
    context: str = 'image'
    size: int = 640
    data: tuple[str, ...] = ('hrf_full', 'hrf', 'chase_db1', 'arcade')
    steps: int = STEPS
    upscaling: bool = True
    score_size: int | None = None
    refined: str | None = None
    flips: bool = False
    probe: bool = False


FULL_SIZE = ('hrf_full',)
ARMS = (
    Arm('whole, 640 px', flips=True),
    Arm('2 x 2', 2, flips=True),
    Arm('4 x 4', 4, data=FULL_SIZE, flips=True),
    Arm('3 x 3', 3, data=('hrf_full', 'hrf', 'chase_db1')),
    Arm('whole, 1024 px', size=1024, data=('hrf_full', 'hrf', 'chase_db1')),
    Arm('2 x 2, each tile alone', 2, 'tile'),
    Arm('4 x 4, each tile alone', 4, 'tile', data=FULL_SIZE),
    Arm('probe: whole, 640 px', steps=PROBE_STEPS, probe=True),
    Arm('probe: 2 x 2', 2, steps=PROBE_STEPS, probe=True),
    Arm('probe: 3 x 3', 3, data=FULL_SIZE, steps=PROBE_STEPS, probe=True),
    Arm('probe: 4 x 4', 4, data=FULL_SIZE, steps=PROBE_STEPS, probe=True),
    Arm('probe: whole, 1024 px', size=1024, data=('hrf_full', 'hrf', 'chase_db1'), steps=PROBE_STEPS, probe=True),
    Arm('start, whole, 640 px', steps=0),
    Arm('start, 2 x 2', 2, steps=0),
    Arm('start, 4 x 4', 4, data=FULL_SIZE, steps=0),
    Arm('start, whole, 1024 px', size=1024, data=('hrf_full', 'hrf', 'chase_db1'), steps=0),
    Arm('4 x 4, upscaling path frozen', 4, data=FULL_SIZE, upscaling=False),
    Arm('4 x 4, scored at 640 px', 4, data=FULL_SIZE, score_size=640),
    Arm('6 x 6', 6, data=FULL_SIZE),
    Arm('3 x 3, 1024 px', 3, size=1024, data=FULL_SIZE),
    Arm('4 x 4, 1024 px', 4, size=1024, data=FULL_SIZE),
    Arm('2 x 2, 1024 px', 2, size=1024, data=('hrf', 'chase_db1')),
)


def refined_arms() -> list[Arm]:
    """The refinements that were tried on each data set's best way of looking, each with the plain arm that is scored on
    the same square; probes of full length, by which one of them was chosen."""
    found = []
    for way, grid, data in (('4 x 4', 4, 'hrf_full'), ('3 x 3', 3, 'hrf'), ('2 x 2', 2, 'chase_db1'),
                            ('whole, 640 px', 1, 'arcade')):
        for shape in (None, *SHAPES):
            plain = f'{way}, {shape or "scored at 640 px"}'
            probe = f'probe: {way}, {shape}, {STEPS} steps' if shape else f'probe: {way}, {STEPS} steps'
            found += [Arm(name, grid, data=(data,), score_size=640, refined=shape, probe=is_probe)
                      for name, is_probe in ((plain, False), (probe, True))]
    known = {arm.name for arm in ARMS}
    return [arm for arm in found if arm.name not in known]


class Pictures:
    """The images of a data set at native size, half of the patients for training, half for the test.

    Args:
        root: folder with ``images`` and ``masks``.
        seed: of the split.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.name, self.seed = root.name, seed
        pairs = match_ground_truth(list_images(root / 'images'), root / 'masks')[0]
        files = {image.stem: (image, mask) for image, mask in pairs}
        self.train, self.test = split_by_group(list(files), 0.5, seed, key=patient_of)
        self.fit, self.held = split_by_group(self.train, 0.25, seed, key=patient_of)
        self.pixels = {stem: read_image_rgb(image) for stem, (image, _) in files.items()}
        self.truth = {stem: read_mask(mask) for stem, (_, mask) in files.items()}

    def halves(self, probe: bool) -> tuple[list[str], list[str]]:
        """(stems to train on, stems to score)."""
        return (self.fit, self.held) if probe else (self.train, self.test)


class Inputs:
    """What SAM2 and its prompt are given, made once for each view, on the device."""

    def __init__(self, pictures: Pictures, base: str, device: str) -> None:
        self.pictures, self.device = pictures, device
        self.pre = Sa2VAPreprocessor.from_pretrained(base)
        self.policy = load_checkpoint(base).to(device).eval()
        self._pixels: dict[tuple, torch.Tensor] = {}
        self._targets: dict[tuple, torch.Tensor] = {}
        self._states: dict[tuple, torch.Tensor] = {}

    def _view(self, stem: str, mirror: tuple[bool, bool], box: Box | None, context: str) -> View:
        image = self.pictures.pixels[stem]
        return View(partial(digest_of_array, image), lambda: image, DEFAULT_PROMPT, *mirror, box, context)

    def pixels(self, stem: str, box: Box | None) -> torch.Tensor:
        """``[3, S, S]`` float16."""
        if (stem, box) not in self._pixels:
            sample = SampleMaker(self.pre)(self._view(stem, MIRRORS[0], box, 'image'), language=False)
            self._pixels[stem, box] = sample['sam_pixel_values'].half().to(self.device)
        return self._pixels[stem, box]

    def target(self, stem: str, box: Box | None, size: int) -> torch.Tensor:
        """uint8 ``[size, size]``."""
        key = stem, box, size
        if key not in self._targets:
            mask = self._view(stem, MIRRORS[0], box, 'image').target(self.pictures.truth[stem], size)
            self._targets[key] = torch.from_numpy(mask).to(self.device)
        return self._targets[key]

    @torch.no_grad()
    def state(self, stem: str, mirror: tuple[bool, bool], box: Box | None, context: str) -> torch.Tensor:
        """The [SEG] state, ``[1, D]``."""
        key = stem, mirror, (box if context == 'tile' else None)
        if key not in self._states:
            image = flip(self.pictures.pixels[stem], *mirror)
            if key[2] is not None:
                image = flip(box.cut(self.pictures.pixels[stem]), *mirror)
            sample = self.pre(np.ascontiguousarray(image), DEFAULT_PROMPT)
            self._states[key] = self.policy.seg_states(moved(self.pre.collate([sample]), self.device))
        return self._states[key]

    def batch(self, stems: list[str], geometry: ViewGeometry, score_size: int, rng: np.random.Generator) -> dict:
        """Draws for ``Sa2VASegModel.loss``: image, mirror and tile at random."""
        pixels, states, targets = [], [], []
        for stem in rng.choice(stems, BATCH, replace=len(stems) < BATCH):
            mirror = tuple(bool(hit) for hit in rng.random(2) < 0.5)
            box = draw_tile(geometry, self.pictures.truth[stem].shape, self.pre.sam_size, rng)
            axes = [axis for axis, on in ((-1, mirror[0]), (-2, mirror[1])) if on]
            pixels.append(self.pixels(stem, box).float().flip(axes))
            targets.append(self.target(stem, box, score_size).flip(axes))
            states.append(self.state(stem, mirror, box, geometry.context))
        index = torch.tensor([(i, 0) for i in range(BATCH)], device=self.device)
        return dict(batch=dict(sam_pixel_values=torch.stack(pixels), seg_states=torch.cat(states), seg_index=index),
                    target=torch.stack(targets))


@torch.no_grad()
def logits_of(policy, inputs: Inputs, stem: str, geometry: ViewGeometry, mirror: tuple[bool, bool]) -> torch.Tensor:
    """``[H, W]`` of the mirrored image, turned back."""
    maker = SampleMaker(inputs.pre, geometry=geometry)
    sample = maker.prediction(inputs._view(stem, mirror, None, 'image'), inputs.pictures.truth[stem].shape)
    logits, _ = next(image_logits(policy, moved(inputs.pre.collate([sample]), inputs.device)))
    return logits[0].flip([axis for axis, on in ((1, mirror[0]), (0, mirror[1])) if on])


def score(policy, inputs: Inputs, stems: list[str], geometry: ViewGeometry, flips: bool) -> dict[str, float]:
    """Means over images, at their own size."""
    policy.eval()
    rows = []
    for stem in stems:
        truth = inputs.pictures.truth[stem]
        found = [logits_of(policy, inputs, stem, geometry, mirror) for mirror in (MIRRORS if flips else MIRRORS[:1])]
        mask = (found[0] > 0).cpu().numpy()
        row = dict(dice=dice(confusion_counts(mask, truth)), cldice=cldice(mask, truth))
        if flips:
            mask = (torch.stack(found).mean(0) > 0).cpu().numpy()
            row.update(flips_dice=dice(confusion_counts(mask, truth)), flips_cldice=cldice(mask, truth))
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def run_arm(arm: Arm, base: str, inputs: Inputs, seed: int, steps: int | None = None):
    """(the trained policy, metrics of the scored half)."""
    geometry = ViewGeometry(grid=arm.grid, context=arm.context)
    train, test = inputs.pictures.halves(arm.probe)
    if not arm.steps:
        return inputs.policy, score(inputs.policy, inputs, test, geometry, arm.flips)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 17])
    score_size = arm.score_size or arm.size // 2
    model = Sa2VASegModel(base, FULL, score_size=score_size, cldice_weight=0.5, with_mllm=False).to(inputs.device)
    new = attach(model.policy, SHAPES[arm.refined]) if arm.refined else []
    if not arm.upscaling:
        for name, parameter in model.policy.named_parameters():
            if name.startswith(UPSCALING):
                parameter.requires_grad_(False)
    if inputs.device != 'cpu':
        model.policy.autocast_dtype = torch.bfloat16  # as a run on a GPU
    optimizer, parameters = optimizer_of(model, LR)
    mine = {id(one) for one in new}
    for group in optimizer.param_groups:
        if mine and mine.issuperset(map(id, group['params'])):
            group['lr'] *= SHAPES[arm.refined].lr_mult
    count = steps or arm.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate(done, count))
    model.train()
    for _ in range(count):
        step(model, optimizer, schedule, parameters, inputs.batch(train, geometry, score_size, rng))
    model.policy.autocast_dtype = None
    model.policy.mllm = inputs.policy.mllm  # frozen, and left out so far
    return model.policy, score(model.policy, inputs, test, geometry, arm.flips)
