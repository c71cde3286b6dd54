"""VesselSegMetric in one process and in two."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from PIL import Image

from sa2va_dpo.datasets.names import image_ids
from sa2va_dpo.datasets.seg_dataset import AnnotatedMasks
from sa2va_dpo.evaluation.scores import METRIC_NAMES, score_mask
from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric, prediction_file

TARGET = np.zeros((32, 48), bool)
TARGET[10:13] = True


def sample(image_id: str, rows: int, **more) -> dict:
    """A prediction that finds ``rows`` of the target's three rows: Dice 2 rows / (rows + 3)."""
    pred = np.zeros_like(TARGET)
    pred[10:10 + rows] = True
    return dict(pred_mask=pred, gt_mask=TARGET, image_id=image_id, **more)


def test_is_registered_and_averages_over_images():
    metric = METRICS.build(dict(type='VesselSegMetric'))
    assert type(metric) is VesselSegMetric
    metric.process(None, [sample('a', 3), sample('b', 1)])
    metric.process(None, [sample('c', 0)])
    result = metric.evaluate(size=3)
    assert tuple(result) == METRIC_NAMES
    assert result['dice'] == pytest.approx((1 + .5 + 0) / 3)
    assert result['precision'] == pytest.approx((1 + 1 + 0) / 3)
    assert result['recall'] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert result['betti0_error'] == pytest.approx(1 / 3)
    assert [row['image_id'] for row in metric.per_image] == ['a', 'b', 'c']
    assert metric.results == []


def test_torch_masks_score_as_numpy_masks():
    item = sample('a', 2)
    metric = VesselSegMetric()
    metric.process(None, [dict(item, pred_mask=torch.tensor(item['pred_mask']), gt_mask=torch.tensor(TARGET))])
    assert metric.results == [dict(image_id='a', **score_mask(item['pred_mask'], TARGET))]


def test_better_masks_score_better_in_every_metric():
    good, bad = score_mask(sample('', 3)['pred_mask'], TARGET), score_mask(np.rot90(TARGET, 2).copy(), TARGET)
    for name in METRIC_NAMES[:6]:
        assert good[name] > bad[name], name
    for name in METRIC_NAMES[8:]:
        assert good[name] < bad[name], name


def test_prefix():
    metric = VesselSegMetric(prefix='val')
    metric.process(None, [sample('a', 3)])
    assert metric.evaluate(1)['val/dice'] == 1


def test_no_warning_about_a_missing_prefix(caplog):
    VesselSegMetric()
    assert 'prefix' not in caplog.text


def test_report_and_overlays(tmp_path):
    Image.new('RGB', (48, 32), (180, 60, 20)).save(tmp_path / 'picture.png')
    metric = VesselSegMetric(out_dir=str(tmp_path / 'out'), overlays=True, seed=5)
    ids = ['a', '../b', 'sub/b', 'sub_b', '.hidden', 'Ünï (1)^', 'ü' * 300]
    metric.process(None, [sample(name, 2, image=str(tmp_path / 'picture.png')) for name in ids[:-1]])
    metric.process(None, [sample(ids[-1], 2, image=np.zeros((32, 48, 3), np.uint8))])
    metric.evaluate(size=len(ids))
    written = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert written == metric.summary and written['seed'] == 5 and written['n_images'] == len(ids)
    assert written['metrics']['dice']['mean'] == pytest.approx(0.8)
    assert (tmp_path / 'out' / 'per_image.csv').read_text().count('\n') == len(ids) + 1
    pictures = os.listdir(tmp_path / 'out' / 'overlays')
    assert not any(name.startswith('.') for name in pictures), 'a picture that ls does not show'
    assert len(pictures) == len(ids) and {'a.png', 'sub_b.png', 'Ünï (1)^.png'} <= set(pictures)
    assert sorted(os.listdir(tmp_path)) == ['out', 'picture.png'], 'an image id led out of the directory'
    assert Image.open(tmp_path / 'out' / 'overlays' / 'a.png').width == 336


@pytest.mark.parametrize('change, words', [
    (dict(gt_mask=None), 'x.png: gt_mask is missing'), (dict(pred_mask=TARGET[1:]), 'x.png: .*one shape'),
    (dict(pred_mask=TARGET.astype(float)), 'x.png: .*bool'), (dict(image_id=None), 'no image_id')])
def test_bad_samples_name_the_image(change, words):
    with pytest.raises(ValueError, match=words):
        VesselSegMetric().process(None, [dict(sample('x.png', 1), **change)])


