"""What a report says about a test: figures, plot and pictures of two folders of results."""
from __future__ import annotations

from pathlib import Path

from sa2va_dpo.common.files import hash_file
from sa2va_dpo.engine.run_record import DIGITS
from sa2va_dpo.evaluation.report import PER_IMAGE_FILE, PREDICTIONS

from .cases import Source, cases, values
from .comparison import METRIC, Rows, read_lines
from .figures import ranked, scatter
from .page import Report
from .text import Text

WEIGHTS = ('.safetensors', '.bin', '.pth')  # what of a checkpoint is hashed


def add_test(report: Report, text: Text, after_dir: Path, before_dir: Path | None, start_dir: Path | None,
             source: Source | None, seed: int = 0) -> None:
    """Fill the figures, the plot and the pictures of a report, and note what is missing.

    Args:
        after_dir, before_dir, start_dir: folders that tests of the same images wrote; the last is the untrained start
            at another input size.
        source: gives the images again.

    Raises:
        InputError: a table of scores is missing or damaged, or the tests are of other images.
    """
    report.lines, after, before = read_lines(after_dir, before_dir, start_dir, seed)
    report.images = len(after)
    kept = all((folder / PREDICTIONS).is_dir() for folder in (after_dir, before_dir) if folder is not None)
    if not kept:
        report.notes.append(text('note_no_masks'))
    report.groups, shown = cases(after_dir, after, before_dir, before, source if kept else None)
    report.plot = _plot(after, before, shown, text)
    report.hashes = [*report.hashes, *(
        (f'{folder.name}: {text("hash_scores")}', hash_file(folder / PER_IMAGE_FILE)[:DIGITS])
        for folder in (before_dir, start_dir, after_dir) if folder is not None)]


def _plot(after: Rows, before: Rows | None, shown: dict[int, str], text: Text):
    names, metric = [row['image_id'] for row in after], text(f'metric_{METRIC}')
    if before is None:
        return ranked(values(after), names, shown, metric, text)
    return scatter(values(before), values(after), names, shown, metric, text)
