"""The study's arithmetic: intervals, which pairs a recipe sees, and that every twin exists and differs in one
number."""
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
report = importlib.import_module('benchmarks.study.report')
table = importlib.import_module('benchmarks.study.table')
splits = importlib.import_module('benchmarks.study.splits')
run = importlib.import_module('benchmarks.study.run')


def test_interval_by_hand():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.3027: half width 4.3027 / sqrt 3 = 2.4841.
    assert report.interval([1.0, 2.0, 3.0]) == '+2.0000 ± 2.4841'
    assert report.interval([-0.25]) == '-0.2500'


def test_twins_differ_in_the_preference_weight_alone():
    cells = {cell.name: cell for cell in table.cells()}
    assert len(cells) == len(table.cells())
    paired = [cell for cell in cells.values() if cell.twin]
    assert len(paired) > 20
    for cell in paired:
        twin = cells[cell.twin]
        assert twin.preference['weight'] == 0 and cell.preference['weight'] > 0
        for name in ('supervised_weight', 'supervised_bce', 'supervised_dice', 'supervised_cldice'):
            assert twin.preference.get(name) == cell.preference.get(name), cell.name
        for name in ('pairs', 'parts', 'lr', 'steps', 'refresh', 'score_size'):
            assert asdict(twin)[name] == asdict(cell)[name], (cell.name, name)


def pair(image, chosen, rejected, chosen_iou):
    return dict(
        image=Path(image), chosen=Path(chosen), rejected=Path(rejected), chosen_iou=chosen_iou, rejected_iou=0.1
    )


@pytest.fixture
def split():
    fake = splits.Split.__new__(splits.Split)
    fake.gt_of = {'a': Path('truth/a.png')}
    return fake


def test_kinds_of_pairs(split):
    own = [pair('a.png', 'm1', 'm3', 0.8), pair('a.png', 'm2', 'm3', 0.5), pair('a.png', 'm1', 'm2', 0.8)]
    image = Path('a.png')
    assert split.select('self', own) == split.select('self_topology', own) == {image: own}
    assert split.select('self_best', own) == {image: [own[0], own[2]]}
    truth = split.select('gt_only', own)[image]
    assert {p['chosen'] for p in truth} == {Path('truth/a.png')}
    assert sorted(str(p['rejected']) for p in truth) == ['m1', 'm2', 'm3']
    assert len(split.select('gt', own)[image]) == 6
    with pytest.raises(ValueError, match='no kind'):
        split.select('other', own)


def test_hard_pairs_have_the_smallest_disagreement(split):
    masks = dict(m1=[1, 1, 1, 0], m2=[1, 1, 0, 0], m3=[0, 0, 0, 1])
    split.target = lambda path, size=256: torch.tensor(masks[str(path)], dtype=torch.float32)
    own = [pair('a.png', 'm1', 'm3', 0.8), pair('a.png', 'm1', 'm2', 0.8)]
    assert split.select('self_hard', own)[Path('a.png')] == [own[1]]


def test_learning_rate_warms_up_and_ends_at_a_tenth():
    rates = [run.learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_report_pairs_runs_with_their_twins(tmp_path, capsys):
    (tmp_path / 'runs').mkdir()
    values = {'start': 0.5, 'self: supervised only': 0.6, 'self: supervised + balanced x 1': 0.65}
    for seed in (0, 1):
        for name, dice in values.items():
            row = dict(base='tiny', data='demo', cell=name, seed=seed, seconds=1.0,
                       **{metric: dice + 0.01 * seed for metric in report.METRICS})
            (tmp_path / 'runs' / f'{seed}{name[:9]}{len(name)}.json').write_text(json.dumps(row))
    report.report(tmp_path)
    line = next(line for line in (tmp_path / 'results.md').read_text().splitlines() if 'balanced x 1' in line)
    assert '| +0.1500 ± 0.0000 |' in line and '| +0.0500 ± 0.0000 |' in line
    assert (tmp_path / 'results.png').stat().st_size > 1000
