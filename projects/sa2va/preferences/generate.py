"""From images and ground truth to a data root of preference pairs; interrupted runs go on where they stopped."""
from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

from sa2va_dpo.common import ownership
from sa2va_dpo.common import processes as ranks
from sa2va_dpo.common.console import detail, is_quiet, progress, say
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_text, write_json, write_problem
from sa2va_dpo.common.journal import Journal
from sa2va_dpo.datasets.annotations import (
    PAIRS_FILE,
    TEST_FILE,
    VAL_FILE,
    VAL_PAIRS_FILE,
    PairRecord,
    SegRecord,
    write_pairs,
    write_segs,
)
from sa2va_dpo.datasets.field_of_view import find_field_of_view
from sa2va_dpo.datasets.ground_truth import check_sizes, check_stems, match_ground_truth
from sa2va_dpo.datasets.mask_io import list_images, read_mask, write_mask
from sa2va_dpo.datasets.names import printable
from sa2va_dpo.datasets.samples import SampleMaker
from sa2va_dpo.datasets.splits import Split, split_patients

from .config import GenerateConfig
from .earlier import EarlierPairs, write_entries
from .from_predictions import Predictions
from .miner import Item, Mined, Miner, Pixels, read
from .output import LOG, REPORT, DataRoot, digest
from .report import format_report, format_split, summarise_pairs
from .sampler import Policies

__all__ = ['LOG', 'GenerateConfig', 'generate_pairs', 'mine_images']

_AHEAD = 3  # images read ahead of, and written behind, the one the policy works on


@ownership.releases
def generate_pairs(config: GenerateConfig, policy=None, preprocessor=None, images: Sequence[str | Path] | None = None,
                   overwrite: bool = False, allow_empty: bool = False, frozen: SampleMaker | None = None,
                   truths: Mapping[Path, Path] | None = None, quiet: bool = False,
                   earlier: EarlierPairs | None = None) -> dict:
    """Write ``config.output_dir`` and return its report (see ``preferences/report.py``).

    Every image's result is on disk before the next but few; the same call after an interruption takes those over and
    writes the files that an uninterrupted run writes. Under torchrun the processes share the images.

    Args:
        config: all settings.
        policy, preprocessor: a loaded ``Sa2VAModel`` in eval mode and its preprocessor; ``None`` loads
            ``config.model_path``. If given, ``config.model_path`` must name where they came from: resuming goes by it.
        images: the original images to use; ``None`` uses the whole folder.
        overwrite: replace what an earlier run with other settings left in ``output_dir``.
        allow_empty: no pair at all is a result too, and ``dpo_annotations.json`` an empty list then.
        frozen: makes samples from caches of what is frozen in the policy.
        truths: image -> its ground truth, for images and masks of any folder and name; None: by stem in
            ``config.gt_dir``.
        quiet: print no report.
        earlier: pairs of another run: those that this one would only mine again are taken over.

    Raises:
        InputError: bad input, ``output_dir`` is not this run's, or no pair came out.
    """
    predictions = Predictions(config.images_dir) if config.mode == 'from_predictions' else None
    folder = _image_folder(config)
    images = [Path(image) for image in images] if images is not None else list_images(folder)
    matched, skipped = _match(images, config) if truths is None else ([(image, truths[image]) for image in images], [])
    check_sizes(matched)
    split = split_patients([image for image, _ in matched], config.val_fraction, config.test_fraction,
                           config.seed if config.split_seed is None else config.split_seed, config.group_regex)
    root = DataRoot(
        config.output_dir, config.fingerprint([str(image) for image in images]), made_with=config.made_with()
    )
    root.refuse_sources([folder, config.images_dir, config.gt_dir, *{image.parent for image in images}])
    held_out = {*split.val, *split.test}
    items = []
    for image, gt in matched:
        field = find_field_of_view(image, gt) if gt is not None and image in held_out else None
        files = predictions.files(image.stem).values() if predictions else ()
        items.append(Item(image, gt, digest([image, gt, field, *files]), field))
    digests = {item.image.name: item.inputs for item in items}
    inputs = hash_text(''.join(digests.values()))
    if (report := root.finished(inputs)) is not None:
        ranks.barrier()
        if ranks.rank() == 0:
            root.close()
            if not quiet:
                say(f'{root.root}: finished before, nothing to do')
                _tell(report)
        return report
    policies = Policies(config.model_path, config.device, policy, preprocessor)
    if predictions is None:
        policies.get()  # a checkpoint that cannot be read must fail before the folder is claimed
    if ranks.rank() == 0 and not quiet:
        say(format_split(split.sizes(), split.note))
    miner = Miner(config, predictions, policies, frozen, held_out={image.name for image in split.test})
    fits = earlier is not None and earlier.fits(config, policies)
    mine_images(miner, items, root, inputs, overwrite, earlier=earlier if fits else None)
    if ranks.rank() == 0:
        done = root.entries(digests)
        report = _finish(config, root, inputs, [done[item.image.name] for item in items], split,
                         [printable(image) for image in skipped], allow_empty, policies)
        if not quiet:
            _tell(report)
    ranks.barrier()
    return root.finished(inputs)


