"""A disk that is full, read-only, not ours or broken: one line, nothing lost, and the same command goes on."""
import os
import subprocess

import pytest

from .harness import BROKEN, FAIL, FAIL_ONCE, FORBIDDEN, FULL, LONG, READ_ONLY, Bench

pytestmark = pytest.mark.integration
NAMES = ('generating', 'training', 'working', 'merging', 'picking')
POINTS = dict(generating=24, training=24, working=16, merging=12, picking=8) if LONG else dict(
    generating=4, training=4, working=2, merging=3, picking=2)


@pytest.fixture(scope='module', params=NAMES)
def bench(request, zygote, tmp_path_factory):
    bench = Bench(zygote, request.getfixturevalue(request.param), tmp_path_factory.mktemp(request.param) / 'case')
    bench.name = request.param
    return bench


def spread(bench, share, shift=0):
    """Some points, other ones for every kind."""
    count = max(1, round(POINTS[bench.name] * share))
    return sorted({1 + (shift + round((k + 0.5) * bench.count / count)) % bench.count for k in range(count)})


def test_full(bench):
    bench.disturb('full disks', spread(bench, 1), [2], FAIL, FULL, one_line=True)


def test_full_only_for_a_moment(bench):
    bench.disturb('full disks', spread(bench, 0.5, 3), [2], FAIL_ONCE, FULL, one_line=True)


@pytest.mark.parametrize('error', [READ_ONLY, FORBIDDEN, BROKEN], ids=['read-only', 'forbidden', 'broken'])
def test_unwritable(bench, error):
    bench.disturb('unwritable disks', spread(bench, 0.5, error), [2], FAIL_ONCE if error == BROKEN else FAIL, error,
                  one_line=True)


@pytest.mark.parametrize('name, kib', [('generating', 40), ('generating', 90), ('training', 200), ('training', 3000)])
def test_a_small_disk(zygote, request, tmp_path, name, kib):
    """What the injection imitates, on a real file system without room."""
    scenario = request.getfixturevalue(name)
    whole = Bench(zygote, scenario, tmp_path / 'case')
    whole.fresh()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', str(whole.folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a small file system of its own takes root')
    try:
        scenario.prepare(whole.folder)
        full = whole._run()
        assert full.code == 2 and 'make room' in full.text and 'Traceback' not in full.text, full.text[-3000:]
        assert sum(line.startswith('error: ') for line in full.text.splitlines()) == 1, full.text[-3000:]
        subprocess.run(['mount', '-o', 'remount,size=64m', str(whole.folder)], check=True)
        assert whole._run(again=True).code == scenario.code
        assert scenario.outcome(whole.folder) == whole.whole
    finally:
        subprocess.run(['umount', str(whole.folder)], check=True)
