"""The stages' clock and scales: what is counted, what ends a stage, what its failure says."""
import json
import os

import pytest

from benchmarks.full_size import activations, kept_all, step_times, table
from benchmarks.speed.processes import descendants, host_gib, run


def test_steps_of_a_start_and_after_a_validation_are_left_out(tmp_path):
    for start, first, seconds in (('a', 1, [9.0, 9.0, 9.0, 1.0, 2.0]), ('b', 6, [8.0, 8.0, 8.0, 3.0, 70.0, 4.0])):
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'optim/time': s, 'optim/data_time': s / 10, 'step': first + i} for i, s in enumerate(seconds)]
        lines.insert(4, {'val/dice': 0.5, 'step': first + 3})
        text = '\n'.join(map(json.dumps, lines)) + '\n'
        (folder / 'scalars.json').write_text(text)
        (folder / f'{start}.json').write_text(text)  # mmengine writes the same lines twice
    # Of the first start 2.0 follows a validation, of the second 70.0 does.
    assert step_times(tmp_path) == pytest.approx(dict(step_seconds=3.0, wait_for_data_seconds=0.3, steps=3))
    assert step_times(tmp_path / 'nothing') == {}


def test_the_last_decision_about_activations_is_read_from_the_log(tmp_path):
    assert activations(tmp_path) is None
    line = '2026/01/01 10:00:00 - mmengine - INFO - {}\n'
    for start, said in (('20260101_100000', ['activations: kept (1)']), ('20260101_110000', [
            'activations, measured again: kept (2)', 'activations, measured again: layers keep (3)', 'Iter(train)'])):
        (tmp_path / start).mkdir()
        (tmp_path / start / f'{start}.log').write_text(''.join(map(line.format, said)))
    assert activations(tmp_path) == 'activations, measured again: layers keep (3)'


def test_a_stage_is_measured_with_its_children(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('import subprocess, sys, time\n'
                      'child = "import time; block = bytearray(b\'x\' * 150_000_000); time.sleep(3)"\n'
                      'subprocess.run([sys.executable, "-c", child])\nprint(sys.argv[1:])\n')
    row = run(script, ['--a', 'b'], tmp_path / 'log')
    assert row['exit'] == 0 and row['seconds'] > 3 and row['peak_host_gib'] > 0.13
    assert "['--a', 'b']" in (tmp_path / 'log').read_text()


def test_a_stage_ends_by_sigterm_once_its_time_has_come(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('import pathlib, time\n'
                      f'pathlib.Path({str(tmp_path / "mark")!r}).touch()\ntime.sleep(60)\n')
    row = run(script, [], tmp_path / 'log', until=(tmp_path / 'mark').is_file, expect=(-15,))
    assert row['exit'] == -15 and row['seconds'] < 50


def test_a_failed_stage_shows_the_end_of_its_log(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('raise SystemExit("no such luck")\n')
    with pytest.raises(RuntimeError, match='exit code 1: no such luck'):
        run(script, [], tmp_path / 'log')


def test_a_process_and_its_children_are_found():
    assert os.getpid() in descendants(os.getpid())
    assert 0.005 < host_gib([os.getpid()]) < 50
    assert host_gib([2 ** 22 + 1]) == 0


def test_the_table_leaves_out_what_was_not_measured():
    rows = dict(train=dict(seconds=12.34, step_seconds=0.5, images_per_second=2.0, peak_gpu_gib=None))
    assert table(rows).splitlines()[-1] == '| train | 12.3 | 0.500 | 2.00 |  |  |  |'


@pytest.mark.parametrize('line, kept', [
    ('activations: kept (a step takes 15.4 GiB, it may take 106.3)', True),
    ('activations, measured again: kept (a step takes 15.4 GiB, it may take 106.3)', True),
    ('activations: kept in sam2_encoder, inputs only in llm (keeping all, a step would take 24.0 GiB)', False),
    ('activations: layers keep their inputs only (keeping all, a step would take 24.0 GiB)', False),
    (None, False)])
def test_the_arm_is_that_of_what_was_decided_also_by_a_resumed_run(line, kept):
    assert kept_all(line) == kept
