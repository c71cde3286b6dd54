"""Training draws of an image in tiles: image and masks are cut alike, shares are as stated, caches hold tiles."""
import json

import cv2
import numpy as np
import pytest
import torch

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.caching.build import fill
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.tensor_store import CacheStore
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset, dpo_collate
from sa2va_dpo.datasets.draws import Draw
from sa2va_dpo.datasets.round_pairs import RoundPairs
from sa2va_dpo.datasets.samples import SampleMaker
from sa2va_dpo.datasets.seg_dataset import FolderMasks, VesselSegDataset
from sa2va_dpo.models.checkpoint import load_checkpoint

PROMPT = '<image>Please segment the blood vessels.'
GRID = dict(grid=2, overlap=0.25)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """One image, bright where the chosen mask is; the rejected mask differs in the upper left alone."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    mask = (rng.random((9, 12)) < 0.5).astype(np.uint8).repeat(12, 0).repeat(12, 1) * 255
    worse = mask.copy()
    worse[:20, :20] = 255 - worse[:20, :20]
    (root / 'images').mkdir()
    (root / 'gt').mkdir()
    for name, picture in (('images/i.png', np.repeat(mask[..., None], 3, 2)), ('gt/i.png', mask), ('worse.png', worse)):
        cv2.imwrite(str(root / name), picture)
    record = dict(image='images/i.png', chosen_mask='gt/i.png', rejected_mask='worse.png', chosen_iou=1.0,
                  rejected_iou=0.9, iou_gap=0.1, prompt=PROMPT)
    (root / 'dpo_annotations.json').write_text(json.dumps([record]))
    (root / 'val.json').write_text(json.dumps([record]))
    return root


def whiteness(item, target):
    """How alike what SAM2 sees and the mask are: correlation of the two, on the mask's square."""
    picture = item['sample']['sam_pixel_values'].mean(0).numpy()
    seen = cv2.resize(picture, target.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.corrcoef(seen.ravel(), target.ravel().astype(float))[0, 1]


def test_a_tile_and_its_masks_are_one_cut(root, micro_checkpoint):
    data = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, flip_prob=0.5, view=GRID)
    supervised = VesselSegDataset(FolderMasks(str(root / 'images'), str(root / 'gt')), str(micro_checkpoint),
                                  training=True, score_size=64, flip_prob=0.5, view=GRID)
    sizes = {(108, 144): 0, (62, 83): 0}
    for number in range(60):
        item = data[Draw(0, number)]
        sizes[item['sample']['original_size']] += 1
        assert whiteness(item, item['chosen'][0]) > 0.95
        other = supervised[Draw(0, number)]
        assert whiteness(other, other['target']) > 0.95
    # A quarter of the draws shows the whole image; 60 draws, so 15 expected with a deviation of 3.4.
    assert 5 <= sizes[108, 144] <= 25 and sum(sizes.values()) == 60
    # The rejected mask is another one in one of the four tiles; where it is not, the pair stays alone.
    assert dpo_collate([data[Draw(0, n)] for n in range(3)], str(micro_checkpoint))['chosen'].shape == (3, 64, 64)


def test_shares_at_the_ends(root, micro_checkpoint):
    for share, sizes in ((0.0, {(62, 83)}), (1.0, {(108, 144)})):
        data = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, view=dict(GRID, whole_share=share))
        assert {data[Draw(0, number)]['sample']['original_size'] for number in range(8)} == sizes
        assert len(data.views()) == (4 if not share else 5)


def test_whole_images_draw_as_they_always_did(root, micro_checkpoint):
    plain = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, flip_prob=0.5)
    named = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, flip_prob=0.5, view=dict(grid=1))
    for number in range(6):
        one, other = plain[Draw(0, number)], named[Draw(0, number)]
        assert torch.equal(one['sample']['sam_pixel_values'], other['sample']['sam_pixel_values'])
        assert np.array_equal(one['rejected'], other['rejected'])
    assert [view.key() for view in plain.views()] == [view.key() for view in named.views()]


def test_validation_pairs_are_whole(root, micro_checkpoint):
    data = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, view=GRID)
    assert data.validation_pairs('val.json')[0]['sample']['original_size'] == (108, 144)
    rounds = RoundPairs(str(root), str(micro_checkpoint), [str(root / 'images/i.png')], score_size=64, view=GRID)
    assert len(rounds.views()) == 5
    assert rounds.validation_pairs('val.json')[0]['sample']['original_size'] == (108, 144)


def test_the_context_of_a_tile(root, micro_checkpoint):
    """With the whole image for context every tile has its language half, with its own context not."""
    views = {context: DPOVesselDataset(str(root), str(micro_checkpoint), view=dict(GRID, context=context)).views()
             for context in ('image', 'tile')}
    make = SampleMaker(DPOVesselDataset(str(root), str(micro_checkpoint)).pre)
    whole = make(views['image'][0])
    image, tile = make(views['image'][1]), make(views['tile'][1])
    assert torch.equal(image['pixel_values'], whole['pixel_values'])
    assert tile['pixel_values'].shape != whole['pixel_values'].shape or not torch.equal(tile['pixel_values'],
                                                                                        whole['pixel_values'])
    assert torch.equal(image['sam_pixel_values'], tile['sam_pixel_values'])


@pytest.mark.parametrize('context, states', [('image', 1), ('tile', 5)])
def test_caches_hold_tiles_and_share_what_tiles_share(root, micro_checkpoint, tmp_path, context, states):
    kinds = ('seg_states', 'sam2_levels')
    view = dict(GRID, context=context)
    data = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, view=view)
    stores = {kind: CacheStore(tmp_path / kind) for kind in kinds}
    policy = load_checkpoint(micro_checkpoint).eval()
    assert fill(policy, SampleMaker(data.pre), [(v, kinds) for v in data.views()], stores) == 5
    files = {kind: len(list((tmp_path / kind).rglob('*.safetensors'))) for kind in kinds}
    assert files == dict(seg_states=states, sam2_levels=5)
    cached = DPOVesselDataset(str(root), str(micro_checkpoint), score_size=64, view=view,
                              cache={kind: str(tmp_path / kind) for kind in kinds})
    for number in range(4):
        one, other = (d.pre.collate([d[Draw(0, number)]['sample']]) for d in (data, cached))
        with torch.no_grad():
            torch.testing.assert_close(policy(one).low_res, policy(other).low_res, rtol=1e-4, atol=1e-4)
        assert one['original_sizes'] == other['original_sizes']
    # Validation predicts from all tiles, cached or not.
    source = FolderMasks(str(root / 'images'), str(root / 'gt'))
    plain = VesselSegDataset(source, str(micro_checkpoint), view=view)
    brought = VesselSegDataset(source, str(micro_checkpoint), view=view, cache=cached.cache)
    fill(policy, SampleMaker(data.pre), [(v, kinds) for v in plain.views()], stores)
    sample = brought[0]['sample']
    assert len(sample['tiles']) == 4 and 'sam2_levels' in sample['tiles'][0]
    assert ('seg_states' in sample) == (context == 'image')


def test_a_bad_view_names_the_field(root, micro_checkpoint):
    with pytest.raises(InputError, match='view.grid: 0 must be'):
        DPOVesselDataset(str(root), str(micro_checkpoint), view=dict(grid=0))
