"""Choosing the SAM2 input size: measured, and in favour of the checkpoint's own."""
import json

import numpy as np
import pytest

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.seg_dataset import FolderMasks
from sa2va_dpo.inference.input_size import MAX_IMAGES, choose_size, mean_dice, measure_sizes, sizes_around
from sa2va_dpo.models.checkpoint import copy_with_sam_size, load_checkpoint


def test_sizes_are_multiples_of_64_around_the_own_one():
    assert sizes_around(640) == ([512], [768, 1024])
    assert sizes_around(128) == ([], [192])
    assert sizes_around(64) == ([], [128])


@pytest.mark.parametrize('true_dice, tried', [
    ({640: .60, 512: .55, 768: .62, 1024: .65}, [640, 512, 768, 1024]),
    ({640: .60, 512: .61, 768: .59, 1024: .90}, [640, 512, 768]),  # 1024 is not looked at where 768 is no better
    ({640: .60, 512: .55, 768: .60, 1024: .90}, [640, 512, 768])])
def test_a_direction_is_followed_as_long_as_it_gets_better(micro_checkpoint, monkeypatch, true_dice, tried):
    monkeypatch.setattr('sa2va_dpo.inference.input_size.read_sam2_dims', lambda directory: dict(image_size=640))
    monkeypatch.setattr('sa2va_dpo.inference.input_size.copy_with_sam_size', lambda directory, out, size: size)
    monkeypatch.setattr('sa2va_dpo.inference.input_size.mean_dice',
                        lambda checkpoint, source, device, desc: true_dice.get(checkpoint, true_dice[640]))
    measured = measure_sizes(micro_checkpoint, list(range(3)), 'cpu')
    assert list(measured) == tried and measured == {size: true_dice[size] for size in tried}


@pytest.mark.parametrize('measured, chosen', [
    ({640: 0.60, 512: 0.50, 768: 0.619}, 640),   # not by the margin
    ({640: 0.60, 512: 0.50, 768: 0.621}, 768),
    ({640: 0.60, 768: 0.65, 1024: 0.70}, 1024),
    ({640: 0.60, 768: 0.70, 1024: 0.70}, 768),   # of equals the cheaper one
    ({640: 0.60, 512: 0.70}, 512),
    ({640: 0.60}, 640)])
def test_another_size_has_to_earn_it(measured, chosen):
    assert choose_size(measured) == chosen


def test_a_copy_differs_in_the_size_alone(micro_checkpoint, tmp_path):
    copy = copy_with_sam_size(micro_checkpoint, tmp_path / 'copy', 192)
    changed = [path.name for path in micro_checkpoint.iterdir() if path.read_bytes() != (copy / path.name).read_bytes()]
    assert changed == ['sam2_dims.json']
    dims = json.loads((micro_checkpoint / 'sam2_dims.json').read_text())
    assert json.loads((copy / 'sam2_dims.json').read_text()) == dict(dims, image_size=192)
    assert load_checkpoint(copy).sam_size == 192


def test_impossible_sizes_and_released_checkpoints_are_refused(micro_checkpoint, tmp_path):
    for size in (0, 100, -64):
        with pytest.raises(InputError, match=f'sam_size: {size} is no multiple of 64'):
            copy_with_sam_size(micro_checkpoint, tmp_path / 'copy', size)
    (tmp_path / 'released').mkdir()
    with pytest.raises(InputError, match='its input size cannot be changed'):
        copy_with_sam_size(tmp_path / 'released', tmp_path / 'copy', 512)
    assert not (tmp_path / 'copy').exists()


def test_means_are_those_of_the_predictions(micro_checkpoint, tmp_path):
    from PIL import Image

    from sa2va_dpo.evaluation.counts import confusion_counts, dice
    from sa2va_dpo.inference.predictor import Predictor

    rng = np.random.default_rng(0)
    for folder in ('images', 'gt'):
        (tmp_path / folder).mkdir()
    masks = rng.integers(0, 2, (3, 40, 56)).astype(bool)
    for index, mask in enumerate(masks):
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).save(tmp_path / f'images/{index}.png')
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f'gt/{index}.png')
    source = FolderMasks(str(tmp_path / 'images'), str(tmp_path / 'gt'))
    predictor = Predictor.from_pretrained(micro_checkpoint, device='cpu')
    expected = np.mean(
        [
            dice(confusion_counts(predictor.predict(source[i]['image'], source[i]['prompt']).masks[0], masks[i]))
            for i in range(3)
        ]
    )
    assert mean_dice(micro_checkpoint, source, 'cpu') == pytest.approx(expected, abs=1e-6)
    measured = measure_sizes(micro_checkpoint, source, 'cpu')
    assert list(measured) == [128, 192] and measured[128] == pytest.approx(expected, abs=1e-6)
    assert measured[192] == pytest.approx(
        mean_dice(copy_with_sam_size(micro_checkpoint, tmp_path / 'c', 192), source, 'cpu'), abs=1e-6)


def test_no_more_images_than_the_bound_are_looked_at(micro_checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(
        'sa2va_dpo.inference.input_size.mean_dice',
        lambda checkpoint, source, device, desc: seen.append(len(source)) or 0.5
    )
    measure_sizes(micro_checkpoint, list(range(100)), 'cpu')
    measure_sizes(micro_checkpoint, list(range(5)), 'cpu')
    assert seen[0] <= MAX_IMAGES and seen[0] >= MAX_IMAGES // 2 and seen[-1] == 5


def test_the_command_says_in_one_line_what_it_cannot_do(micro_checkpoint, repo_root, tmp_path):
    import subprocess
    import sys

    def run(*arguments):
        return subprocess.run(
            [sys.executable, 'tools/set_sam_size.py', *map(str, arguments)],
            cwd=repo_root,
            capture_output=True,
            text=True,
        )

    done = run(micro_checkpoint, tmp_path / 'copy', '--size', '192')
    assert done.returncode == 0 and load_checkpoint(tmp_path / 'copy').sam_size == 192
    for arguments, words in (
        ((micro_checkpoint, tmp_path / 'copy', '--size', '192'), 'exists and is not empty'),
        ((micro_checkpoint, tmp_path / 'new', '--size', '100'), 'no multiple of 64'),
        ((tmp_path / 'nothing', tmp_path / 'new', '--size', '128'), 'no such checkpoint directory'),
    ):
        refused = run(*arguments)
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count('\n') == 1
    assert not (tmp_path / 'new').exists()
