"""Tensors on disk by key: one memory-mapped safetensors file an item, written whole or not at all."""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import InputError
from .files import replacing

_LOCK = 'in_use'
# Locks are held until the process ends, however it ends.
_held: list = []
# Folder of a store -> what computes an item of it when it is first wanted, in this process.
_fillers: dict[str, Callable[[Any], None]] = {}


def item_key(image_digest: str, prompt: str, horizontal: bool, vertical: bool) -> str:
    """Name of an item: of one image, one prompt, one flip."""
    text = '\0'.join((image_digest, prompt, str(int(horizontal)), str(int(vertical))))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class CacheStore:
    """One kind of result under one fingerprint.

    Args:
        directory: its folder; what it is called is the caller's business.

    Files appear by renaming, so any number of processes may write and read at once, and an interrupted one leaves whole
    items only.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)

    def path(self, key: str) -> Path:
        return self.directory / key[:2] / f'{key}.safetensors'

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> int:
        """Store one item (on any device, in its dtype); returns its size in bytes."""
        path = self.path(key)
        with replacing(path) as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
            return temporary.stat().st_size

    def read(self, key: str) -> dict[str, torch.Tensor]:
        """One item, mapped into memory; pages are read when they are used.

        Raises:
            InputError: it is missing or damaged.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework='pt') as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(
                f'{path}: missing or damaged ({str(error).splitlines()[0]}): delete {self.directory} and '
                f'start again, it is rebuilt; if an image was changed during the run, put it back'
            ) from None

    def fill_with(self, filler: Callable[[Any], None]) -> None:
        """Let ``filler(view)`` store an item when it is first wanted, for all stores of this folder in this process."""
        _fillers[str(self.directory)] = filler

    def ensure(self, key: str, view: Any) -> None:
        """Have the item of a view stored, if something was set to compute it."""
        filler = _fillers.get(str(self.directory))
        if filler is not None and key not in self:
            filler(view)

    def hold(self) -> None:
        """Keep the folder from :func:`evict` as long as this process lives."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = open(self.directory / _LOCK, 'a')
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(file.fileno())  # when it was used last
        _held.append(file)


def size_of(directory: str | os.PathLike) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for root, _, names in os.walk(str(directory)):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # another process renamed it meanwhile
                continue
    return total


def evict(cache_dir: str | os.PathLike, keep: set[str], to_free: int) -> int:
    """Remove caches, the longest unused first, until ``to_free`` bytes are gone; returns how many bytes went.

    Caches that a process holds (:meth:`CacheStore.hold`), folders named in ``keep`` and foreign folders stay.
    """
    freed = 0
    locks = sorted(Path(cache_dir).glob(f'*/{_LOCK}'), key=lambda path: path.stat().st_mtime)
    for lock in locks:
        if freed >= to_free:
            break
        if lock.parent.name in keep:
            continue
        with open(lock, 'a') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            freed += size_of(lock.parent)
            shutil.rmtree(lock.parent)
    return freed
