"""Stage 1: which images are for training, validation and the test; no test image is known to the others."""
from __future__ import annotations

from pathlib import Path
from typing import Iterable

from sa2va_dpo.common.console import say
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import (
    PAIRS_FILE,
    TEST_FILE,
    VAL_FILE,
    VAL_PAIRS_FILE,
    read_pairs,
    read_segs,
    resolve,
)
from sa2va_dpo.datasets.ground_truth import check_sizes, patient_of, split_by_group
from sa2va_dpo.datasets.precheck import check_root
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.datasets.splits import split_patients
from sa2va_dpo.drawn import write_dataset

from .images import keep_apart, matched, name_some, named_in, shared_with
from .rounds import unlabelled_images
from .settings import JobSettings
from .state import JobState, Labelled

DEMO_IMAGES = 48  # half for the test, a quarter of the other half for validation

TITLE = 'images for training, validation and the test'


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``images``, ``validation``, ``test``, ``test_prompt``, ``gt_dir`` and ``unlabelled``; the demo set is drawn
    first where there are no images.

    Raises:
        InputError: too few patients for pairs, validation and test, or a test image is one of the pairs'.
    """
    if settings.test_from == 'none':
        state.test_prompt = settings.prompt or DEFAULT_PROMPT
    elif settings.pairs is None:
        _split(settings, state)
    else:
        _beside_pairs(settings, state)
    if settings.unlabelled is not None:
        state.unlabelled = unlabelled_images(settings, state)
    return state


def _split(settings: JobSettings, state: JobState) -> None:
    images, gt = settings.images, settings.gt
    if images is None or gt is None:
        demo = settings.work_dir / 'demo'
        say(f'drawing the demo set (seed {settings.seed}) in {demo}')
        write_dataset(demo, style='demo', seed=settings.seed, n=DEMO_IMAGES, size=512)
        images, gt = str(demo / 'images'), str(demo / 'masks')
    pool = matched(images, gt)
    check_sizes([(Path(item.image), Path(item.mask)) for item in pool])

    def patient(item: Labelled) -> str:
        return patient_of(Path(item.image).stem, settings.group_regex)

    train, test = split_by_group(pool, settings.test_fraction, settings.seed, key=patient)
    if len({patient(item) for item in train}) < 2:
        patients = len({patient(item) for item in pool})
        raise InputError(
            f'{images}: {len(pool)} images with ground truth of {patients} patients leave one patient beside the '
            'test, and pairs and validation need one each: add images, lower --test_fraction, or tell patients apart '
            'with --group_regex'
        )
    # As the generator draws them from the same list.
    drawn = split_patients(
        [Path(item.image) for item in train], settings.val_fraction, 0.0, settings.seed, settings.group_regex
    )
    if drawn.note:
        raise InputError(f'{images}: {"; ".join([drawn.note, *drawn.joined])}')
    state.images, state.validation, state.gt_dir = train, [str(path) for path in drawn.val], str(gt)
    state.test_prompt = settings.prompt or DEFAULT_PROMPT
    state.test = _test_apart(test, [item.image for item in train], settings)


def _beside_pairs(settings: JobSettings, state: JobState) -> None:
    """The pairs exist: the test is what was named, or what is left of the guide's folder."""
    assert settings.pairs is not None
    root = Path(settings.pairs)
    check_root(root, (PAIRS_FILE, VAL_PAIRS_FILE), (VAL_FILE, TEST_FILE))
    pairs = read_pairs(root / PAIRS_FILE, root)
    known = {str(resolve(root, record.image)): None for record in pairs}
    state.images = list({record.image: Labelled(str(resolve(root, record.image)), str(resolve(root, record.gt_mask)))
                         for record in pairs if record.gt_mask is not None}.values())
    known.update(dict.fromkeys(path for name in (VAL_FILE, VAL_PAIRS_FILE) for path in named_in(root, name)))
    state.test_prompt = settings.prompt or pairs[0].prompt
    if settings.test_from == 'annotations':
        test = [Labelled(str(resolve(root, record.image)), str(resolve(root, record.mask)))
                for record in read_segs(root / TEST_FILE, root)]
    else:
        assert settings.images is not None and settings.gt is not None, 'the settings name both'
        test = matched(settings.images, settings.gt)
    if settings.test_from == 'rest':
        state.test = _test_apart(test, known, settings)
        return
    shared = shared_with(test, known, settings.group_regex)
    if shared:
        where = root / TEST_FILE if settings.test_from == 'annotations' else f'--images {settings.images}'
        raise InputError(
            f'{where}: {len(shared)} of {len(test)} test images are in the pairs or their validation: '
            f'{name_some(shared)}: '
            'test on images of other patients, or tell patients apart with --group_regex'
        )
    state.test = test


def _test_apart(test: list[Labelled], known: Iterable[str], settings: JobSettings) -> list[Labelled]:
    """The test images that training and validation do not know.

    Raises:
        InputError: none is left.
    """
    return keep_apart(
        test, known, settings.group_regex, 'the test',
        f'{Path(test[0].image).parent}: no image is left for the test, all are in the pairs or their validation: '
        'give --images and --gt of other patients',
    )
