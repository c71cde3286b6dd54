"""What processes that share a study make is made once, whole, by one of them."""
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from benchmarks.study.runs import made_once


def test_others_wait_for_the_one_that_makes_it(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        folder.mkdir()
        for i in range(3):
            sleep(0.02)
            (folder / str(i)).touch()

    def files(_):
        return len(list(made_once(tmp_path / 'a/images', make).iterdir()))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(files, range(4))) == [3] * 4
    assert len(made) == 1


def test_what_failed_half_way_is_begun_anew(tmp_path):
    def fails(folder):
        folder.mkdir()
        (folder / 'half').touch()
        raise OSError('disk full')

    with pytest.raises(OSError):
        made_once(tmp_path / 'images', fails)
    assert not (tmp_path / 'images').exists()
    made_once(tmp_path / 'images', lambda folder: folder.mkdir())
    assert not list((tmp_path / 'images').iterdir())
