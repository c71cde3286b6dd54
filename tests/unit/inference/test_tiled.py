"""Prediction in tiles: one tile is the plain path to the bit, no seam, every door does the same."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.seg_dataset import FolderMasks
from sa2va_dpo.drawn import draw
from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.inference.predictor import Predictor
from sa2va_dpo.inference.scoring import images_of, load_for_inference, predict_and_score
from sa2va_dpo.models import tiled
from sa2va_dpo.models.checkpoint import copy_with_sam_size, read_view, write_view
from sa2va_dpo.models.view_geometry import ViewGeometry
from sa2va_dpo.preferences.candidates import Request
from sa2va_dpo.preferences.sampler import Policies, PolicySampler

PROMPT = '<image>Please segment the blood vessels.'
VIEWS = [dict(grid=2), dict(grid=2, context='tile'), dict(grid=3, overlap=0.5, blend='mean')]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The bundled weights at 256 px: quick, and they know a vessel."""
    return copy_with_sam_size(bundled_checkpoint(), tmp_path_factory.mktemp('small') / 'checkpoint', 256)


@pytest.fixture(scope='module')
def plain(checkpoint):
    return Predictor.from_pretrained(checkpoint, device='cpu')


@pytest.fixture(scope='module')
def drawing():
    return draw('fundus', 0, seed=5, size=384)


def looking(plain, **view):
    return Predictor(plain.model, plain.preprocessor, view)


@pytest.mark.parametrize('context', ['image', 'tile'])
def test_one_tile_is_the_plain_path_to_the_bit(plain, drawing, context):
    expected = plain.predict(drawing.image, PROMPT)
    # 'auto' goes the way of tiles, and a picture smaller than SAM2's input has one.
    small = drawing.image[:200, :230]
    found = looking(plain, grid='auto', context=context).predict(small, PROMPT)
    assert np.array_equal(found.logits, plain.predict(small, PROMPT).logits)
    assert np.array_equal(looking(plain, grid=1).predict(drawing.image, PROMPT).logits, expected.logits)


def test_a_tile_is_what_the_policy_says_of_the_cut(plain, drawing):
    """Where one tile alone covers a pixel and is an image of its own, the map is its answer."""
    view = ViewGeometry(grid=2, context='tile')
    first = view.boxes((384, 384), 256)[0]
    alone = plain.predict(first.cut(drawing.image), PROMPT).logits[0]
    found = looking(plain, **view.to_dict()).predict(drawing.image, PROMPT).logits[0]
    corner = 384 - first.bottom  # where the other tiles begin
    assert np.array_equal(found[:corner, :corner], alone[:corner, :corner])


@pytest.mark.parametrize('view', VIEWS)
def test_tiles_see_more_than_the_whole(plain, drawing, view):
    def score(predictor):
        return dice(confusion_counts(predictor.predict(drawing.image, PROMPT).masks[0], drawing.mask > 0))
    assert score(looking(plain, **view)) > score(plain) + 0.03


def test_shifting_the_grid_changes_few_decisions(plain, drawing):
    """At most 2 % of the pixels (measured: 1.1 to 1.4 %), and fewer than the whole-image path changes (2.2 %)."""
    def changed(predictor, shift):
        there = predictor.predict(drawing.image, PROMPT).masks[0][shift:, shift:]
        return (there != predictor.predict(drawing.image[shift:, shift:], PROMPT).masks[0]).mean()
    for shift in (8, 16):
        assert changed(looking(plain, grid=2), shift) < min(0.02, changed(plain, shift))


def test_every_mask_and_free_generation_go_through_the_tiles(plain, drawing):
    closer = looking(plain, grid=2)
    two = closer.predict(drawing.image, PROMPT, '[SEG] and [SEG].')
    assert two.masks.shape == (2, 384, 384) and two.iou_pred.shape == (2,)
    assert not np.array_equal(two.logits[0], two.logits[1])
    said = closer.predict(drawing.image, PROMPT, free_generation=True)
    if said.text == 'Sure, [SEG].':
        np.testing.assert_allclose(said.logits, closer.predict(drawing.image, PROMPT).logits, atol=1e-3)
    assert len(said.masks) == said.text.count('[SEG]')


