"""Views must come back to the pixels they were taken from, exactly."""
import numpy as np
import pytest
import torch

from sa2va_dpo.preferences.views import VIEWS, Tone


@pytest.mark.parametrize('size', [(6, 10), (7, 5), (33, 64)])
@pytest.mark.parametrize('name', [name for name, view in VIEWS.items() if not isinstance(view, Tone)])
def test_what_is_shown_comes_back_exactly(name, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    shown = VIEWS[name].images(image)
    back = VIEWS[name].restore([torch.from_numpy(np.ascontiguousarray(s[..., 0])).float() for s in shown], size)
    assert torch.equal(back, torch.from_numpy(image[..., 0]).float())


def test_views_show_different_pictures():
    image = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    shown = {
        name: b'|'.join(np.ascontiguousarray(p).tobytes() for p in view.images(image)) for name, view in VIEWS.items()
    }
    assert len(set(shown.values())) == len(VIEWS)


def test_zoom_out_shrinks_by_its_scale():
    (shown,) = VIEWS['zoom0.8'].images(np.zeros((80, 160, 3), np.uint8))
    assert shown.shape[:2] == (100, 200)


def test_tiles_cover_the_image_and_overlap():
    tiles = VIEWS['tiles2'].images(np.zeros((80, 160, 3), np.uint8))
    assert [tile.shape[:2] for tile in tiles] == [(50, 100)] * 4