def _tell(report: dict) -> None:
    if is_quiet():
        say(format_report(report, brief=True))
    detail(format_report(report))


def mine_images(miner: Miner, items: Sequence[Item], root: DataRoot, inputs: str, overwrite: bool,
                work: Callable[[Item, Pixels], Mined] | None = None, earlier: EarlierPairs | None = None) -> None:
    """Do every image that the journals of ``root`` do not hold yet; the processes share them and leave together.

    Args:
        inputs: digest of all files that are read.
        work: what is done with an image; None: :meth:`Miner.mine`.
        earlier: pairs that fit (``EarlierPairs.fits``); those of the same images are taken over first.
    """
    digests = {item.image.name: item.inputs for item in items}
    if ranks.rank() == 0:
        root.claim(inputs, overwrite)
        root.drop_changed(digests)
        if earlier is not None:
            earlier.into(root, items, miner.config.link)
    ranks.barrier()
    done = root.entries(digests)
    # Nobody appends to a journal before everybody has read them all.
    ranks.barrier()
    todo = [item for item in items if item.image.name not in done][ranks.rank()::ranks.world_size()]
    _mine_all(work or miner.mine, todo, root, miner.config.link, done)
    ranks.barrier()


def _image_folder(config: GenerateConfig) -> Path:
    """Where the original images are; raises InputError when they cannot be found."""
    if config.mode == 'generate':
        return Path(config.images_dir)
    folder = Path(config.source_images_dir) if config.source_images_dir else Path(config.gt_dir).parent / 'images'
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder of original images: name it with --source_images_dir')
    return folder


def _match(images: list[Path], config: GenerateConfig) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    """(image, ground truth or None) of the images to use, and the images left out for want of ground truth."""
    if not images:
        raise InputError(f'{config.images_dir}: no image to make pairs of')
    if config.gt_dir is None:
        check_stems(images)
        return [(image, None) for image in images], []
    matched, skipped = match_ground_truth(images, config.gt_dir)
    if not matched:
        raise InputError(f'{config.gt_dir}: no ground truth fits any of the {len(images)} images, the first is '
                         f'{images[0].name}: masks must have the same stem')
    return matched, skipped


def _mine_all(work: Callable[[Item, Pixels], Mined], todo: Sequence[Item], root: DataRoot, link: bool,
              done: dict[str, dict]) -> None:
    """Mine images one after the other, reading the next and writing the last ones meanwhile."""
    if not todo:
        return
    journal = root.open_journal(ranks.rank())
    pairs = sum(len(entry['records']) for entry in done.values())
    pending: deque[Future] = deque()
    with (ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as committer, ThreadPoolExecutor(4) as writers,
          progress(total=len(todo) + len(done), initial=len(done), desc='pairs', unit='image',
                   disable=ranks.rank() > 0) as bar):
        try:
            for item, pixels in _read_ahead(reader, todo):
                mined = work(item, pixels)
                pending.append(committer.submit(_commit, item, mined, root, link, journal, writers))
                if len(pending) > _AHEAD:
                    pending.popleft().result()
                pairs += len(mined.entry['records'])
                bar.set_postfix_str(f'{pairs} pairs', refresh=False)
                bar.update()
            for future in pending:
                future.result()
        finally:
            # An error or Ctrl-C: what is mined is still written, what is not read yet is not.
            reader.shutdown(wait=True, cancel_futures=True)
            committer.shutdown(wait=True)
            journal.close()


