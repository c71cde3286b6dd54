"""Files appear whole or not at all; what the disk refuses is one line; hashes are of whole files; JSON is strict."""
import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest

from sa2va_dpo.common import files
from sa2va_dpo.common.errors import InputError


def test_written_files_replace_and_have_the_permissions_of_ordinary_files(tmp_path):
    (tmp_path / 'ordinary').write_bytes(b'')
    files.write_bytes(tmp_path / 'sub' / 'ours', b'one')
    files.write_bytes(tmp_path / 'sub' / 'ours', b'two')
    assert (tmp_path / 'sub' / 'ours').read_bytes() == b'two' and os.listdir(tmp_path / 'sub') == ['ours']
    assert (tmp_path / 'sub' / 'ours').stat().st_mode == (tmp_path / 'ordinary').stat().st_mode


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path):
    name = 'x' * 255
    files.write_text(tmp_path / name, 'ü')
    assert (tmp_path / name).read_text(encoding='utf-8') == 'ü'
    with pytest.raises(InputError, match='choose a name that this file system takes'):
        files.write_text(tmp_path / ('x' * 256), '')


@pytest.mark.parametrize('code, remedy', [
    (errno.ENOSPC, r'make room \(\d+ MiB are free there\), then repeat the command'),
    (errno.EDQUOT, 'make room'), (errno.EACCES, 'make the folder writable'), (errno.EROFS, 'make the folder writable'),
    (errno.EFBIG, 'ulimit -f'), (errno.EIO, 'check the disk')])
