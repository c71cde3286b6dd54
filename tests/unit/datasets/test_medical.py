"""DICOM and NIfTI, with files that their own libraries wrote; windows worked out by hand."""
import json
import sys

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets import containers
from sa2va_dpo.datasets.ground_truth import match_ground_truth
from sa2va_dpo.datasets.mask_io import image_size, list_images, read_image_rgb, read_mask
from sa2va_dpo.datasets.medical import window
from sa2va_dpo.datasets.seg_dataset import FolderMasks

SIZE = (12, 16)


def ramp(frames=1):
    values = np.arange(frames * SIZE[0] * SIZE[1], dtype=np.uint16).reshape(frames, *SIZE)
    return values if frames > 1 else values[0]


def write_dicom(path, values, **fields):
    pytest.importorskip('pydicom')
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.12.1'
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    colour = values.shape[-1] == 3
    height, width = values.shape[-3:-1] if colour else values.shape[-2:]
    bits = values.dtype.itemsize * 8
    for name, value in dict(
        SOPClassUID=meta.MediaStorageSOPClassUID,
        SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
        Rows=height,
        Columns=width,
        SamplesPerPixel=3 if colour else 1,
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=0,
        PixelData=values.tobytes(),
        PhotometricInterpretation='RGB' if colour else 'MONOCHROME2',
    ).items():
        setattr(data, name, value)
    if colour:
        data.PlanarConfiguration = 0
    elif values.ndim == 3:
        data.NumberOfFrames = len(values)
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize('function, value, expected', [
    # LINEAR: ((x - (c - .5)) / (w - 1) + .5) * 255 with c = 100, w = 51: 99.5 is the middle, 25 from it an end.
    ('LINEAR', 99.5, 128), ('LINEAR', 74.5, 0), ('LINEAR', 124.5, 255), ('LINEAR', 110, 181), ('LINEAR', 500, 255),
    # LINEAR_EXACT: ((x - c) / w + .5) * 255.
    ('LINEAR_EXACT', 100, 128), ('LINEAR_EXACT', 110, 178), ('LINEAR_EXACT', 0, 0),
    # SIGMOID: 255 / (1 + exp(-4 (x - c) / w)).
    ('SIGMOID', 100, 128), ('SIGMOID', 110, 175)])
def test_windows_by_hand(function, value, expected):
    assert abs(int(window(np.array([[value]]), 100, 51, function)[0, 0]) - expected) <= 1


def test_one_frame_with_its_window(tmp_path):
    path = write_dicom(
        tmp_path / 'run.dcm', ramp(), WindowCenter=100, WindowWidth=51, RescaleSlope=2, RescaleIntercept=-10
    )
    (frame,) = list_images(tmp_path)
    assert frame == path / 'run.png' and image_size(frame) == (16, 12)
    # Stored 50 is 2 * 50 - 10 = 90: ((90 - 99.5) / 50 + .5) * 255 = 79.05.
    assert read_image_rgb(frame).reshape(-1, 3)[50].tolist() == [79] * 3
    assert np.array_equal(read_image_rgb(path), read_image_rgb(frame)), 'a file of one frame may be named as it is'


def test_without_a_window_over_its_own_range_and_inverted(tmp_path):
    write_dicom(tmp_path / 'a.dcm', ramp())
    write_dicom(tmp_path / 'b.dcm', ramp(), PhotometricInterpretation='MONOCHROME1')
    one, other = map(read_image_rgb, list_images(tmp_path))
    assert one.min() == 0 and one.max() == 255 and np.array_equal(other, 255 - one)


def test_several_windows_mean_the_first(tmp_path):
    path = write_dicom(tmp_path / 'a.dcm', ramp(), WindowCenter=[100, 5], WindowWidth=[51, 3])
    assert read_image_rgb(path).reshape(-1, 3)[110, 0] == 181