def _read_ahead(reader: ThreadPoolExecutor, todo: Sequence[Item]) -> Iterator[tuple[Item, Pixels]]:
    queue: deque[tuple[Item, Future]] = deque()
    rest = iter(todo)
    while True:
        while len(queue) < _AHEAD and (item := next(rest, None)) is not None:
            queue.append((item, reader.submit(read, item)))
        if not queue:
            return
        item, future = queue.popleft()
        yield item, future.result()


def _commit(
    item: Item, mined: Mined, root: DataRoot, link: bool, journal: Journal, writers: ThreadPoolExecutor
) -> None:
    """Put one image's files on disk, then its line into the journal."""
    tasks = [writers.submit(root.write_masks, mask, names) for mask, names in mined.masks]
    tasks.append(writers.submit(root.copy, item.image, f'images/{item.image.name}', link))
    if mined.gt is not None:
        tasks.append(writers.submit(write_mask, root.root / 'gt' / f'{item.image.stem}.png', mined.gt))
    if item.field_of_view is not None:
        field = read_mask(item.field_of_view)
        tasks.append(writers.submit(write_mask, root.root / 'fov' / f'{item.image.stem}.png', field))
    try:
        for task in tasks:
            task.result()
        journal.append(mined.entry)
    except OSError as error:
        raise write_problem(f'--output_dir {root.root}', error) from None


def _finish(config: GenerateConfig, root: DataRoot, inputs: str, entries: list[dict], split: Split,
            skipped: list[str], allow_empty: bool, policies: Policies) -> dict:
    """Write the annotation files and, last, the report that marks the run as finished."""
    val_names, test_names = ({image.name for image in part} for part in (split.val, split.test))
    mined = [entry for entry in entries if entry['image'] not in test_names]
    train = [record for entry in mined if entry['image'] not in val_names for record in entry['records']]
    val = [record for entry in mined if entry['image'] in val_names for record in entry['records']]
    report = summarise_pairs(train, val, mined, config, skipped, split)
    if not train and not allow_empty:
        root.clear()
        raise InputError(f'{config.output_dir}: no training pair came out of {len(mined) - len(val_names)} images '
                         f'({report["pairs_dropped_for_gap"]} below --min_iou_gap {config.min_iou_gap}): '
                         'lower --min_iou_gap or raise --num_samples')
    write_pairs(root.root / PAIRS_FILE, [_record(record) for record in train])
    if val_names:
        write_pairs(root.root / VAL_PAIRS_FILE, [_record(record) for record in val])
    if config.gt_dir is not None:
        for names, file in ((val_names, VAL_FILE), (test_names, TEST_FILE)):
            if names:
                write_segs(
                    root.root / file,
                    [_seg_record(entry, config.prompt) for entry in entries if entry['image'] in names],
                )
    if config.mode == 'generate' and config.policy_digest is None:
        write_entries(root, mined, policies)
    report.update(fingerprint=root.fingerprint, inputs=inputs, made_with=root.made_with)
    write_json(root.root / REPORT, report)
    root.close()
    return report


def _seg_record(entry: dict, prompt: str) -> SegRecord:
    return SegRecord(f'images/{entry["image"]}', f'gt/{entry["stem"]}.png', prompt,
                     f'fov/{entry["stem"]}.png' if entry['field_of_view'] else None)


def _record(entry: dict) -> PairRecord:
    known = {name: value for name, value in entry.items() if name in PairRecord.__dataclass_fields__}
    return PairRecord(**known, extra={name: value for name, value in entry.items() if name not in known})
