"""What a job has found out so far: filled stage by stage, kept on disk between them."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json, write_json

STATE_FILE = 'state.json'


@dataclass(frozen=True)
class Labelled:
    """An image on disk with its ground-truth mask."""

    image: str
    mask: str


@dataclass
class JobState:
    """Values are ``None`` (or empty) until the stage named in the comment has run.

    Attributes:
        done: stages that have finished, in order.
        seconds: stage -> time spent on it, over all attempts that finished.
        images: images with ground truth that training may look at: those to make pairs of, validation among them, or
            with ``--pairs`` the training images whose ground truth is known.
        validation: paths of those among ``images`` that validation holds out.
        test: never among ``images`` nor in the pairs.
        test_prompt: the question of every test image.
        unlabelled: paths of images without masks; no test or validation image is among them.
        before, resized, after: test metrics of the base as handed in, of the untrained resized base, of what is
            exported.
        sam_size: ``own`` and ``chosen`` SAM2 input size in pixels, ``dice`` of those that were measured.
        view: ``own``, ``chosen`` and ``exported`` view (fields of ``ViewGeometry``), ``dice`` of the ways of looking
            that were probed, ``seconds`` that it took.
        start: checkpoint directory that is trained: the base, or its resized copy.
        pairs: data root of the pairs; ``validates``: it has validation images.
        best_checkpoint: run checkpoint that is exported; ``None`` where a start is.
        validation_dice: ``start`` and ``best``; ``None`` without validation.
        exported_sam_size: pixels.
    """

    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    # split
    images: list[Labelled] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[Labelled] = field(default_factory=list)
    test_prompt: str = ''
    unlabelled: list[str] = field(default_factory=list)
    gt_dir: str | None = None
    # resize
    before: dict | None = None
    resized: dict | None = None
    sam_size: dict = field(default_factory=dict)
    view: dict = field(default_factory=dict)
    start: str = ''
    # mine
    pairs: str = ''
    train_pairs: int = 0
    train_images: int = 0
    validates: bool = True
    # train, select
    best_checkpoint: str | None = None
    validation_dice: dict | None = None
    exported_hf: str = ''
    exported_sam_size: int | None = None
    # report
    after: dict | None = None

    @property
    def training(self) -> list[Labelled]:
        """``images`` without those of validation."""
        held_out = set(self.validation)
        return [item for item in self.images if item.image not in held_out]

    def save(self, work_dir: Path) -> None:
        write_json(work_dir / STATE_FILE, asdict(self))

    @classmethod
    def load(cls, work_dir: Path) -> 'JobState':
        """The state on disk, a new one where there is none.

        Raises:
            InputError: the file is no state of this program.
        """
        path = work_dir / STATE_FILE
        if not path.is_file():
            return cls()
        remedy = 'remove it: the stages are then done again'
        content = read_json(path, remedy, kind=dict)
        known = {item.name for item in fields(cls)}
        if set(content) != known:
            raise InputError(f'{path}: written by another version of this program: {remedy}')
        for name in ('images', 'test'):
            content[name] = [Labelled(**item) for item in content[name]]
        return cls(**content)