def test_the_language_model_sees_the_whole_image_once(plain, drawing, monkeypatch):
    seen = []
    encode = type(plain.model).encode_prompt
    monkeypatch.setattr(type(plain.model), 'encode_prompt', lambda self, batch: seen.append(1) or encode(self, batch))
    looking(plain, grid=2).predict(drawing.image, PROMPT)
    assert len(seen) == 1
    looking(plain, grid=2, context='tile').predict(drawing.image, PROMPT)
    assert len(seen) == 5


def test_passes_hold_no_more_tiles_than_they_may(plain, drawing, monkeypatch):
    sizes = []
    features = type(plain.model).image_features
    monkeypatch.setattr(type(plain.model), 'image_features',
                        lambda self, batch: sizes.append(len(batch['sam_pixel_values'])) or features(self, batch))
    looking(plain, grid=3).predict(drawing.image, PROMPT)
    assert sizes == [1] * 9, 'on a CPU one by one'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three images of two sizes."""
    root = tmp_path_factory.mktemp('images')
    for name in ('images', 'gt'):
        (root / name).mkdir()
    for index, size in enumerate((320, 320, 280)):
        drawn = draw('fundus', index, seed=6, size=size)
        Image.fromarray(drawn.image).save(root / f'images/{index}.png')
        Image.fromarray((drawn.mask > 0).astype(np.uint8) * 255).save(root / f'gt/{index}.png')
    return root


@pytest.mark.parametrize('view', VIEWS[:2] + [dict(grid='auto')])
def test_scoring_mining_and_prediction_are_one(plain, checkpoint, folder, view, tmp_path):
    """The view of the checkpoint's own file, whichever door it is opened by."""
    import shutil

    mine = tmp_path / 'checkpoint'
    shutil.copytree(checkpoint, mine)
    write_view(mine, ViewGeometry.of(view))
    assert read_view(mine) == ViewGeometry.of(view)
    predictor = Predictor.from_pretrained(mine, device='cpu')
    source = FolderMasks(str(folder / 'images'), str(folder / 'gt'))
    expected = [predictor.predict(source[i]['image'], source[i]['prompt']).masks[0] for i in range(3)]
    model = load_for_inference(mine, 'cpu')
    for batch_size in (1, 3):
        scored = predict_and_score(model, images_of(source, mine), batch_size)
        for (sample, _), mask in zip(scored, expected, strict=True):
            assert (sample['pred_mask'] != mask).mean() < 1e-4
    sampler = PolicySampler(Policies(None, 'cpu', predictor.model, predictor.preprocessor), source[0]['image'], 'a',
                            PROMPT, 0)
    mask, _ = sampler.masks([Request()])[0]
    assert np.array_equal(mask, expected[0])
    noisy, dropped, flipped = (mask for mask, _ in sampler.masks(
        [Request(seg_noise=1.0), Request(dropout=0.4), Request(view='hflip')]))
    assert noisy.shape == expected[0].shape and (dropped != mask).any() and (flipped != mask).mean() < 0.05
    # A setting of the data set wins over the file.
    whole = [sample['pred_mask'] for sample, _ in predict_and_score(model, images_of(source, mine, dict(grid=1)))]
    assert np.array_equal(whole[0], plain.predict(source[0]['image'], PROMPT).masks[0])


def test_a_broken_file_is_named(checkpoint, tmp_path):
    for content, words in ((dict(view=dict(grid=99)), 'sa2va_dpo.json: view.grid: 99 must be'),
                           (dict(veiw={}), 'sa2va_dpo.json: veiw: must be one object called view'),
                           (dict(view=3), 'sa2va_dpo.json: view: must be')):
        (tmp_path / 'sa2va_dpo.json').write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            read_view(tmp_path)


def test_a_whole_view_writes_no_file(tmp_path):
    write_view(tmp_path, ViewGeometry())
    assert not list(tmp_path.iterdir()) and read_view(tmp_path).plain
    write_view(tmp_path, ViewGeometry(grid=2))
    write_view(tmp_path, ViewGeometry())
    assert read_view(tmp_path).plain


def test_batches_move_with_everything_in_them():
    batch = dict(a=torch.zeros(1), tiles=[dict(grid='g', parts=[dict(b=torch.zeros(2), sizes=[(1, 2)])])])
    moved = tiled.moved(batch, 'meta')
    assert moved['a'].is_meta and moved['tiles'][0]['parts'][0]['b'].is_meta
    assert moved['tiles'][0]['grid'] == 'g' and moved['tiles'][0]['parts'][0]['sizes'] == [(1, 2)]
