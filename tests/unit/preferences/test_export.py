"""What is exported is read back by the library it is for, pixel for pixel."""
import numpy as np
import pytest

from sa2va_dpo.commands.export_pairs import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PairRecord, write_pairs
from sa2va_dpo.datasets.mask_io import write_mask
from sa2va_dpo.preferences.export import export_parquet


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for i in range(20):
        names = dict(
            image=f'images/ä {i}.png',
            chosen_mask=f'masks/{i}_chosen_0_1.png',
            rejected_mask=f'masks/{i}_rejected_0_1.png',
        )
        for name in names.values():
            write_mask(tmp_path / name, rng.random((12, 16)) > 0.5)
        records.append(PairRecord(**names, chosen_iou=0.8, rejected_iou=0.5, iou_gap=0.3, prompt='<image>Please.',
                                  chosen_source='greedy' if i else None))
    write_pairs(tmp_path / 'dpo_annotations.json', records)
    return tmp_path


def test_datasets_reads_it_back(root, tmp_path):
    from datasets import load_dataset

    from sa2va_dpo.datasets.mask_io import read_mask

    assert export_parquet(root, root / 'new folder' / 'pairs.parquet') == 20
    rows = load_dataset('parquet', data_files=str(root / 'new folder' / 'pairs.parquet'), split='train',
                        cache_dir=str(tmp_path / 'cache'))
    assert rows.column_names[:4] == ['images', 'prompt', 'chosen', 'rejected'] and len(rows) == 20
    row = rows[17]
    assert np.array_equal(np.asarray(row['chosen']) > 127, read_mask(root / 'masks' / '17_chosen_0_1.png'))
    assert np.array_equal(np.asarray(row['rejected']) > 127, read_mask(root / 'masks' / '17_rejected_0_1.png'))
    assert row['images'][0].size == (16, 12) and row['image_id'] == 'ä 17' and row['score_chosen'] == 0.8
    assert rows[0]['chosen_source'] is None and row['chosen_source'] == 'greedy'


def test_bad_input_writes_nothing(root):
    with pytest.raises(InputError, match='must end in .parquet'):
        export_parquet(root, root / 'pairs.csv')
    (root / 'masks' / '19_rejected_0_1.png').unlink()
    with pytest.raises(InputError, match='no such file'):
        export_parquet(root, root / 'pairs.parquet')
    assert not list(root.glob('*.parquet*'))


def test_command(root, capsys):
    assert main(['--data_root', str(root), '--output', str(root / 'p.parquet')]) == 0
    assert '20 pairs' in capsys.readouterr().out
