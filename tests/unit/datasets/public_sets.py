"""Tiny data sets under the file names of the public ones."""
import numpy as np
from PIL import Image

SIZE = (20, 30)


def vessels(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(SIZE, bool)
    mask[rng.integers(4, 14), 5:25] = mask[4:16, rng.integers(8, 22)] = True
    return mask


def field():
    y, x = np.mgrid[:SIZE[0], :SIZE[1]]
    return ((y - 9.5) / 9.5) ** 2 + ((x - 14.5) / 14.5) ** 2 <= 1


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    image = Image.fromarray(pixels)
    image.convert(mode or image.mode).save(path)


def photograph(path, seed, mode='RGB'):
    save(path, np.random.default_rng(100 + seed).integers(40, 200, (*SIZE, 3), np.uint8), mode)


# name: (image files, folder of images), (mask pattern, folder of masks), others, mode of the image, mode of the mask
SETS = {
    'DRIVE': dict(
        images='images',
        image='{}_training.tif',
        masks='1st_manual',
        mask='{}_manual1.gif',
        ids=('21', '22', '40'),
        others={'mask': '{}_training_mask.gif', '2nd_manual': '{}_manual2.gif'},
        field='{}_training_mask.gif',
    ),
    'DRIVE test': dict(
        images='images',
        image='{}_test.tif',
        masks='1st_manual',
        mask='{}_manual1.gif',
        ids=('01', '02'),
        others={'mask': '{}_test_mask.gif'},
        field='{}_test_mask.gif',
    ),
    'STARE': dict(
        images='stare-images',
        image='im{}.ppm',
        masks='labels-ah',
        mask='im{}.ah.ppm',
        ids=('0001', '0077', '0324'),
        others={'labels-vk': 'im{}.vk.ppm'},
    ),
    'CHASE_DB1': dict(
        images='images',
        image='Image_{}.jpg',
        masks='gt',
        mask='Image_{}_1stHO.png',
        ids=('01L', '01R', '14L'),
        others={'gt': 'Image_{}_2ndHO.png'},
        mask_mode='1',
    ),
    'HRF': dict(
        images='images',
        image='{}.JPG',
        masks='manual1',
        mask='{}.tif',
        ids=('01_dr', '01_h', '15_g'),
        others={'mask': '{}_mask.tif'},
        field='{}_mask.tif',
        other_mode='RGB',
    ),
    'DCA1': dict(
        images='database', image='{}.pgm', masks='database', mask='{}_gt.pgm', ids=('1', '10', '134'), image_mode='L'
    ),
    'FIVES': dict(
        images='train/Original', image='{}.png', masks='train/Ground truth', mask='{}.png', ids=('1_A', '2_D', '12_N')
    ),
    'plain': dict(images='images', image='{}.png', masks='masks', mask='{}.png', ids=('a', 'a_test', 'b')),
}


def write(root, name, one_folder=False):
    spec = SETS[name]
    place = (lambda folder: root / 'all') if one_folder else (lambda folder: root / folder)
    for k, ident in enumerate(spec['ids']):
        photograph(place(spec['images']) / spec['image'].format(ident), k, spec.get('image_mode', 'RGB'))
        save(place(spec['masks']) / spec['mask'].format(ident), vessels(k), spec.get('mask_mode'))
        for folder, pattern in spec.get('others', {}).items():
            other = field() if pattern == spec.get('field') else vessels(50 + k)
            save(place(folder) / pattern.format(ident), other, spec.get('other_mode'))
    return place(spec['images']), place(spec['masks'])