def test_windows_of_enhanced_files_belong_to_the_frame(tmp_path):
    pytest.importorskip('pydicom')
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    groups = []
    for center in (100, 300):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 51
        group.FrameVOILUTSequence = Sequence([voi])
        groups.append(group)
    path = write_dicom(tmp_path / 'run.dcm', ramp(2), PerFrameFunctionalGroupsSequence=Sequence(groups))
    first, second = map(read_image_rgb, list_images(tmp_path))
    assert first.reshape(-1, 3)[110, 0] == 181 and second.reshape(-1, 3)[310 - 192, 0] == 181
    assert path.is_file()


def test_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    assert np.array_equal(read_image_rgb(write_dicom(tmp_path / 'fundus.dcm', pixels)), pixels)


def test_frames_match_masks_by_number(tmp_path):
    path = write_dicom(tmp_path / 'images/run.dcm', ramp(3))
    mask = np.zeros(SIZE, np.uint8)
    mask[4, 3:9] = 255
    (tmp_path / 'masks').mkdir()
    Image.fromarray(mask).save(tmp_path / 'masks/run_0002_mask.png')
    matched, missing = match_ground_truth(list_images(tmp_path / 'images'), tmp_path / 'masks')
    assert matched == [(path / 'run_0002.png', tmp_path / 'masks/run_0002_mask.png')]
    assert missing == [path / 'run_0001.png', path / 'run_0003.png']
    item = FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'masks'))[0]
    assert item['image_id'] == 'run_0002' and item['mask'].sum() == 6
    with pytest.raises(InputError, match='holds 3 pictures where one is meant'):
        read_image_rgb(path)


def test_files_without_a_suffix_are_known_by_their_mark(tmp_path):
    write_dicom(tmp_path / 'IM0001', ramp())
    write_dicom(tmp_path / '1.2.840.113619', ramp() + 7)
    (tmp_path / 'notes').write_text('no picture')
    assert [frame.name for frame in list_images(tmp_path)] == ['1.2.840.113619.png', 'IM0001.png']


@pytest.mark.parametrize(
    'damage', [lambda content: content[:200], lambda content: content[:-40], lambda content: b'DICM' * 60]
)
def test_damaged_dicom_is_one_line(tmp_path, damage):
    path = write_dicom(tmp_path / 'run.dcm', ramp())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match='run.dcm') as error:
        for frame in list_images(tmp_path):
            read_image_rgb(frame)
    assert len(str(error.value).splitlines()) == 1


def test_a_dicom_bomb_is_refused_by_its_header(tmp_path):
    path = write_dicom(tmp_path / 'run.dcm', ramp(), Rows=60000, Columns=60000)
    for look in (image_size, read_image_rgb):
        with pytest.raises(InputError, match='60000 x 60000 px, the limit is'):
            look(containers.entries(path)[0])
    path = write_dicom(tmp_path / 'long.dcm', ramp(), NumberOfFrames=10 ** 9)
    with pytest.raises(InputError, match='frames'):
        containers.entries(path)


# -- NIfTI ------------------------------------------------------------------------------------------------------------

def write_nifti(path, values):
    """As ITK writes it: the first axis runs along a row of the picture."""
    nibabel = pytest.importorskip('nibabel')
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values), np.eye(4)), path)
    return path


@pytest.mark.parametrize('shape', [lambda m: m.T, lambda m: m.T[..., None], lambda m: m.T[..., None, None]])
@pytest.mark.parametrize(
    'dtype, vessel', [(np.uint8, 1), (np.uint8, 255), (np.int16, 1), (np.float32, 1), (np.int32, 7)]
)
def test_a_mask_of_one_slice(tmp_path, shape, dtype, vessel):
    mask = np.zeros(SIZE, bool)
    mask[4, 3:9] = mask[2:10, 5] = True
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / 'case_7.png')
    write_nifti(tmp_path / 'masks/case_7.nii.gz', shape(mask.astype(dtype) * dtype(vessel)))
    item = FolderMasks(str(tmp_path), str(tmp_path / 'masks'))[0]
    assert np.array_equal(item['mask'], mask)


