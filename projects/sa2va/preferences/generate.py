"""From images and ground truth to a data root of preference pairs; interrupted runs go on where they stopped."""
from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Sequence

import numpy as np
from tqdm import tqdm

from ..datasets.annotations import PairRecord, SegRecord, write_json, write_pairs, write_segs
from ..datasets.ground_truth import match_ground_truth, patient_of, split_by_group
from ..datasets.mask_io import list_images, read_image_rgb, read_mask, write_mask
from ..errors import InputError
from .config import GenerateConfig
from .pairing import make_pairs, mask_iou, pick_distinct
from .policy_view import PolicyView
from .predictions import PredictionFolders
from .report import format_report, summarise_pairs
from .sources import SOURCES, Candidate, Greedy

REPORT = 'generation_report.json'
JOURNAL = 'generation_journal.jsonl'


def generate_pairs(config: GenerateConfig, policy=None, preprocessor=None, images: Sequence[Path] | None = None,
                   overwrite: bool = False) -> dict:
    """Write ``config.output_dir`` and return its report (see ``preferences/report.py``).

    Args:
        config: all settings.
        policy, preprocessor: a loaded ``Sa2VAModel`` and its preprocessor; ``None`` loads ``config.model_path``.
        images: the original images to use; ``None`` uses the whole folder.
        overwrite: remove what an earlier run with other settings left in ``output_dir``.

    Raises:
        InputError: bad input, or ``output_dir`` holds pairs made with other settings.
    """
    folders = PredictionFolders(config.images_dir) if config.mode == 'from_predictions' else None
    if images is None:
        images = list_images(_image_folder(config))
    matched, skipped = match_ground_truth(images, config.gt_dir)
    if not matched:
        raise InputError(f'{config.gt_dir}: no ground truth fits any of the {len(images)} images, the first is '
                         f'{images[0].name}: masks must have the same stem')
    root = Path(config.output_dir)
    fingerprint = config.fingerprint([str(image) for image in images])
    finished = _claim(root, fingerprint, overwrite)
    if finished is not None:
        return finished
    _, val = split_by_group([image for image, _ in matched], config.val_fraction, config.seed,
                            key=lambda image: patient_of(image.stem, config.group_regex))
    val_names = {image.name for image in val}
    miner = _Miner(config, folders, policy, preprocessor)
    entries = _read_journal(root / JOURNAL, fingerprint)
    with open(root / JOURNAL, 'a', encoding='utf-8') as journal:
        if not entries:
            _append(journal, dict(fingerprint=fingerprint))
        bar = tqdm(matched, desc='pairs', unit='image')
        pairs = sum(entry['pairs'] for entry in entries.values())
        for image, gt in bar:
            if image.name not in entries:
                entries[image.name] = miner.mine(image, gt, root)
                _append(journal, entries[image.name])
                pairs += entries[image.name]['pairs']
            bar.set_postfix(pairs=pairs)
    return _finish(config, root, fingerprint, [entries[image.name] for image, _ in matched], val_names,
                   [str(image) for image in skipped])


def _image_folder(config: GenerateConfig) -> Path:
    """Where the original images are; raises InputError when they cannot be found."""
    if config.mode == 'generate':
        return Path(config.images_dir)
    folder = Path(config.source_images_dir) if config.source_images_dir else Path(config.gt_dir).parent / 'images'
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder of original images: name it with --source_images_dir')
    return folder


def _claim(root: Path, fingerprint: str, overwrite: bool) -> dict | None:
    """Make ``root`` ours; the report if this very run has finished there."""
    report, journal = root / REPORT, root / JOURNAL
    if report.is_file() or journal.is_file():
        if report.is_file():
            owner = json.loads(report.read_text(encoding='utf-8')).get('fingerprint')
        else:
            lines = _journal_lines(journal)
            # A journal that died before its first line was whole belongs to nobody.
            owner = lines[0].get('fingerprint') if lines else fingerprint
        if owner == fingerprint:
            return json.loads(report.read_text(encoding='utf-8')) if report.is_file() else None
        if not overwrite:
            raise InputError(f'{root}: holds pairs made with other settings: choose another --output_dir, '
                             'or add --overwrite to replace them')
        for name in ('images', 'masks', 'gt'):
            shutil.rmtree(root / name, ignore_errors=True)
        for path in (report, journal, *root.glob('*annotations*.json')):
            path.unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    return None


