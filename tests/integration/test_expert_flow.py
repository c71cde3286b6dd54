"""One click an image and round, from mining to the exported model: the job, its page, a real browser."""
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.evaluation.counts import mask_iou
from sa2va_dpo.inference.predictor import Predictor
from tests.integration.browser import Browser

pytestmark = pytest.mark.integration
# The first round trains on the masks that are there: nobody is asked.
ROUNDS, ASKED, UNLABELLED = 3, 2, range(70, 74)


class Job:
    """The job as a user starts it; what it prints is read as it comes, pages' addresses apart."""

    def __init__(self, command: list, cwd) -> None:
        self.process = subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '2'})
        self.printed, self._addresses, self._news = [], [], threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            found = re.search(r'http://127\.0\.0\.1:\d+/\S*', line)
            with self._news:
                self.printed.append(line)
                if found:
                    self._addresses.append(found[0])
                self._news.notify()
        with self._news:
            self._addresses.append(None)  # the end
            self._news.notify()

    def address(self, number: int) -> str:
        with self._news:
            self._news.wait_for(lambda: len(self._addresses) > number, 400)
            assert any(self._addresses[number:number + 1]), ''.join(self.printed)[-3000:]
            return self._addresses[number]


def wait_for_item(browser: Browser, index: int) -> None:
    browser.wait(f'window.page && page.at === {index} && !!page.data && !page.waiting')


def pick_all(browser: Browser, truth: dict[str, np.ndarray]) -> int:
    """Decide every image as somebody would who knows the vessels, by key; the last one by its disputed parts."""
    browser.wait('window.page && page.items.length > 0')
    images = browser.js('page.items.map(item => item.image)')
    for index, image in enumerate(images):
        wait_for_item(browser, index)
        mask = next(mask for name, mask in truth.items() if name in image)
        ious = [mask_iou(np.array(browser.js(f'Array.from(page.data.masks[{k}].bits)'), bool).reshape(mask.shape), mask)
                for k in range(browser.js('page.data.masks.length'))]
        best = int(np.argmax(ious)) + 1
        if index + 1 < len(images):
            browser.key(str(best))
            continue
        browser.key('r')
        browser.wait('!!page.aiming')
        browser.key(str(best))
        wait_for_item(browser, index)
        browser.key('Enter')
    return len(images)


def test_from_mining_to_the_better_model(browser, repo_root, make_folders, draw_case, run_config, micro_checkpoint,
                                         tmp_path):
    images, gt = make_folders(tmp_path / 'few', range(40, 50))
    unlabelled, _ = make_folders(tmp_path / 'more', UNLABELLED)
    truth = {f'case_{index:02d}': draw_case(index)[1] > 0 for index in UNLABELLED}
    work_dir = tmp_path / 'w'
    job = Job(['-m', 'sa2va_dpo', 'job', '--model', micro_checkpoint, '--images', images, '--gt', gt, '--config',
               run_config, '--work-dir', work_dir, '--sam_size', 'keep', '--unlabelled', unlabelled,
               '--judge', 'expert', '--rounds', ROUNDS, '--reviewer', '医生1', '--port', '0',
               '--min_iou_gap', '0.001', '--cfg-options',
               'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=12', 'train_cfg.val_interval=4',
               # Every round counts: the first four steps of random weights may cost a little.
               'rounds.guard.tolerance=0.05'], repo_root)
    try:
        decided = []
        for number in range(ASKED):
            browser.open(job.address(number))
            decided.append(pick_all(browser, truth))
        assert job.process.wait(400) == 0, ''.join(job.printed)[-3000:]
    finally:
        job.process.kill()
        job.process.wait()
    summary = json.loads((work_dir / 'summary.json').read_text())
    assert summary['after']['dice'] > summary['before']['dice']
    rounds = json.loads((work_dir / 'training/rounds.json').read_text())['rounds']
    assert len(rounds) == ROUNDS and all(0 < count <= len(UNLABELLED) for count in decided)
    assert 'unlabelled' not in rounds[0]
    for record, count in zip(rounds[1:], decided):
        assert record['judge'] == 'expert'
        assert record['unlabelled']['picks']['decided'] == count
        assert record['unlabelled']['pairs'] > 0
    assert rounds[1]['policy'] != rounds[2]['policy'], 'the second page is of another policy'
    # Learnt from, never scored by: no picked image is among the test images.
    tested = {path.stem for path in (work_dir / 'test_after/overlays').iterdir()}
    assert tested and not any(name in stem for name in truth for stem in tested)
    prediction = Predictor.from_pretrained(summary['exported_hf']).predict(draw_case(40)[0], DEFAULT_PROMPT)
    assert prediction.masks.shape == (1, *draw_case(40)[1].shape)
    assert any('before     after    change' in line for line in job.printed)
    assert not browser.problems