def test_slices_of_a_volume_match_the_frames_of_a_run(tmp_path):
    write_dicom(tmp_path / 'images/run.dcm', ramp(3))
    volume = np.zeros((3, *SIZE), np.uint8)
    for k in range(3):
        volume[k, 2 + k, 3:9 + k] = 1
    write_nifti(tmp_path / 'masks/run.nii.gz', volume.transpose(2, 1, 0))
    dataset = FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'masks'))
    assert [item['image_id'] for item in map(dataset.__getitem__, range(3))] == ['run_0001', 'run_0002', 'run_0003']
    assert all(np.array_equal(dataset[k]['mask'], volume[k] > 0) for k in range(3))


def test_a_transposed_mask_is_said(tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / 'a.png')
    write_nifti(tmp_path / 'masks/a.nii', np.eye(*SIZE, dtype=np.uint8))
    with pytest.raises(InputError, match='rows and columns are exchanged'):
        FolderMasks(str(tmp_path), str(tmp_path / 'masks'))


@pytest.mark.parametrize('shape', [(4,), (4, 4, 2, 3)])
def test_volumes_that_are_no_stack(tmp_path, shape):
    path = write_nifti(tmp_path / 'a.nii', np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match='a.nii'):
        list_images(path.parent)


def test_a_cut_nifti_is_one_line(tmp_path):
    path = write_nifti(tmp_path / 'a.nii.gz', np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    for content in (path.read_bytes()[:-300], b'nothing'):
        path.write_bytes(content)
        with pytest.raises(InputError, match='a.nii.gz') as error:
            read_mask(list_images(tmp_path)[0])
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('name, library', [('a.dcm', 'pydicom'), ('a.nii.gz', 'nibabel')])
def test_without_the_library_one_line_says_how_to_get_it(tmp_path, monkeypatch, name, library):
    (tmp_path / name).write_bytes(b'x')
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{name}: is .*needs {library}: pip install 'sa2va-dpo\[medical\]'"):
        list_images(tmp_path)


def test_pairs_of_dicom_frames(tmp_path):
    """The data root holds plain pictures: who trains from it needs no library for DICOM."""
    from sa2va_dpo.datasets.annotations import read_pairs, read_segs
    from sa2va_dpo.preferences.generate import GenerateConfig, generate_pairs

    write_dicom(tmp_path / 'images/a.dcm', ramp(3), WindowCenter=100, WindowWidth=51)
    write_dicom(tmp_path / 'images/b.dcm', ramp() + 3)
    write_dicom(tmp_path / 'images/c.dcm', ramp() + 9)
    rng = np.random.default_rng(0)
    for stem in ('a_0001', 'a_0003', 'b', 'c'):
        for folder, share in (('gt', 0), ('pred/one', 0.1), ('pred/two', 0.4)):
            mask = np.zeros(SIZE, bool)
            mask[4:8] = True
            mask ^= rng.random(SIZE) < share
            path = tmp_path / folder / f'{stem}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    report = generate_pairs(
        GenerateConfig(
            mode='from_predictions',
            images_dir=str(tmp_path / 'pred'),
            gt_dir=str(tmp_path / 'gt'),
            output_dir=str(tmp_path / 'out'),
            source_images_dir=str(tmp_path / 'images'),
            group_regex='^[a-z]',
        )
    )
    out = tmp_path / 'out'
    assert sum(part['images'] for part in report['split'].values()) == 4
    assert {part: sizes['patients'] for part, sizes in report['split'].items()} == dict(train=1, val=1, test=1)
    assert len(report['skipped_without_ground_truth']) == 1 and 'a_0002' in report['skipped_without_ground_truth'][0]
    frames = {path.stem: path for path in list_images(tmp_path / 'images')}
    records = [*read_pairs(out / 'dpo_annotations.json', out), *read_segs(out / 'val_annotations.json', out),
               *read_segs(out / 'test_annotations.json', out)]
    for record in records:
        stored = out / record.image
        assert stored.suffix == '.png' and np.array_equal(read_image_rgb(stored), read_image_rgb(frames[stored.stem]))
    assert json.loads((out / 'generation_report.json').read_text()) == report
