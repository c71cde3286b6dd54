"""Drawn images: determinism, agreement of image and mask, data set, cache and files."""
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS
from scipy.ndimage import binary_dilation

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.drawn import STYLES, DemoShift, DrawnVesselDataset, draw, write_dataset
from sa2va_dpo.drawn.angiogram import render

CHECKSUM = """
import sys, zlib
sys.path.insert(0, {root!r})
from sa2va_dpo.drawn import draw
s = draw({style!r}, 5, 11, 256)
print(zlib.crc32(s.image.tobytes()), zlib.crc32(s.mask.tobytes()))
"""


@pytest.mark.parametrize('style', list(STYLES))
def test_same_arguments_same_pixels_whatever_was_drawn_before(style):
    first = draw(style, 5, 11, 256)
    draw('fundus', 6, 11, 128)
    np.random.seed(0)
    again = draw(style, 5, 11, 256)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    for other in (draw(style, 6, 11, 256), draw(style, 5, 12, 256)):
        assert not np.array_equal(first.mask, other.mask)


def test_same_pixels_in_another_process(repo_root):
    import zlib
    here = draw('fundus', 5, 11, 256)
    out = subprocess.run([sys.executable, '-c', CHECKSUM.format(root=str(repo_root), style='fundus')],
                         capture_output=True, text=True, check=True).stdout.split()
    assert out == [str(zlib.crc32(here.image.tobytes())), str(zlib.crc32(here.mask.tobytes()))]


@pytest.mark.parametrize('style', list(STYLES))
def test_form_of_a_sample(style):
    sample = draw(style, 0, 3, 320)
    assert sample.style == style
    assert sample.image.shape == (320, 320, 3) and sample.image.dtype == np.uint8
    assert sample.mask.shape == (320, 320) and sample.mask.dtype == np.uint8
    assert set(np.unique(sample.mask)) == {0, 255}


@pytest.mark.parametrize('style', list(STYLES))
def test_vessels_are_darker_than_their_surroundings_and_neither_rare_nor_everywhere(style):
    darker = []
    for index in range(12):
        sample = draw(style, index, 21)
        mask = sample.mask > 0
        assert 0.01 < mask.mean() < 0.22, (index, mask.mean())
        green = sample.image[..., 1].astype(float)
        ring = binary_dilation(mask, iterations=6) & ~binary_dilation(mask, iterations=2)
        if style != 'angiogram':
            ring &= sample.image.max(-1) > 30  # outside the field of view is black
        darker.append(green[ring].mean() - green[mask].mean())
    assert min(darker) > 0, darker
    assert np.mean(darker) > 3, darker


def test_catheter_is_seen_but_not_labelled():
    seen = 0
    for index in range(24):
        drawn = render(np.random.default_rng(index), 320)
        catheter = drawn.catheter > 0.9
        if catheter.sum() < 100:
            continue
        seen += 1
        assert not (drawn.mask[catheter] > 0).any()
    assert seen >= 3


def test_styles_look_different():
    mean = {
        style: np.mean([draw(style, i, 2, 128).image.reshape(-1, 3).mean(0) for i in range(4)], 0) for style in STYLES
    }
    assert mean['fundus'][0] > 1.4 * mean['fundus'][1]  # red
    assert np.allclose(mean['angiogram'][0], mean['angiogram'][2])  # grey
    assert mean['demo'][1] > 1.3 * mean['demo'][0]  # green


def test_thick_labels_leave_the_image_alone_and_contain_the_thin_ones():
    thin, thick = draw('fundus', 3, 4, 256), draw('fundus', 3, 4, 256, label_dilation_px=2)
    assert np.array_equal(thin.image, thick.image)
    assert ((thin.mask > 0) & (thick.mask == 0)).sum() == 0
    assert (thick.mask > 0).sum() > 1.5 * (thin.mask > 0).sum()


def test_demo_shift_changes_the_image_and_never_the_mask():
    near, far = (draw('demo', 1, 4, 256, shift=DemoShift(strength=s)) for s in (0.0, 2.0))
    assert np.array_equal(near.mask, far.mask)

    def contrast(sample):
        mask, green = sample.mask > 0, sample.image[..., 1].astype(float)
        ring = binary_dilation(mask, iterations=5) & ~binary_dilation(mask, iterations=2) & (green > 12)
        return (green[ring].mean() - green[mask].mean()) / green[ring].std()

    assert contrast(far) < 0.7 * contrast(near)


@pytest.mark.parametrize('change, message', [
    (dict(style='xray'), 'choose one of'), (dict(seed=-1), 'seed is -1'), (dict(size=8), 'size is 8')])
