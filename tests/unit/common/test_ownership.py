"""One writer a folder; a folder that knows whose it is; nothing removed that is not the run's own."""
import json
import os
import signal
import subprocess
import sys

import pytest

from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError

OURS = ('iter_*.pth', 'config.py', 'logs')
IDENTITY = dict(settings=dict(lr=1e-5, seed=0), content={'masks/a.png': 'a' * 64})


def own(folder, identity=IDENTITY, kind='training', **more):
    return ownership.claim(folder, kind, identity, OURS, **more)


HOLD = '''
import sys, time
from sa2va_dpo.common import ownership
claim = ownership.claim(sys.argv[1], 'training', {settings!r}, ('iter_*.pth',))
print('held', flush=True)
time.sleep(60)
'''


def holder(folder, identity=IDENTITY, env=None):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD.format(settings=identity), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout.readline() == 'held\n', process.stderr.read()
    return process


def test_a_second_process_is_told_who_writes_here_and_a_kill_frees_the_folder(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(InputError) as caught:
            own(tmp_path)
        message = str(caught.value)
        assert f'process {process.pid} on ' in message and 'training: -c' in message and ' since 20' in message
        process.send_signal(signal.SIGKILL)
        process.wait()
        with own(tmp_path) as claim:
            assert claim.found
    finally:
        process.kill()
        process.wait()


def test_a_forked_child_that_outlives_the_owner_does_not_keep_the_lock(tmp_path):
    code = HOLD.format(settings=IDENTITY).replace("print('held', flush=True)", """
import os
ready, told = os.pipe()
if os.fork() == 0:
    os.write(told, b'x')
    time.sleep(20)
    os._exit(0)
os.read(ready, 1)
print('held', flush=True)""")
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        assert process.stdout.readline() == 'held\n'
        process.kill()
        process.wait()
        own(tmp_path).release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_many_processes_racing_for_one_folder_never_hold_it_together(tmp_path):
    code = f'''
import os, sys, time
from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError
won = 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with ownership.lock({str(tmp_path)!r}, "race"):
            os.mkdir({str(tmp_path / "inside")!r})  # fails where another is inside
            won += 1
            os.rmdir({str(tmp_path / "inside")!r})
    except InputError:
        pass
print(won)
'''
    racers = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
              for _ in range(4)]
    results = [racer.communicate() for racer in racers]
    assert all(not err for _, err in results), results
    assert sum(int(out) for out, _ in results) > 20
    assert not list(tmp_path.iterdir())


def test_one_process_cannot_claim_twice_at_once(tmp_path):
    with own(tmp_path), pytest.raises(InputError, match='one at a time'):
        own(tmp_path)
    own(tmp_path).release()


def test_the_same_run_is_found_again_and_another_is_refused_by_its_first_differences(tmp_path):
    own(tmp_path).release()
    with own(tmp_path) as claim:
        assert claim.found and not claim.cleared
    other = dict(settings=dict(lr=2e-5, seed=0, batch=4), content={'masks/a.png': 'b' * 64})
    with pytest.raises(InputError) as caught:
        own(tmp_path, other)
    message = str(caught.value)
    assert 'settings.lr: was 1e-05, is 2e-05' in message and 'settings.batch: was not there, is 4' in message
    assert 'content.masks/a.png: its content has changed' in message and '\n' not in message
    # The refusal leaves the folder free and its record as it was.
    with own(tmp_path) as claim:
        assert claim.found


def test_free_names_are_not_compared(tmp_path):
    own(tmp_path, free=('settings.seed', 'content')).release()
    with own(tmp_path, dict(settings=dict(lr=1e-5, seed=1), content={}), free=('settings.seed', 'content')) as claim:
        assert claim.found


def test_another_kind_is_refused(tmp_path):
    own(tmp_path).release()
    with pytest.raises(InputError, match='belongs to a run of kind training, begun 20'):
        own(tmp_path, kind='job')


def test_files_without_a_record_are_refused_and_never_removed(tmp_path):
    (tmp_path / 'iter_2.pth').write_text('x')
    for overwrite in (False, True):
        with pytest.raises(InputError, match='holds iter_2.pth, which no record'):
            own(tmp_path, overwrite=overwrite)
    assert (tmp_path / 'iter_2.pth').read_text() == 'x'


