"""Preference pairs as one parquet file that Hugging Face ``datasets`` and TRL read."""
from __future__ import annotations

import os
from pathlib import Path

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import replacing
from sa2va_dpo.common.optional import extra
from sa2va_dpo.datasets.annotations import PAIRS_FILE, PairRecord, read_pairs, resolve

ROWS_AT_ONCE = 16  # bounds memory: a row holds the encoded files of an image and two masks


def export_parquet(data_root: str | os.PathLike, out: str | os.PathLike, ann_file: str = PAIRS_FILE) -> int:
    """Write the pairs of a data root; the file appears whole or not at all.

    Columns follow TRL's preference format (``prompt``, ``chosen``, ``rejected``, ``images``) with masks as the answers:
    ``images`` is a list of one picture, ``chosen`` and ``rejected`` are 0/255 PNG masks, decoded by ``datasets`` as
    images. Beside them ``score_chosen``, ``score_rejected`` (the IoUs), ``iou_gap``, ``chosen_source``,
    ``rejected_source`` and ``image_id``. Files are embedded as they are on disk.

    Returns:
        Number of rows.

    Raises:
        InputError: the annotations are bad, ``out`` does not end in ``.parquet``, or the extra ``parquet`` is not
            installed.
    """
    with extra('parquet', 'a parquet file'):
        import pyarrow
        import pyarrow.parquet
        from datasets import Features, Image, List, Value

    out, data_root = Path(out), Path(data_root)
    if out.suffix != '.parquet':
        raise InputError(f'{out}: must end in .parquet')
    records = read_pairs(data_root / ann_file, data_root)
    features = Features(dict(
        images=List(Image()), prompt=Value('string'), chosen=Image(), rejected=Image(), score_chosen=Value('float64'),
        score_rejected=Value('float64'), iou_gap=Value('float64'), chosen_source=Value('string'),
        rejected_source=Value('string'), image_id=Value('string')))
    with replacing(out) as temporary, pyarrow.parquet.ParquetWriter(temporary, features.arrow_schema) as writer:
        for start in range(0, len(records), ROWS_AT_ONCE):
            rows = [_row(record, data_root) for record in records[start:start + ROWS_AT_ONCE]]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=features.arrow_schema))
    return len(records)


def _row(record: PairRecord, data_root: Path) -> dict:
    def file(relative: str) -> dict:
        return dict(bytes=resolve(data_root, relative).read_bytes(), path=Path(relative).name)

    return dict(images=[file(record.image)], prompt=record.prompt, chosen=file(record.chosen_mask),
                rejected=file(record.rejected_mask), score_chosen=record.chosen_iou, score_rejected=record.rejected_iou,
                iou_gap=record.iou_gap, chosen_source=record.chosen_source, rejected_source=record.rejected_source,
                image_id=Path(record.image).stem)
