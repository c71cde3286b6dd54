"""Items on disk: whole or absent, damaged ones named, old caches removed, used ones not."""
import os
import subprocess
import sys
import time

import pytest
import torch

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.tensor_store import CacheStore, evict, item_key, size_of


def test_tensors_come_back_to_the_bit(tmp_path):
    store = CacheStore(tmp_path / 'kind-1')
    tensors = dict(a=torch.randn(3, 5), b=torch.randn(7).bfloat16(), c=torch.tensor([4, 2]), d=torch.randn(4, 6).t())
    key = item_key('image', 'prompt', True, False)
    assert key not in store
    store.write(key, tensors)
    assert key in store
    read = store.read(key)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == tensors[name].dtype and torch.equal(read[name], tensors[name]) for name in tensors)
    assert size_of(tmp_path) > 0 and not list(tmp_path.rglob('.*'))


def test_keys_tell_images_prompts_and_flips_apart():
    keys = {
        item_key(image, prompt, h, v) for image in 'ab' for prompt in 'xy' for h in (False, True) for v in (False, True)
    }
    assert len(keys) == 16
    assert item_key('a', 'x', False, True) != item_key('a', 'x', True, False)


def test_missing_and_damaged_items_are_named(tmp_path):
    store = CacheStore(tmp_path / 'kind-1')
    with pytest.raises(InputError, match='missing or damaged'):
        store.read('0' * 40)
    store.write('1' * 40, dict(a=torch.ones(1000)))
    path = store.path('1' * 40)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=f'{path}: missing or damaged.*delete {store.directory}'):
        store.read('1' * 40)


def test_a_full_disk_leaves_no_item(tmp_path, monkeypatch):
    store = CacheStore(tmp_path / 'kind-1')

    def full(source, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(InputError, match='No space left on device.*make room'):
        store.write('1' * 40, dict(a=torch.ones(10)))
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def fill(root, name, age):
    store = CacheStore(root / name)
    store.write('1' * 40, dict(a=torch.zeros(25_000)))
    (root / name / 'in_use').touch()
    os.utime(root / name / 'in_use', (time.time() - age,) * 2)


def test_the_longest_unused_go_first_and_no_more_than_needed(tmp_path):
    for name, age in (('old', 300), ('older', 400), ('new', 10)):
        fill(tmp_path, name, age)
    (tmp_path / 'foreign').mkdir()
    assert evict(tmp_path, keep=set(), to_free=150_000) > 150_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ['foreign', 'new']


def test_caches_in_use_stay(tmp_path, repo_root):
    fill(tmp_path, 'held', 400)
    fill(tmp_path, 'kept', 300)
    holder = subprocess.Popen(
        [sys.executable, '-c', f'from sa2va_dpo.common.tensor_store import CacheStore\n'
         f'CacheStore({str(tmp_path / "held")!r}).hold(); print("held", flush=True); input()'],
        cwd=repo_root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == 'held\n'
    assert evict(tmp_path, keep={'kept'}, to_free=1) == 0
    holder.communicate('\n')
    assert evict(tmp_path, keep={'kept'}, to_free=1) > 0, 'a process that has ended holds nothing'
    assert [path.name for path in tmp_path.iterdir()] == ['kept']