def test_bad_settings_and_missing_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match='out_dir'):
        VesselSegMetric(overlays=True)
    with pytest.raises(ValueError, match='x.png: overlays need the image'):
        VesselSegMetric(out_dir=str(tmp_path), overlays=True).process(None, [sample('x.png', 1)])
    with pytest.raises(ValueError, match='no images'):
        VesselSegMetric().compute_metrics([])


def test_all_metrics_of_a_large_mask_take_less_than_half_a_second():
    """1024 x 1024, a tenth of it vessel; the fastest of three runs, because other work shares the cores."""
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:1024, :1024]
    target = np.zeros((1024, 1024), bool)
    for _ in range(60):
        slope, offset, width = generator.normal(0, 1.5), generator.uniform(-500, 1500), generator.uniform(1, 5)
        target |= np.abs(row - slope * column - offset) < width
    pred = np.roll(target, 1, axis=0) ^ (generator.random(target.shape) < 0.002)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        score_mask(pred, target)
        seconds.append(time.perf_counter() - start)
    assert 0.05 < target.mean() < 0.4 and min(seconds) < 0.5


_WORKER = """
import json, sys
import numpy as np
import torch.distributed as dist
from mmengine.dist import get_rank
from sa2va_dpo.evaluation.vessel_metric import VesselSegMetric

dist.init_process_group('gloo')
target = np.zeros((16, 16), bool)
target[5] = True
metric = VesselSegMetric(out_dir=sys.argv[1])
# Five images on two processes: the sampler repeats image 0 on the second one.
for index in ([0, 2, 4], [1, 3, 0])[get_rank()]:
    pred = np.zeros_like(target)
    pred[5, :4 * index] = True
    metric.process(None, [dict(pred_mask=pred, gt_mask=target, image_id=f'i{index}')])
result = metric.evaluate(size=5)
rows = [row['image_id'] for row in metric.per_image]
print('RESULT', json.dumps([get_rank(), result['recall'], rows]), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.integration
def test_two_processes_score_each_image_once(tmp_path, repo_root):
    """Recall of image k is k/4: the mean over 0..4 is 1/2, the repeated image 0 must not pull it down to 5/12."""
    script = tmp_path / 'worker.py'
    script.write_text(textwrap.dedent(_WORKER))
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    environment = dict(os.environ, PYTHONPATH=str(repo_root), MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                       WORLD_SIZE='2', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    workers = [subprocess.Popen([sys.executable, str(script), str(tmp_path / 'out')], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
                                env=dict(environment, RANK=str(rank), LOCAL_RANK=str(rank))) for rank in range(2)]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], '\n'.join(outputs)
    results = [json.loads(line.removeprefix('RESULT ')) for output in outputs for line in output.splitlines()
               if line.startswith('RESULT ')]
    assert results == [[0, 0.5, ['i0', 'i1', 'i2', 'i3', 'i4']], [1, 0.5, []]]
    assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['n_images'] == 5


def test_images_of_one_stem_keep_their_masks_and_overlays_apart(tmp_path):
    for folder, value in (('left', 255), ('right', 0)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(tmp_path / folder / '1.png')
    mask = np.zeros((12, 12), np.uint8)
    mask[5] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    (tmp_path / 'val_annotations.json').write_text(json.dumps(
        [dict(image=f'{folder}/1.png', mask='mask.png', prompt='p') for folder in ('left', 'right')]))
    metric = VesselSegMetric(out_dir=str(tmp_path / 'out'), overlays=True, masks=True)
    items = list(map(AnnotatedMasks(str(tmp_path)).__getitem__, range(2)))
    predicted = [mask > 0, np.zeros((12, 12), bool)]
    metric.process(None, [dict(pred_mask=pred, gt_mask=item['mask'] > 0, image_id=item['image_id'], image=item['image'])
                          for pred, item in zip(predicted, items)])
    assert [item['image_id'] for item in items] == ['left/1.png', 'right/1.png']
    assert len(os.listdir(tmp_path / 'out' / 'overlays')) == 2
    for item, pred in zip(items, predicted):
        kept = np.array(Image.open(prediction_file(tmp_path / 'out', item['image_id'])))
        assert np.array_equal(kept > 0, pred)


def test_a_stem_of_its_own_is_the_name():
    assert image_ids(['a/1.png', 'a/2.png', 'b/2.jpg']) == ['1', 'a/2.png', 'b/2.jpg']
