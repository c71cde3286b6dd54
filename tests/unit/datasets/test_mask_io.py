"""Reading every format of the field, whatever the file is called."""
import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.mask_io import list_images, read_image_rgb, read_mask, read_probability, write_mask

MASK = np.zeros((24, 36), bool)
MASK[4:16, 8:24] = True


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'tif', 'bmp', 'gif', 'ppm', 'pgm'])
@pytest.mark.parametrize('top', [1, 255])
def test_masks_of_every_format(tmp_path, suffix, top):
    if suffix == 'jpg' and top == 1:
        pytest.skip('a lossy format cannot hold levels 0 and 1')
    path = tmp_path / f'Gefäß (links) ^1 眼.{suffix}'
    image = Image.fromarray(MASK.astype(np.uint8) * top)
    (image.convert('RGB') if suffix == 'ppm' else image).save(path)
    assert np.array_equal(read_mask(path), MASK)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize('mode', ['1', 'P', 'RGB', 'RGBA', 'LA', 'I;16'])
def test_masks_of_every_png_mode(tmp_path, mode):
    if mode == 'I;16':
        image = Image.fromarray(MASK.astype(np.uint16) * 65535)
    elif mode == 'P':
        image = Image.fromarray(MASK.astype(np.uint8), mode='P')
        image.putpalette([255, 255, 255, 10, 10, 10])  # class index 1 is dark: the index counts, not its colour
    else:
        image = Image.fromarray(MASK.astype(np.uint8) * 255).convert(mode)
    image.save(tmp_path / 'm.png')
    assert np.array_equal(read_mask(tmp_path / 'm.png'), MASK)


def test_half_of_the_range_is_background(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / 'm.png')
    assert read_mask(tmp_path / 'm.png').tolist() == [[False, False, True, True]]


def test_probabilities(tmp_path):
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(tmp_path / 'p.png')
    np.testing.assert_allclose(read_probability(tmp_path / 'p.png'), [[0, 0.2, 1]], atol=1e-6)


def test_natural_order(tmp_path):
    for name in ('image_10.png', 'image_2.png', 'Image_1.png', 'notes.txt', '.hidden.png'):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ['Image_1.png', 'image_2.png', 'image_10.png']


def test_image_is_rgb(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 300).save(tmp_path / 'deep.png')
    rgb = read_image_rgb(tmp_path / 'deep.png')
    assert rgb.shape == (3, 4, 3) and rgb.dtype == np.uint8 and rgb.min() == 0 and rgb.max() == 255


def test_written_masks_are_8_bit_0_and_255(tmp_path):
    path = tmp_path / 'new folder' / 'ä (1).png'
    write_mask(path, MASK)
    with Image.open(path) as image:
        assert image.mode == 'L' and set(np.unique(np.asarray(image))) == {0, 255}
    assert np.array_equal(read_mask(path), MASK)
    assert [p.name for p in path.parent.iterdir()] == ['ä (1).png']


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n' + b'\0' * 40])
def test_corrupt_files_are_named(tmp_path, content):
    (tmp_path / 'bad.png').write_bytes(content)
    for read in (read_mask, read_image_rgb, read_probability):
        with pytest.raises(InputError, match='bad.png'):
            read(tmp_path / 'bad.png')


def test_truncated_file_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / 'whole.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'whole.png').read_bytes()[:-1500])
    with pytest.raises(InputError, match='cut.png'):
        read_mask(tmp_path / 'cut.png')
