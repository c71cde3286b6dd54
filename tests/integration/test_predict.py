"""``sa2va-dpo predict`` with a real checkpoint: what it writes, what it leaves out, and that a kill changes nothing."""
from __future__ import annotations

import csv
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask, read_probability
from sa2va_dpo.evaluation.measures import vessel_measures
from sa2va_dpo.inference.predictor import Predictor
from tests.integration.kills import Killable

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def images(tmp_path_factory, draw_case):
    """Six images in three folders, two of them of one stem, and a run of three frames."""
    root = tmp_path_factory.mktemp('images')
    for index, name in enumerate(('a/case_1.png', 'a/case_2.tif', 'b/case_1.png', 'b/deep/x.bmp', 'case_10.png',
                                  'case_9.ppm')):
        image, _ = draw_case(index)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / name), image[:, :128 - 8 * index])
    return root


@pytest.fixture(scope='module')
def predict(micro_checkpoint, repo_root, tmp_path_factory):
    command = Killable('predict', repo_root, tmp_path_factory.mktemp('outputs'),
                       ('sa2va_dpo.datasets.image_files', 'sa2va_dpo.inference.prediction_folder'))

    def run(source, folder, *more, **how):
        return command.run('--model', micro_checkpoint, '--input', source, '--output', folder, *more,
                           watch=('files', 'journal'), **how)

    yield run
    command.close()


ALL = ('--probabilities', '--overlays', '--batch-size', '2')