class _Miner:
    """Candidates, scores and pairs of one image at a time."""

    def __init__(self, config: GenerateConfig, folders: PredictionFolders | None, policy, preprocessor) -> None:
        self.config, self.folders = config, folders
        self.policy, self.pre = policy, preprocessor
        self.sources = [SOURCES.build(dict(type=name)) for name in config.sources]

    def mine(self, image_path: Path, gt_path: Path, root: Path) -> dict:
        """Write the masks of one image; returns its journal entry."""
        config = self.config
        image, gt = read_image_rgb(image_path), read_mask(gt_path)
        if gt.shape != image.shape[:2]:
            raise InputError(f'{gt_path}: is {gt.shape[1]} x {gt.shape[0]}, its image {image_path.name} is '
                             f'{image.shape[1]} x {image.shape[0]}: ground truth must have the size of the image')
        seed = [config.seed, zlib.crc32(image_path.stem.encode())]
        groups = self._groups(image_path, image, gt, seed)
        count = config.num_samples + config.include_gt if self.folders is None else sum(map(len, groups))
        kept, duplicates = pick_distinct(groups, count, config.max_candidate_iou, np.random.default_rng(seed))
        scores = [mask_iou(candidate.mask, gt) for candidate in kept]
        pairs, dropped = make_pairs(scores, config.min_iou_gap, config.max_pairs_per_image)
        stem = image_path.stem
        _copy(image_path, root / 'images' / image_path.name)
        write_mask(root / 'gt' / f'{stem}.png', gt)
        written: dict[int, Path] = {}
        records = []
        for i, j in pairs:
            names = {}
            for role, index in (('chosen', i), ('rejected', j)):
                path = root / 'masks' / f'{stem}_{role}_{i}_{j}.png'
                _write_once(path, kept[index].mask, written, index)
                names[role] = path.relative_to(root).as_posix()
            differ = kept[i].mask != kept[j].mask
            records.append(dict(
                image=f'images/{image_path.name}', chosen_mask=names['chosen'], rejected_mask=names['rejected'],
                chosen_iou=round(scores[i], 6), rejected_iou=round(scores[j], 6), iou_gap=round(scores[i] - scores[j], 6),
                prompt=config.prompt, chosen_source=kept[i].source, rejected_source=kept[j].source,
                gt_mask=f'gt/{stem}.png', disagreement_pixels=int(differ.sum()),
                chosen_agreement=round(float((kept[i].mask == gt)[differ].mean()), 6)))
        return dict(image=image_path.name, stem=stem, records=records, pairs=len(records), duplicates=duplicates,
                    dropped_gap=dropped, missing=self._missing(),
                    candidates=[dict(source=c.source, iou=round(s, 6)) for c, s in zip(kept, scores)])

    def _groups(self, image_path: Path, image: np.ndarray, gt: np.ndarray, seed: list[int]) -> list[list[Candidate]]:
        truth = [[Candidate(gt, 'ground_truth')]] if self.config.include_gt else []
        if self.folders is not None:
            return [[], *self.folders.candidates(image_path, gt.shape), *truth]
        if self.policy is None:
            self._load()
        view = PolicyView(self.policy, self.pre, image, self.config.prompt, seed)
        first = [*Greedy()(view), *(truth[0] if truth else [])]
        return [first, *(list(source(view)) for source in self.sources)]

    def _load(self) -> None:
        import torch

        from ..datasets.preprocess import Sa2VAPreprocessor
        from ..models.hf_checkpoint import load_checkpoint

        device = self.config.device or ('cuda' if torch.cuda.is_available() else 'cpu')
        self.pre = Sa2VAPreprocessor.from_pretrained(self.config.model_path)
        dtype = torch.bfloat16 if device.startswith('cuda') and _large(self.config.model_path) else torch.float32
        self.policy = load_checkpoint(self.config.model_path, dtype=dtype, device=device)

    def _missing(self) -> list[str]:
        if self.folders is None:
            return []
        missing, self.folders.missing = self.folders.missing, []
        return missing


def _large(model_path: str) -> bool:
    """Whether float32 weights would be wasteful: more than 1 GB on disk."""
    return sum(path.stat().st_size for path in Path(model_path).glob('*.safetensors')) > 1e9


def _write_once(path: Path, mask: np.ndarray, written: dict[int, Path], index: int) -> None:
    """Write a candidate's mask; its later names are hard links to the first where the file system has them."""
    if index in written:
        path.unlink(missing_ok=True)
        try:
            os.link(written[index], path)
            return
        except OSError:
            pass
    write_mask(path, mask)
    written[index] = path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + '.tmp')
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _append(journal, entry: dict) -> None:
    """One line, on disk before the next image starts."""
    journal.write(json.dumps(entry, ensure_ascii=False) + '\n')
    journal.flush()
    os.fsync(journal.fileno())


def _journal_lines(path: Path) -> list[dict]:
    lines = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # the line that a kill cut short, and nothing after it
    return lines


def _read_journal(path: Path, fingerprint: str) -> dict[str, dict]:
    """Finished images of an interrupted run; drops a half-written last line from the file."""
    if not path.is_file():
        return {}
    lines = _journal_lines(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines), encoding='utf-8')
    os.replace(temporary, path)
    if not lines or lines[0].get('fingerprint') != fingerprint:
        path.unlink()
        return {}
    return {line['image']: line for line in lines[1:]}


def _finish(config: GenerateConfig, root: Path, fingerprint: str, entries: list[dict], val_names: set[str],
            skipped: list[str]) -> dict:
    """Write the annotation files and, last, the report that marks the run as finished."""
    train = [record for entry in entries if entry['image'] not in val_names for record in entry['records']]
    val = [record for entry in entries if entry['image'] in val_names for record in entry['records']]
    report = summarise_pairs(train, val, entries, min_iou_gap=config.min_iou_gap, skipped=skipped,
                             missing_predictions=[name for entry in entries for name in entry['missing']])
    if not train:
        raise InputError(f'{config.output_dir}: no training pair came out of {len(entries)} images '
                         f'({report["pairs_dropped_for_gap"]} below --min_iou_gap {config.min_iou_gap}): '
                         'lower --min_iou_gap or raise --num_samples')
    write_pairs(root / 'dpo_annotations.json', [_record(record) for record in train])
    if val_names:
        write_pairs(root / 'dpo_annotations_val.json', [_record(record) for record in val])
        write_segs(root / 'val_annotations.json', [
            SegRecord(f'images/{entry["image"]}', f'gt/{entry["stem"]}.png', config.prompt)
            for entry in entries if entry['image'] in val_names])
    report['fingerprint'] = fingerprint
    write_json(root / REPORT, report)
    (root / JOURNAL).unlink()
    print(format_report(report))
    return report


def _record(entry: dict) -> PairRecord:
    known = {name: value for name, value in entry.items() if name in PairRecord.__dataclass_fields__}
    return PairRecord(**known, extra={name: value for name, value in entry.items() if name not in known})