def test_overwrite_removes_what_was_written_here_and_nothing_else(tmp_path):
    outside, folder = tmp_path / 'outside', tmp_path / 'run'
    outside.mkdir()
    (outside / 'precious').write_text('x')
    own(folder).release()
    (folder / 'iter_2.pth').mkdir()
    (folder / 'iter_2.pth' / 'shard').write_text('x')
    (folder / 'iter_4.pth').symlink_to(outside)
    (folder / 'logs').symlink_to(outside)
    (folder / 'notes.txt').write_text('mine')
    with own(folder, dict(settings={}), overwrite=True) as claim:
        assert not claim.found
        assert 'iter_2.pth' in claim.cleared and 'iter_4.pth' in claim.cleared and 'kind training' in claim.cleared
    assert sorted(p.name for p in folder.iterdir()) == ['notes.txt', ownership.RECORD]
    assert (outside / 'precious').read_text() == 'x'


def test_a_record_cannot_name_files_outside_its_folder(tmp_path):
    own(tmp_path / 'run').release()
    record = json.loads((tmp_path / 'run' / ownership.RECORD).read_text())
    for pattern in ('../*', '/etc/*', '*'):
        (tmp_path / 'run' / ownership.RECORD).write_text(json.dumps(dict(record, ours=[pattern])))
        with pytest.raises(ValueError, match='no pattern'):
            ownership.clear(tmp_path / 'run')


def test_a_link_in_the_middle_of_a_pattern_leads_nowhere(tmp_path):
    outside, folder = tmp_path / 'outside', tmp_path / 'run'
    outside.mkdir()
    (outside / 'a.png').write_text('x')
    ownership.claim(folder, 'pairs', {}, ('masks/*.png',)).release()
    (folder / 'masks').symlink_to(outside)
    ownership.clear(folder)
    assert (outside / 'a.png').exists()


def test_a_child_of_the_owner_is_its_guest_and_a_stranger_is_not(tmp_path):
    with own(tmp_path, dict(job=1), kind='job') as claim:
        child = holder(tmp_path, env=claim.lend())
        child.kill()
        child.wait()
        record = ownership.read_record(tmp_path)
        assert record['kind'] == 'job' and record['guests']['training']['identity'] == IDENTITY
        stranger = subprocess.run(
            [sys.executable, '-c', HOLD.format(settings=IDENTITY), str(tmp_path)], capture_output=True, text=True
        )
        assert 'is being written by process' in stranger.stderr
    # The job's own repetition keeps the guest's record.
    with own(tmp_path, dict(job=1), kind='job') as claim:
        assert claim.found and 'training' in ownership.read_record(tmp_path)['guests']


def test_what_a_guest_wrote_is_cleared_with_the_owner(tmp_path):
    with ownership.claim(tmp_path, 'job', dict(job=1), ('summary.json',)) as claim:
        child = holder(tmp_path, env=claim.lend())
        child.kill()
        child.wait()
    (tmp_path / 'iter_2.pth').write_text('x')
    assert 'iter_2.pth' in ownership.clear(tmp_path)
    assert not (tmp_path / 'iter_2.pth').exists()


def test_other_ranks_wait_for_the_first_and_compare(tmp_path, monkeypatch):
    launch = dict(WORLD_SIZE='2', TORCHELASTIC_RUN_ID='one', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    for name, value in dict(launch, RANK='0').items():
        monkeypatch.setenv(name, value)
    with own(tmp_path):
        monkeypatch.setenv('RANK', '1')
        assert own(tmp_path).found
        with pytest.raises(InputError, match='rank 1 sees something else than the first process: content'):
            own(tmp_path, dict(settings=IDENTITY['settings'], content={}))
        # The record of an earlier launch is not this one's.
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'two')
        monkeypatch.setattr(ownership, '_PATIENCE_S', 0.2)
        with pytest.raises(InputError, match='has not claimed it'):
            own(tmp_path)


def test_a_lock_only_leaves_no_record(tmp_path):
    with ownership.lock(tmp_path, 'merge'), pytest.raises(InputError, match='merge'):
        ownership.lock(tmp_path, 'merge')
    assert ownership.read_record(tmp_path) is None


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / 'f').write_text('')
    with pytest.raises(InputError, match='--work-dir .*is a file'):
        own(tmp_path / 'f', flag='--work-dir')
    with pytest.raises(InputError, match='a file is where a folder should be'):
        own(tmp_path / 'f' / 'below')
