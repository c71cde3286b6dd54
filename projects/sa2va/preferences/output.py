"""The data root that a run writes: who owns it, what is finished, and files that appear whole."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Sequence

import numpy as np

from sa2va_dpo.common import ownership
from sa2va_dpo.common.console import warn
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import copy_file, hash_files, link_or_copy, remove_leftovers
from sa2va_dpo.common.journal import Journal, read_lines
from sa2va_dpo.datasets.annotations import CANDIDATES_FILE, PAIRS_FILE, TEST_FILE, VAL_FILE, VAL_PAIRS_FILE
from sa2va_dpo.datasets.containers import container_of
from sa2va_dpo.datasets.mask_io import read_image_rgb, write_mask, write_rgb

REPORT, LOG, ENTRIES = 'generation_report.json', 'pairs.log', 'generation_entries.json'
FOLDERS = ('images', 'masks', 'gt', 'fov', 'candidates')
ANNOTATIONS = (PAIRS_FILE, VAL_PAIRS_FILE, VAL_FILE, TEST_FILE, CANDIDATES_FILE)
_JOURNAL = 'generation_journal.{rank}.jsonl'


def digest(paths: Sequence[Path | None]) -> str:
    """Of the contents of files; notices an image or mask that was corrected between two runs."""
    return hash_files(paths)


class DataRoot:
    """An output folder.

    Args:
        root: made if need be.
        fingerprint: of the run (see ``GenerateConfig.fingerprint``).
        result: the file that a finished run has written.
        made_with: what the fingerprint is of (``GenerateConfig.made_with``), to name what differs.
    """

    def __init__(self, root: str | os.PathLike, fingerprint: str, result: str = ANNOTATIONS[0],
                 made_with: dict | None = None) -> None:
        self.root, self.fingerprint, self.result, self.made_with = Path(root), fingerprint, result, made_with

    def refuse_sources(self, folders: Sequence[str | os.PathLike | None]) -> None:
        """Raises InputError where writing would mix with, or delete, a folder that is read from."""
        for folder in filter(None, folders):
            for name in FOLDERS:
                written = (self.root / name).resolve()
                read = Path(folder).resolve()
                if read == written or read.is_relative_to(written):
                    raise InputError(f'--output_dir {self.root}: would write into {folder}, which it reads from: '
                                     'choose another --output_dir')

    def report(self) -> dict | None:
        """The report of a finished run, whoever made it; an unreadable one is nobody's (empty)."""
        path = self.root / REPORT
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def finished(self, inputs: str) -> dict | None:
        """The report, if this very run has finished here on the same files (``inputs`` is their digest)."""
        report = self.report()
        return report if report and self._made_here(report, inputs) and (self.root / self.result).is_file() else None

    def claim(self, inputs: str, overwrite: bool) -> None:
        """Make the folder this run's, and this process its one writer until its entry point returns
        (``ownership.releases``).

        Raises:
            InputError: another run's pairs, or files of unknown origin, are there, or another process is writing there.
        """
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f'--output_dir {self.root}: is a file: choose another folder')
        ownership.lock(self.root, 'pairs', '--output_dir')
        report, journals = self.report(), self._journals()
        heads = [lines[0] for lines in map(read_lines, journals) if len(lines) > 1]
        if report is not None:
            if not overwrite and not self._made_here(report, inputs):
                raise InputError(
                    f'--output_dir {self.root}: holds pairs made with other settings, model or images '
                    f'({self._difference(report)}): choose another folder, or add --overwrite to replace them'
                )
            self.clear()
        elif other := next((head for head in heads if head.get('fingerprint') != self.fingerprint), None):
            if not overwrite:
                raise InputError(
                    f'--output_dir {self.root}: holds an unfinished run with other settings or model '
                    f'({self._difference(other)}): repeat its command, choose another folder, or add --overwrite to '
                    f'start anew'
                )
            self.clear()
        elif not journals:
            # With a journal, even one killed before its first line was whole, everything here is our own.
            taken = [name for name in (*FOLDERS, *ANNOTATIONS) if (self.root / name).exists()]
            if taken:
                raise InputError(f'--output_dir {self.root}: holds {", ".join(taken)} that this command did not make: '
                                 'choose another folder')
        for name in FOLDERS:
            remove_leftovers(self.root / name)

    def clear(self) -> None:
        """Remove everything that a run writes."""
        for name in FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (*(self.root / name for name in (*ANNOTATIONS, REPORT, LOG, ENTRIES)), *self._journals()):
            path.unlink(missing_ok=True)

    def _difference(self, other: dict) -> str:
        """The first difference to what another run wrote about itself."""
        if other.get('fingerprint') == self.fingerprint:
            return 'the content of an image, a mask or a prediction has changed'
        if self.made_with is None or not isinstance(other.get('made_with'), dict):
            return 'of an earlier version'
        changed = ownership.differences(other['made_with'], self.made_with)
        return '; '.join(changed[:3]) or 'other images'

    def _made_here(self, report: dict, inputs: str) -> bool:
        return report.get('fingerprint') == self.fingerprint and report.get('inputs') == inputs

    def drop_changed(self, digests: dict[str, str]) -> None:
        """Remove the masks of images whose files changed since they were mined."""
        for journal in self._journals():
            for entry in read_lines(journal)[1:]:
                if digests.get(entry['image']) != entry['inputs']:
                    for name in mask_files(entry):
                        (self.root / name).unlink(missing_ok=True)

    def entries(self, digests: dict[str, str]) -> dict[str, dict]:
        """Finished images of an interrupted run by name; those whose files changed since are left out."""
        found = {}
        for journal in self._journals():
            lines = read_lines(journal)
            if lines and lines[0].get('fingerprint') == self.fingerprint:
                for entry in lines[1:]:
                    if digests.get(entry['image']) == entry['inputs'] and all(
                            (self.root / name).is_file() for name in mask_files(entry)):
                        found[entry['image']] = entry
        return found

    def open_journal(self, rank: int) -> Journal:
        return Journal(
            self.root / _JOURNAL.format(rank=rank), dict(fingerprint=self.fingerprint, made_with=self.made_with)
        )

    def close(self) -> None:
        """The run is finished: journals are not needed any more."""
        for journal in self._journals():
            journal.unlink()

    def _journals(self) -> list[Path]:
        return sorted(self.root.glob(_JOURNAL.format(rank='*')))

    def copy(self, source: Path, relative: str, link: bool) -> None:
        """Copy an original image, or link it; a picture of a container (DICOM, NIfTI) is written as PNG."""
        target = self.root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if container_of(source) is not None:
            write_rgb(target, read_image_rgb(source))
            return
        if link:
            try:
                target.unlink(missing_ok=True)
                os.link(source.resolve(), target)
                return
            except OSError as error:
                warn(f'{source}: cannot be linked ({error.strerror}): copied')
        copy_file(source, target)

    def write_masks(self, mask: np.ndarray, relatives: Sequence[str]) -> None:
        """Write one mask under all its names: one file, the further names are hard links where the disk has them."""
        first = self.root / relatives[0]
        first.unlink(missing_ok=True)
        write_mask(first, mask)
        for relative in relatives[1:]:
            link_or_copy(first, self.root / relative)


def mask_files(entry: dict) -> list[str]:
    """The mask files of a journal entry, relative to the root."""
    return [*entry.get('files', ()), *(record[side] for record in entry['records']
                                       for side in ('chosen_mask', 'rejected_mask'))]
