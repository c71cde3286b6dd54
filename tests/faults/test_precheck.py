"""What can be read cheaply is checked before a model is loaded, and everything that is wrong is listed at once."""
import json
import shutil

import cv2
import numpy as np
import pytest

from sa2va_dpo.common.bundled import config_names
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.precheck import unread_settings
from tests.integration.conftest import write_folders

pytestmark = pytest.mark.integration


def lines_of(ended):
    assert ended.code == 2 and 'Traceback' not in ended.text, ended.text[-3000:]
    return [line for line in ended.text.splitlines() if line.startswith('error: ')]


def cut(path):
    """A file of another height."""
    cv2.imwrite(str(path), cv2.imread(str(path))[:-1])


@pytest.fixture
def root(pair_root, tmp_path):
    shutil.copytree(pair_root, tmp_path / 'pairs')
    return tmp_path / 'pairs'


def train(zygote, config, root, folder, *options):
    [ended] = zygote.run(dict(command='train', argv=[config, '--work-dir', folder, '--data-root', root, *options]))
    return ended


def test_training_lists_twenty_of_all_problems(zygote, quiet_config, root, tmp_path):
    for path in sorted((root / 'masks').iterdir())[:25]:
        cut(path)
    records = json.loads((root / 'val_annotations.json').read_text())
    records[0]['prompt'] = 'x' * 30_000
    records[1]['mask'] = 'gt/none.png'
    (root / 'val_annotations.json').write_text(json.dumps(records))
    found = lines_of(train(zygote, quiet_config, root, tmp_path / 'w'))
    assert len(found) == 20 and 'more problems' in found[-1]
    assert any('gt/none.png' in line for line in found) and sum('is 128 x 95' in line for line in found) >= 15
    assert not list(tmp_path.glob('w/*.pth'))


def test_pairs_images_prompts_and_settings_at_once(zygote, quiet_config, root, tmp_path):
    cut(root / 'masks/case_03_chosen.png')
    (root / 'images/case_07.png').write_bytes(b'')
    records = json.loads((root / 'dpo_annotations.json').read_text())
    records[0]['prompt'] = 'Which vessel <|im_end|>?'
    (root / 'dpo_annotations.json').write_text(json.dumps(records))
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = [{str(quiet_config)!r}]\n"
                      "default_hooks = dict(logger=dict(type='LoggerHook', intervall=3))\n")
    text = '\n'.join(lines_of(train(zygote, config, root, tmp_path / 'w')))
    for words in ('case_03_chosen.png', 'case_07.png', '<|im_end|>', 'intervall'):
        assert words in text, text


def test_generator_and_job(zygote, micro_checkpoint, quiet_config, tmp_path):
    images, masks = write_folders(tmp_path, range(8))
    for index in (2, 5):
        cut(masks / f'case_{index:02d}.png')
    runs = [dict(command='pairs', argv=['--mode', 'generate', '--images_dir', images, '--gt_dir', masks, '--output_dir',
                                        tmp_path / 'out', '--model_path', micro_checkpoint]),
            dict(command='job', argv=['--model', micro_checkpoint, '--images', images, '--gt', masks, '--config',
                                      quiet_config, '--work-dir', tmp_path / 'w'])]
    for ended in zygote.run(*runs):
        found = lines_of(ended)
        assert len(found) == 2 and 'case_02.png' in found[0] and 'case_05.png' in found[1], ended.text
    assert not (tmp_path / 'out/masks').exists() and not (tmp_path / 'w/test_before').exists()


@pytest.mark.parametrize('name', config_names())
def test_our_own_configs_set_nothing_that_is_not_read(name):
    assert not list(unread_settings(read_config(name)))


def test_it_is_fast(pair_root, tmp_path):
    """Two thousand images in seconds: nothing but headers is read."""
    import time

    from sa2va_dpo.datasets.precheck import check_root

    root = tmp_path / 'many'
    for folder in ('i', 'm'):
        (root / folder).mkdir(parents=True)
    content = cv2.imencode('.png', np.zeros((512, 512, 3), np.uint8))[1].tobytes()
    records = []
    for index in range(2000):
        for folder in ('i', 'm'):
            (root / folder / f'{index}.png').write_bytes(content)
        records.append(dict(image=f'i/{index}.png', mask=f'm/{index}.png', prompt='vessels?'))
    (root / 'val_annotations.json').write_text(json.dumps(records))
    begun = time.process_time()
    check_root(root, segs=['val_annotations.json'])
    assert time.process_time() - begun < 5
