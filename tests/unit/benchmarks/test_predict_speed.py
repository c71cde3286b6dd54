"""The prediction benchmark's arithmetic, and one small run of both ways."""
import numpy as np
import pytest
from PIL import Image

from benchmarks.predict_speed import LOOP, summary, worker


def row(way, images, seconds, host, gpu=None):
    return dict(way=way, images=images, images_per_second=images / seconds, cpu_seconds=20 + images * 1.5,
                peak_host_mib=host, peak_gpu_mib=gpu)


def test_ratios_are_of_medians_and_memory_is_compared_with_few_images():
    rows = [row(LOOP, 200, 100, 900), row(LOOP, 200, 50, 910), row(LOOP, 200, 40, 905), row('8', 200, 20, 1200, 70),
            row(LOOP, 50, 1, 890), row('8', 50, 1, 1190, 70)]
    plain, eight = summary(rows, 200, 50)
    assert plain['over_loop'] == 1 and plain['images_per_second'] == 4
    assert (plain['slowest'], plain['fastest']) == (2, 5)
    assert eight['over_loop'] == 2.5 and (eight['peak_host_mib'], eight['peak_host_mib_of_few']) == (1200, 1190)
    assert plain['cpu_seconds_an_image'] == pytest.approx(1.5)
    assert plain['peak_gpu_mib'] is None and eight['peak_gpu_mib'] == eight['peak_gpu_mib_of_few'] == 70


@pytest.mark.parametrize('way', [LOOP, '2'])
def test_both_ways_write_the_same_masks(way, micro_checkpoint, tmp_path):
    images = []
    for k in range(3):
        images.append(str(tmp_path / f'{k}.png'))
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (40, 50, 3), np.uint8)).save(images[-1])
    found = worker(way, str(micro_checkpoint), images, tmp_path / 'out', 'cpu')
    assert found['seconds'] > 0 and found['peak_host_mib'] > 100 and found['peak_gpu_mib'] is None
    masks = sorted((tmp_path / 'out').rglob('*.png'))
    assert [path.name for path in masks] == ['0.png', '1.png', '2.png']
