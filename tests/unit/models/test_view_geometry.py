"""Tiles cover an image, their weights add up to one, and blending shows no seam."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.view_geometry import MOST, Box, ViewGeometry

GEOMETRIES = st.builds(ViewGeometry, grid=st.one_of(st.just('auto'), st.integers(1, MOST)),
                       overlap=st.floats(0, 0.75), blend=st.sampled_from(['hann', 'mean']))
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))


@given(GEOMETRIES, SIZES)
def test_tiles_cover_any_image_and_weights_add_up_to_one(geometry, size):
    grid = geometry.tiles(size, 64)
    seen = np.zeros(size, int)
    canvas = grid.canvas(2)
    for index, box in enumerate(grid.boxes):
        assert 0 <= box.top < box.bottom <= size[0] and 0 <= box.left < box.right <= size[1]
        box.cut(seen)[:] += 1
        canvas.add(index, torch.ones(2, *box.size))
    assert seen.min() >= 1
    assert len({box.size for box in grid.boxes}) == 1, 'one length along each axis: every tile is seen at one scale'
    torch.testing.assert_close(canvas.logits, torch.ones(2, *size), rtol=0, atol=1e-5)


@given(GEOMETRIES, SIZES)
def test_what_all_tiles_agree_on_comes_back(geometry, size):
    truth = torch.from_numpy(np.random.default_rng(0).normal(0, 8, size).astype(np.float32))
    grid = geometry.tiles(size, 64)
    canvas = grid.canvas(1)
    for index, box in enumerate(grid.boxes):
        canvas.add(index, box.cut(truth)[None])
    torch.testing.assert_close(canvas.logits[0], truth, rtol=0, atol=1e-4)
    if len(grid.boxes) == 1:
        assert torch.equal(canvas.logits[0], truth), 'one tile comes back to the bit'


def test_spans_by_hand():
    grid = ViewGeometry(grid=2, overlap=0.25).tiles((70, 140), 64)
    # length = 70 / (2 - 0.25) = 40, overlap 10 = 0.25 * 40
    assert grid.rows == ((0, 40), (30, 70)) and grid.columns == ((0, 80), (60, 140))
    assert grid.boxes[1] == Box(0, 60, 40, 140)
    assert ViewGeometry(grid=2, overlap=0).tiles((70, 140), 64).rows == ((0, 35), (35, 70))


def test_auto_looks_as_closely_as_the_input_allows():
    auto = ViewGeometry(grid='auto')
    def shape(size):
        grid = auto.tiles(size, 640)
        return len(grid.rows), len(grid.columns)
    assert shape((584, 565)) == (1, 1) and auto.boxes((584, 565), 640) == []
    assert shape((2336, 3504)) == (4, 5) and shape((100, 99999)) == (1, MOST)


def _jump(blend):
    """Largest difference of neighbours where every tile says its own constant."""
    grid = ViewGeometry(grid=3, blend=blend).tiles((240, 240), 64)
    canvas = grid.canvas(1)
    for index, box in enumerate(grid.boxes):
        canvas.add(index, torch.full((1, *box.size), float(index % 2)))
    return max(float(canvas.logits.diff(dim=axis).abs().max()) for axis in (1, 2))


def test_hann_weights_leave_no_seam_where_tiles_disagree():
    # 240 / (3 - 0.5) = 96, so that 24 pixels overlap: a straight ramp would step by 1/24.
    assert _jump('hann') < 0.1 < 0.4 < _jump('mean')


@pytest.mark.parametrize('values, words', [
    (dict(grid=0), 'view.grid: 0 must be'), (dict(grid=9), 'view.grid: 9'), (dict(grid=True), 'view.grid: True'),
    (dict(grid='all'), "view.grid: 'all'"), (dict(grid=2.0), 'view.grid: 2.0'),
    (dict(overlap=0.9), 'view.overlap: 0.9'),
    (dict(overlap='x'), 'view.overlap'), (dict(blend='max'), "view.blend: 'max' must be one of hann, mean"),
    (dict(context='both'), 'view.context'), (dict(whole_share=-0.1), 'view.whole_share'),
    (dict(tiles=2), 'view: unknown field tiles; there are grid, overlap')])
def test_impossible_views_are_refused_by_name(values, words):
    with pytest.raises(InputError, match=words):
        ViewGeometry.of(values)


def test_the_default_is_the_whole_image():
    assert ViewGeometry.of(None).plain and ViewGeometry.of({}) == ViewGeometry()
    view = ViewGeometry(grid=3, context='tile')
    assert not view.plain and ViewGeometry.of(view.to_dict()) == view and ViewGeometry.of(view) is view