def test_bad_arguments_are_named(change, message):
    with pytest.raises(InputError, match=message):
        draw(**{**dict(style='fundus', index=0, seed=0, size=128), **change})


def test_dataset_is_registered_and_follows_its_weights():
    data = DATASETS.build(
        dict(type='DrawnVesselDataset', styles=dict(fundus=0.6, angiogram=0.4), seed=5, length=10, size=96)
    )
    assert len(data) == 10
    assert [data.sequence.count(s) for s in ('fundus', 'angiogram')] == [6, 4]
    item = data[3]
    assert set(item) == {'image', 'mask', 'prompt', 'image_id'}
    assert item['image_id'] == f'{data.sequence[3]}_5_00003'
    expected = draw(data.sequence[3], 3, 5, 96)
    assert np.array_equal(item['image'], expected.image) and np.array_equal(item['mask'], expected.mask)
    with pytest.raises(IndexError):
        data[10]


def test_cache_holds_the_same_pixels_and_is_found_again(tmp_path):
    options = dict(styles=dict(fundus=1, demo=1), seed=9, length=6, size=96)
    plain = DrawnVesselDataset(**options)
    cached = DrawnVesselDataset(**options, cache_dir=str(tmp_path), workers=1)
    for i in range(6):
        assert np.array_equal(plain[i]['image'], cached[i]['image'])
        assert np.array_equal(plain[i]['mask'], cached[i]['mask'])
    folder, = tmp_path.iterdir()
    stamp = (folder / 'images.npy').stat().st_mtime_ns
    again = DrawnVesselDataset(**options, cache_dir=str(tmp_path), workers=1)
    assert again.cache == folder and (folder / 'images.npy').stat().st_mtime_ns == stamp
    travelled = pickle.loads(pickle.dumps(cached))
    assert travelled._maps is None and np.array_equal(travelled[2]['image'], plain[2]['image'])
    item = cached[0]
    item['image'][:] = 0  # a caller may write into what it got
    assert np.array_equal(cached[0]['image'], plain[0]['image'])


def test_worker_processes_draw_the_same(tmp_path):
    options = dict(styles=dict(angiogram=1), seed=2, length=8, size=96)
    cached = DrawnVesselDataset(**options, cache_dir=str(tmp_path), workers=2)
    plain = DrawnVesselDataset(**options)
    assert all(np.array_equal(plain[i]['image'], cached[i]['image']) for i in range(8))


@pytest.mark.parametrize('change', [dict(seed=1), dict(length=3), dict(size=128), dict(styles=dict(demo=1)),
                                    dict(label_dilation_px=1.0)])
def test_every_parameter_that_changes_pixels_changes_the_cache(change):
    base = dict(styles=dict(fundus=1), seed=0, length=2, size=96)
    assert DrawnVesselDataset(**base).cache_key() != DrawnVesselDataset(**{**base, **change}).cache_key()


def test_failed_cache_leaves_nothing(tmp_path, monkeypatch):
    from sa2va_dpo.drawn import dataset

    def broken(*_):
        raise RuntimeError('stop')

    monkeypatch.setattr(dataset, 'draw', broken)
    with pytest.raises(RuntimeError):
        DrawnVesselDataset(dict(fundus=1), length=2, size=96, cache_dir=str(tmp_path), workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(styles={}), 'give weights'),
        (dict(styles=dict(fundus=0)), 'give weights'),
        (dict(styles=dict(ct=1)), 'no drawing'),
        (dict(styles=dict(fundus=1), length=0), 'length is 0'),
        (dict(styles=dict(demo=1), demo_shift=dict(x=1)), 'its fields'),
    ],
)
def test_bad_dataset_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        DrawnVesselDataset(**options)


def test_written_files_are_the_drawn_samples(tmp_path):
    paths = write_dataset(tmp_path / 'out', 'demo', seed=3, n=3, size=96, workers=1)
    assert [p.name for p in paths] == [f'demo_3_{i:05d}.png' for i in range(3)]
    for i, path in enumerate(paths):
        sample = draw('demo', i, 3, 96)
        assert np.array_equal(cv2.imread(str(path))[..., ::-1], sample.image)
        assert np.array_equal(cv2.imread(str(tmp_path / 'out' / 'masks' / path.name), 0), sample.mask)
    assert not list(tmp_path.rglob('*.tmp'))
    with pytest.raises(InputError, match='fmt'):
        write_dataset(tmp_path / 'out', 'demo', seed=3, n=1, fmt='gif')