@pytest.fixture(scope='module')
def undisturbed(predict, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    predict(images, folder, *ALL, log=folder.parent / 'operations')
    return folder, (folder.parent / 'operations').read_text().splitlines()


def results(folder: Path) -> dict[str, bytes]:
    """What a user finds; the record says when, and the journal in which order."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and path.name not in ('owner.json', 'predictions.jsonl', 'error.log')}


def table(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / 'predictions.csv').read_text().splitlines()))


def test_every_image_has_its_files_and_its_row(undisturbed, images, micro_checkpoint):
    folder, _ = undisturbed
    rows = table(folder)
    assert [row['image'] for row in rows] == [
        'case_9.ppm', 'case_10.png', 'a/case_1.png', 'a/case_2.tif', 'b/case_1.png', 'b/deep/x.bmp']
    predictor = Predictor.from_pretrained(micro_checkpoint, device='cpu')
    for row in rows:
        image = read_image_rgb(images / row['image'])
        mask = read_mask(folder / row['mask'])
        assert mask.shape == image.shape[:2] == (int(row['height']), int(row['width']))
        expected = predictor.predict(image, '<image>Please segment the blood vessels.')
        # A batch of two rounds otherwise than one image alone.
        assert (mask != expected.masks[0]).mean() < 0.002
        name = row['mask'].removeprefix('masks/')
        probability = read_probability(folder / 'probabilities' / name)
        np.testing.assert_allclose(probability, 1 / (1 + np.exp(-expected.logits[0])), atol=2e-3)
        assert ((probability > 0.5) != mask).sum() <= (np.abs(probability - 0.5) < 1e-4).sum()
        measured = vessel_measures(mask)
        assert int(row['vessel_px']) == mask.sum() and int(row['components']) == measured.components
        assert float(row['skeleton_length_px']) == pytest.approx(measured.skeleton_length_px, abs=0.005)
        assert (folder / 'overlays' / name).is_file()
    assert 0 < np.mean([float(row['vessel_share']) for row in rows]) < 1


def test_a_kill_anywhere_and_the_same_command_end_with_the_same_files(undisturbed, predict, images, tmp_path):
    whole, operations = undisturbed
    expected = results(whole)
    assert len(operations) > 40 and len(expected) == 6 * 3 + 1
    for at in range(1, len(operations) + 1, 4):
        folder = tmp_path / str(at)
        predict(images, folder, *ALL, at=at, code=-signal.SIGKILL)
        predict(images, folder, *ALL)
        assert results(folder) == expected, f'killed at {operations[at - 1]}'


def test_a_finished_run_computes_nothing_again(undisturbed, predict, images):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.glob('masks/**/*.png')}
    predict(images, folder, *ALL)
    assert {path: path.stat().st_mtime_ns for path in folder.glob('masks/**/*.png')} == before


def test_overlays_may_be_asked_for_later_and_changed_images_are_done_anew(predict, images, tmp_path, draw_case):
    source = tmp_path / 'in'
    source.mkdir()
    for index in range(3):
        cv2.imwrite(str(source / f'{index}.png'), draw_case(index)[0])
    folder = tmp_path / 'out'
    predict(source, folder)
    assert not (folder / 'overlays').exists()
    predict(source, folder, '--overlays')
    assert len(list((folder / 'overlays').iterdir())) == 3
    first = (folder / 'masks/1.png').read_bytes()
    cv2.imwrite(str(source / '1.png'), draw_case(7)[0])
    cv2.imwrite(str(source / '3.png'), draw_case(8)[0])
    predict(source, folder, '--overlays')
    assert (folder / 'masks/1.png').read_bytes() != first and len(table(folder)) == 4


def test_what_cannot_be_read_is_named_and_loses_nobody_else(predict, images, tmp_path, draw_case):
    source, folder = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    for index in range(4):
        cv2.imwrite(str(source / f'{index}.png'), draw_case(index)[0])
    whole = (source / '1.png').read_bytes()
    (source / '1.png').write_bytes(whole[:len(whole) // 2])
    (source / '4.dcm').write_bytes(b'rubbish')
    said = predict(source, folder, '--batch-size', 3, code=2)
    lines = said.splitlines()
    assert sum('left out: ' in line and '1.png' in line for line in lines) == 1
    assert sum('left out: ' in line and '4.dcm' in line for line in lines) == 1
    assert 'error: 2 of 5 images could not be read' in lines[-1] and 'Traceback' not in said
    assert [row['image'] for row in table(folder)] == ['0.png', '2.png', '3.png']
    (source / '1.png').write_bytes(whole)
    (source / '4.dcm').unlink()
    predict(source, folder, '--batch-size', 3)
    assert [row['image'] for row in table(folder)] == ['0.png', '1.png', '2.png', '3.png']
    # A file that was fine and is damaged now leaves no mask of the old one behind.
    (source / '3.png').write_bytes(b'')
    predict(source, folder, '--batch-size', 3, code=2)
    assert not (folder / 'masks/3.png').exists() and len(table(folder)) == 3


def test_frames_of_a_dicom_file_are_images(predict, tmp_path):
    pydicom = pytest.importorskip('pydicom')
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 56), np.uint8)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.12.1'
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Rows, data.Columns, data.NumberOfFrames, data.SamplesPerPixel = 40, 56, 3, 1
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 7, 0, 'MONOCHROME2'
    data.PixelData = frames.tobytes()
    (tmp_path / 'in').mkdir()
    data.save_as(tmp_path / 'in/run.dcm', enforce_file_format=True)
    predict(tmp_path / 'in', tmp_path / 'out')
    assert [(row['image'], row['mask']) for row in table(tmp_path / 'out')] == [
        (f'run.dcm/run_000{k}.png', f'masks/run_000{k}.png') for k in (1, 2, 3)]
    assert read_mask(tmp_path / 'out/masks/run_0002.png').shape == (40, 56)
    predict(tmp_path / 'in/run.dcm', tmp_path / 'file')
    assert (tmp_path / 'file/masks/run_0003.png').read_bytes() == (tmp_path / 'out/masks/run_0003.png').read_bytes()


def test_pages_of_a_tiff_file_are_images(predict, tmp_path, draw_case):
    from PIL import Image

    frames = [Image.fromarray(draw_case(index)[0]) for index in range(3)]
    (tmp_path / 'in').mkdir()
    frames[0].save(tmp_path / 'in/run.tif', save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / 'second.png')
    predict(tmp_path / 'in', tmp_path / 'out')
    assert [(row['image'], row['mask']) for row in table(tmp_path / 'out')] == [
        (f'run.tif/run_000{k}.png', f'masks/run_000{k}.png') for k in (1, 2, 3)]
    predict(tmp_path / 'second.png', tmp_path / 'plain')
    assert (tmp_path / 'out/masks/run_0002.png').read_bytes() == (tmp_path / 'plain/masks/second.png').read_bytes()


def test_threshold_and_pattern(predict, images, tmp_path):
    predict(f'{images}/a/*', tmp_path / 'low', '--threshold', 0.2, '--probabilities')
    predict(f'{images}/a/*', tmp_path / 'high', '--threshold', '0.8', '--probabilities')
    for name in ('case_1', 'case_2'):
        low, high = (read_mask(tmp_path / part / f'masks/{name}.png') for part in ('low', 'high'))
        probability = read_probability(tmp_path / f'low/probabilities/{name}.png')
        for mask, threshold in ((low, 0.2), (high, 0.8)):
            differs = mask != (probability > threshold)
            assert np.abs(probability[differs] - threshold).max(initial=0) < 1e-4
        assert not (high & ~low).any()


@pytest.mark.parametrize('more, words', [
    (('--threshold', '1'), '--threshold 1: must be above 0'), (('--batch-size', '0'), '--batch-size 0'),
    (('--prompt', '<image>'), '--prompt'), (('--device', 'tpu'), '--device tpu')])
def test_bad_settings_end_in_one_line(predict, images, tmp_path, more, words):
    said = predict(images, tmp_path / 'out', *more, code=2)
    assert said.count('\n') == 1 and words in said and not (tmp_path / 'out').exists()


def test_a_folder_of_another_run_is_refused(undisturbed, predict, images, tmp_path):
    folder = tmp_path / 'out'
    predict(images / 'a', folder)
    said = predict(images / 'a', folder, '--threshold', '0.4', code=2)
    assert 'threshold: was 0.5, is 0.4' in said and '--overwrite' in said
    predict(images / 'a', folder, '--threshold', '0.4', '--overwrite')
    (tmp_path / 'mine/masks').mkdir(parents=True)
    (tmp_path / 'mine/masks/case_1.png').write_bytes(b'mine')
    assert 'no record' in predict(images / 'a', tmp_path / 'mine', '--overwrite', code=2)
    assert (tmp_path / 'mine/masks/case_1.png').read_bytes() == b'mine'


def test_the_door_and_both_spellings(cli, micro_checkpoint, images, tmp_path):
    done = cli('tools/predict.py', '--model', micro_checkpoint, '--input', images / 'a', images / 'case_9.ppm',
               '--output', tmp_path, '--batch_size', 2)
    assert '3 masks' in done.stdout and len(table(tmp_path)) == 3