def test_what_the_disk_refuses_is_one_line_with_its_remedy(tmp_path, monkeypatch, code, remedy):
    target = tmp_path / 'a.json'
    target.write_text('old')
    monkeypatch.setattr(files.os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(InputError, match=f'a.json: cannot be written .*{remedy}') as caught:
        files.write_json(target, [])
    assert '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == ['a.json'] and target.read_text() == 'old'


def test_a_full_disk_seen_by_a_library_is_the_same_line(tmp_path):
    """safetensors and torch report a full disk in exceptions of their own; a limit on file sizes stands for the
    disk."""
    code = f'''
import resource, signal, torch
from safetensors.torch import save_file
from sa2va_dpo.common.files import replacing
from sa2va_dpo.common.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
tensors = dict(a=torch.zeros(10_000))
def save(t, path):
    with open(path, 'xb') as file:
        torch.save(t, file)
for write in (save_file, save):
    try:
        with replacing({str(tmp_path / 'a')!r}) as temporary:
            write(tensors, temporary)
    except InputError as error:
        print(error)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all('cannot be written (File too large)' in line for line in lines), done.stderr
    assert os.listdir(tmp_path) == []


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path):
    target = tmp_path / 'a'
    target.write_text('old')
    with pytest.raises(KeyboardInterrupt), files.replacing(target) as temporary:
        temporary.write_text('half')
        raise KeyboardInterrupt
    assert target.read_text() == 'old' and os.listdir(tmp_path) == ['a']


def test_an_error_of_the_block_that_is_not_the_disks_passes(tmp_path):
    with pytest.raises(RuntimeError, match='shape'), files.replacing(tmp_path / 'a'):
        raise RuntimeError('shape')


def test_new_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / 'out'
    with files.new_directory(target) as part:
        (part / 'sub').mkdir()
        (part / 'sub' / 'a').write_text('x')
        assert not target.exists()
    assert (target / 'sub' / 'a').read_text() == 'x' and os.listdir(tmp_path) == ['out']
    with pytest.raises(InputError, match='exists and is not empty'), files.new_directory(target):
        pass
    with pytest.raises(RuntimeError), files.new_directory(tmp_path / 'other'):
        raise RuntimeError('stop')
    assert os.listdir(tmp_path) == ['out']
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match='exists'), files.new_directory(tmp_path / 'link'):
        pass


def test_a_source_that_cannot_be_read_is_named_not_the_target(tmp_path):
    with pytest.raises(InputError, match='nothing: no such file'):
        files.copy_file(tmp_path / 'nothing', tmp_path / 'b')
    with pytest.raises(InputError, match='nothing: no such file'), files.new_directory(tmp_path / 'out'):
        open(tmp_path / 'nothing').close()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    code = f'''
import os, signal
from sa2va_dpo.common.files import replacing
with replacing({str(tmp_path / "a")!r}) as temporary:
    temporary.write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
'''
    subprocess.run([sys.executable, '-c', code])
    (tmp_path / '.mine.part').write_text('')
    assert len(os.listdir(tmp_path)) == 2
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ['.mine.part']


def test_hashes_are_of_whole_files_and_notice_every_change(tmp_path):
    path = tmp_path / 'w'
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert files.hash_file(path) == hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1  # in the middle, size and modification time put back
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert files.hash_file(path) == hashlib.sha256(content).hexdigest()
    other = tmp_path / 'v'
    other.write_bytes(b'other')
    os.replace(other, path)
    assert files.hash_file(path) == hashlib.sha256(b'other').hexdigest()
    assert files.hash_files([path, None]) != files.hash_files([None, path])


def test_an_unchanged_settled_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / 'w'
    path.write_bytes(b'x')
    monkeypatch.setattr(files, '_SETTLED_NS', -10**18)
    first = files.hash_file(path)
    monkeypatch.setattr(files.hashlib, 'sha256', lambda *_: pytest.fail('read again'))
    assert files.hash_file(path) == first


def test_directory_hash_depends_on_names_and_contents(tmp_path):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a').write_text('x')
    (tmp_path / '.hidden').write_text('x')
    first = files.hash_directory(tmp_path)
    assert files.directory_hashes(tmp_path) == {'sub/a': hashlib.sha256(b'x').hexdigest()}
    (tmp_path / 'sub' / 'a').rename(tmp_path / 'sub' / 'b')
    assert files.hash_directory(tmp_path) != first
    with pytest.raises(InputError, match='no such folder'):
        files.hash_directory(tmp_path / 'nothing')


@pytest.mark.parametrize(
    'text, words',
    [
        ('{"a": 1, "a": 2}', "field 'a' stands twice"),
        ('[NaN]', 'NaN is not a number'),
        ('[-Infinity]', 'is not a number'),
        ('[1e999]', '1e999 is larger than any number'),
        ('[' + '9' * 400 + ']', 'an integer of 400 digits'),
        ('[' * 100 + ']' * 100, 'nested deeper than 64'),
        ('{"a":' * 100_000 + '1' + '}' * 100_000, 'nested deeper than 64'),
        (r'["\ud800"]', 'half a surrogate pair'),
        (r'{"\udfff": 1}', 'half a surrogate pair'),
        (r'"\ud800"', 'half a surrogate'),
        ('{', 'not valid JSON'),
        ('', 'not valid JSON'),
        ('\x00', 'not valid JSON'),
        (b'["\xff"]', 'not UTF-8 text .* at byte 2'),
        ('[' + '9' * 5000 + ']', 'an integer of 5000 digits'),
    ],
)
def test_strict_json(tmp_path, text, words):
    path = tmp_path / 'a.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f'a.json: .*{words}.*: mend it') as caught:
        files.read_json(path, 'mend it')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


def test_good_json_is_read_as_it_is(tmp_path):
    value = {'a': [1, -2.5, True, None, 'ü😀', {'b': []}], 'deep': [[[[1]]]]}
    files.write_json(tmp_path / 'a.json', value)
    assert files.read_json(tmp_path / 'a.json', kind=dict) == value
    (tmp_path / 'a.json').write_text('\ufeff' + json.dumps(value))  # ASCII escapes, a whole surrogate pair, and a mark
    assert files.read_json(tmp_path / 'a.json') == value
    with pytest.raises(InputError, match='holds an object, must be a list'):
        files.read_json(tmp_path / 'a.json', kind=list)


def test_limits_are_checked_before_reading_and_can_be_raised(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps([[[1]]]))
    monkeypatch.setenv('SA2VA_DPO_MAX_JSON_BYTES', '3')
    with pytest.raises(InputError, match='7 bytes are more than the limit of 3 .*SA2VA_DPO_MAX_JSON_BYTES'):
        files.read_json(path)
    monkeypatch.setenv('SA2VA_DPO_MAX_JSON_BYTES', '1e6')
    monkeypatch.setenv('SA2VA_DPO_MAX_JSON_DEPTH', '2')
    with pytest.raises(InputError, match='deeper than 2'):
        files.read_json(path)
    monkeypatch.setenv('SA2VA_DPO_MAX_JSON_DEPTH', 'many')
    with pytest.raises(InputError, match='SA2VA_DPO_MAX_JSON_DEPTH=many: must be a number'):
        files.read_json(path)


@pytest.mark.parametrize('make, words', [
    (lambda path: None, 'no such file: make it'), (lambda path: path.mkdir(), 'is a folder')])
def test_what_is_no_file(tmp_path, make, words):
    make(tmp_path / 'a')
    with pytest.raises(InputError, match=words):
        files.read_json(tmp_path / 'a', missing='make it')


@pytest.mark.parametrize('disk_links', [True, False])
def test_a_link_or_a_copy_replaces_what_was_there(tmp_path, monkeypatch, disk_links):
    def refuse(*_):
        raise OSError('no links here')

    if not disk_links:
        monkeypatch.setattr('os.link', refuse)
    source, target = tmp_path / 'a', tmp_path / 'b'
    source.write_bytes(b'new')
    target.write_bytes(b'old')
    files.link_or_copy(source, target)
    assert target.read_bytes() == b'new' and target.samefile(source) == disk_links
