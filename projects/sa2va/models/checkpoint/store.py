"""Weight files on disk: one tensor at a time in, one tensor at a time out.

The safetensors format is read and written here directly (its header is a length, a JSON table and raw bytes):
a memory-mapped reader keeps whole shards resident, and an export must keep the source's header byte for byte.
Pickle files (``.bin``) are opened with ``weights_only=True`` only.
"""
from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import parse_json, read_json, write_json

DTYPES = {
    'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
    'I64': torch.int64, 'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8, 'U8': torch.uint8,
    'BOOL': torch.bool,
}
_MAX_HEADER = 100_000_000
_PIECE = 16 << 20

# In order of preference; an index file names the shards.
_LAYOUTS = (('model.safetensors.index.json', 'model.safetensors'),
            ('pytorch_model.bin.index.json', 'pytorch_model.bin'))
_SHARD = re.compile(r'(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)$')


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. ``shape`` and ``dtype`` as stored; ``start``/``end`` are absolute byte offsets, -1 for a
    tensor of a pickle file that is not one run of bytes (a transposed view, a file of the pre-zip format)."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = -1
    end: int = -1


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The raw little-endian bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def read_safetensors_header(path: Path) -> tuple[bytes, dict[str, TensorInfo]]:
    """The raw header (length field included) and the table of tensors, every offset checked.

    Raises:
        InputError: the file is shorter than its header says, or the header is not a valid table.
    """
    size = path.stat().st_size
    with open(path, 'rb') as f:
        prefix = f.read(8)
        length = struct.unpack('<Q', prefix)[0] if len(prefix) == 8 else _MAX_HEADER
        if length >= min(_MAX_HEADER, size):
            raise InputError(f'{path}: not a safetensors file or cut short (header of {length} bytes in a file of '
                             f'{size}); download it again')
        raw = f.read(length)
    try:
        table = parse_json(raw)
        entries = {}
        for key, entry in table.items():
            if key == '__metadata__':
                continue
            start, end = entry['data_offsets']
            # bool is an int to Python, a float compares like one: neither is a size.
            if any(type(number) is not int or number < 0 for number in (start, end, *entry['shape'])):
                raise ValueError(f'{key}: sizes and offsets must be whole numbers')
            shape, dtype = tuple(entry['shape']), DTYPES.get(entry['dtype'])
            if dtype is None:
                raise InputError(f'{path}: {key}: dtype {entry["dtype"]} is not supported; store it as one of '
                                 f'{", ".join(DTYPES)}')
            if end - start != math.prod(shape) * dtype.itemsize or start < 0:
                raise InputError(f'{path}: {key}: offsets {start}..{end} do not fit shape {list(shape)}; '
                                 f'the file is damaged, download it again')
            if 8 + length + end > size:
                raise InputError(f'{path}: {key}: cut short (needs {8 + length + end} bytes, the file has {size}); '
                                 f'download it again')
            entries[key] = TensorInfo(path.name, shape, dtype, 8 + length + start, 8 + length + end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path}: the safetensors header is damaged ({error}); download it again') from None
    return prefix + raw, entries


def stored_names(directory: Path) -> set[str]:
    """The names that a directory's index, or the header of its one safetensors file, lists; nothing is checked, and
    where there is neither there are none."""
    for index, single in _LAYOUTS:
        if (directory / index).is_file():
            table = read_json(directory / index, 'download it again', 'download it again', kind=dict)
            return set(table.get('weight_map') or ())
        if single.endswith('.safetensors') and (directory / single).is_file():
            return set(read_safetensors_header(directory / single)[1])
    return set()


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one small file, on the CPU.

    Raises:
        InputError: missing or damaged.
    """
    if not path.is_file():
        raise InputError(f'{path}: missing')
    read_safetensors_header(path)
    from safetensors.torch import load_file
    return load_file(path)


def load_pickle(path: Path, *, mmap: bool = True) -> dict:
    """``torch.load(weights_only=True)`` with one clear line for a pickle that carries code or is damaged.

    Raises:
        InputError: the file needs code to be loaded, or is not a torch file.
    """
    try:
        try:
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
        except RuntimeError as error:
            # Files of the old (pre-zip) format cannot be mapped.
            if 'mmap' not in str(error):
                raise
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|global|class|function)\s+`?([\w.]+)', str(error))
        raise InputError(f'{path}: the pickle asks to run {found.group(1) if found else "code"}, which is never done '
                         f'for a checkpoint; store plain tensors (safetensors) instead') from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(f'{path}: not a readable torch file ({str(error).splitlines()[0][:160]}); '
                         f'download it again') from None


def read_pickle_table(path: Path) -> dict[str, TensorInfo]:
    """Where the tensors of a ``.bin`` file lie, without reading them.

    torch tells the offset of each storage when it loads a zip file without its data; bytes can then be read as from a
    safetensors file, so that a mapped shard does not stay resident beside the model.

    Raises:
        InputError: as :func:`load_pickle`, or an entry that is no tensor.
    """
    try:
        with FakeTensorMode():
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:
        # Code in the pickle, damage, or the old format: the ordinary way says which, and can read the last.
        content = load_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: holds a {type(content).__name__}, must be a state dict')
    entries = {}
    for key, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f'{path}: {key} is a {type(tensor).__name__}, not a tensor; store a plain state dict')
        offset, start, end = getattr(tensor.untyped_storage(), '_checkpoint_offset', None), -1, -1
        if offset is not None and tensor.is_contiguous():
            start = offset + tensor.storage_offset() * tensor.element_size()
            end = start + tensor.numel() * tensor.element_size()
        entries[key] = TensorInfo(path.name, tuple(tensor.shape), tensor.dtype, start, end)
    return entries


class CheckpointStore:
    """The weights of one checkpoint directory.

    Holds names, shapes and offsets only; ``read`` opens the file each time, so the object can be copied and pickled.

    Raises:
        InputError: no weights, a missing index or shard, an index that does not match its shards.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise InputError(f'{self.directory}: no such checkpoint directory; give the folder that holds config.json')
        self.index: str | None = None
        self.tensors: dict[str, TensorInfo] = {}
        self._pickles: dict[str, dict] = {}
        self._buffer: torch.Tensor | None = None
        for index, single in _LAYOUTS:
            if (self.directory / index).is_file():
                self.index = index
                self._read_index(index)
                break
            if (self.directory / single).is_file():
                self.files = [single]
                self._add_file(single)
                break
        else:
            shards = sorted(p.name for p in self.directory.iterdir() if _SHARD.search(p.name))
            if shards:
                index = _LAYOUTS[0][0] if shards[0].endswith('.safetensors') else _LAYOUTS[1][0]
                raise InputError(f'{self.directory / index}: missing, but there are shards ({shards[0]} ...); '
                                 f'download the index file as well')
            raise InputError(f'{self.directory}: no weights; model.safetensors (or its index and shards, or '
                             f'pytorch_model.bin) must be there')

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_pickles': {}, '_buffer': None}

    @property
    def is_pickle(self) -> bool:
        return self.files[0].endswith('.bin')

    def _read_index(self, index: str) -> None:
        path = self.directory / index
        try:
            weight_map = read_json(path, 'download it again', kind=dict)['weight_map']
            self.files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f'{path}: no readable weight_map ({error}); download it again') from None
        for name in self.files:
            if Path(name).name != name:
                raise InputError(f'{path}: weight_map names {name!r}, which is outside the checkpoint directory')
            if not (self.directory / name).is_file():
                raise InputError(f'{self.directory / name}: missing shard (named in {index}); download it')
            self._add_file(name)
        for key, name in weight_map.items():
            if key not in self.tensors or self.tensors[key].file != name:
                raise InputError(f'{self.directory / name}: {key} is not in this shard although {index} says so; '
                                 f'index and shards are of different exports')
        for key, info in self.tensors.items():
            if key not in weight_map:
                raise InputError(f'{self.directory / info.file}: {key} is in the shard but not in {index}; '
                                 f'index and shards are of different exports')

    def _add_file(self, name: str) -> None:
        path = self.directory / name
        if name.endswith('.safetensors'):
            _, entries = read_safetensors_header(path)
        else:
            entries = read_pickle_table(path)
        double = next((key for key in entries if key in self.tensors), None)
        if double is not None:
            raise InputError(f'{path}: {double} is also in {self.tensors[double].file}; one of the two must go')
        self.tensors.update(entries)

    def _pickle(self, name: str) -> dict:
        if name not in self._pickles:
            self._pickles[name] = load_pickle(self.directory / name)
        return self._pickles[name]

    def order(self, key: str) -> tuple:
        """Sorting by this reads every file from front to back."""
        info = self.tensors[key]
        return (self.files.index(info.file), info.start)

    def read(self, key: str, dtype: torch.dtype | None = None,
             device: str | torch.device = 'cpu') -> torch.Tensor:
        """One tensor with memory of its own, converted and moved piece by piece.

        Host memory peaks at the result (if it stays on the host) and one piece.

        Args:
            dtype: of the result; None keeps the stored one.
        """
        info = self.tensors[key]
        dtype = dtype or info.dtype
        if info.start < 0:
            stored = self._pickle(info.file)[key]
            return torch.empty(info.shape, dtype=dtype, device=device).copy_(stored)
        result = torch.empty(info.shape, dtype=dtype, device=device)
        flat, step = result.view(-1), max(1, _PIECE // info.dtype.itemsize)
        direct = result.dtype == info.dtype and result.device.type == 'cpu'
        piece = None if direct else self._staging().view(info.dtype)
        with open(self.directory / info.file, 'rb', buffering=0) as f:
            f.seek(info.start)
            for start in range(0, flat.numel(), step):
                target = flat[start:start + step]
                part = target if direct else piece[:target.numel()]
                view, done = _bytes_of(part), 0
                while done < len(view):
                    count = f.readinto(view[done:])
                    if not count:
                        raise InputError(f'{self.directory / info.file}: {key}: cut short while reading; '
                                         f'download it again')
                    done += count
                if not direct:
                    target.copy_(part)
        return result

    def _staging(self) -> torch.Tensor:
        # One buffer for all tensors: allocating and freeing it between results leaves holes as large as the results.
        if self._buffer is None:
            self._buffer = torch.empty(_PIECE, dtype=torch.uint8)
        return self._buffer

    def close(self) -> None:
        """Forget opened pickle files and the staging buffer."""
        self._pickles.clear()
        self._buffer = None


def write_like(store: CheckpointStore, out_dir: Path, tensor_of: Callable[[str], torch.Tensor]) -> None:
    """Write weight files with the names, header bytes, key order, shapes and dtypes of ``store``.

    Args:
        tensor_of: released key -> CPU tensor of exactly the stored shape and dtype. Called once per key,
            in file order, so that only one tensor is alive at a time (one shard for pickle files).
    """
    for name in store.files:
        if store.is_pickle:
            # In the order of the source; a pickle is written whole, so one shard is in memory.
            torch.save(
                {key: tensor_of(key) for key, info in store.tensors.items() if info.file == name}, out_dir / name
            )
            continue
        keys = sorted((k for k, info in store.tensors.items() if info.file == name), key=store.order)
        header, _ = read_safetensors_header(store.directory / name)
        with open(out_dir / name, 'wb') as f:
            f.write(header)
            for key in keys:
                info, tensor = store.tensors[key], tensor_of(key)
                if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
                    raise ValueError(
                        f'{key}: {tuple(tensor.shape)} {tensor.dtype}, stored as {info.shape} {info.dtype}'
                    )
                f.seek(info.start)
                f.write(_bytes_of(tensor.contiguous()))


def shard_names(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int) -> dict[str, list[str]]:
    """Weight file -> its keys, sorted, as released checkpoints are cut: files of at most ``shard_bytes``, and at least
    one tensor; one file is called ``model.safetensors``."""
    shards: list[list[str]] = [[]]
    size = 0
    for key in sorted(shapes):
        count = math.prod(shapes[key]) * dtype.itemsize
        if size and size + count > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += count
    if len(shards) == 1:
        return {_LAYOUTS[0][1]: shards[0]}
    return {f'model-{i:05d}-of-{len(shards):05d}.safetensors': keys for i, keys in enumerate(shards, 1)}


def write_new(out_dir: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype,
              tensor_of: Callable[[str], torch.Tensor], shard_bytes: int = 5_000_000_000) -> int:
    """Write safetensors files (and their index) of tensors that exist one at a time.

    Args:
        shapes: key -> shape.
        dtype: in which every tensor is stored.
        tensor_of: key -> tensor of that shape, in any dtype, on any device. Called once per key, in file order; the
            host holds a piece of it.
        shard_bytes: largest weight file.

    Returns:
        The bytes of all tensors.
    """
    name_of = {kind: name for name, kind in DTYPES.items()}[dtype]
    shards, total = shard_names(shapes, dtype, shard_bytes), 0
    for file, keys in shards.items():
        table: dict[str, dict] = {'__metadata__': {'format': 'pt'}}
        end = 0
        for key in keys:
            start, end = end, end + math.prod(shapes[key]) * dtype.itemsize
            table[key] = dict(dtype=name_of, shape=list(shapes[key]), data_offsets=[start, end])
        header = json.dumps(table, separators=(',', ':')).encode()
        header += b' ' * (-len(header) % 8)  # tensors are to lie on multiples of eight
        total += end
        with open(out_dir / file, 'wb') as f:
            f.write(struct.pack('<Q', len(header)) + header)
            for key in keys:
                tensor = tensor_of(key)
                if tuple(tensor.shape) != tuple(shapes[key]):
                    raise ValueError(f'{key}: {tuple(tensor.shape)}, must be {tuple(shapes[key])}')
                for piece in tensor.reshape(-1).split(_PIECE // dtype.itemsize):
                    f.write(_bytes_of(piece.to('cpu', dtype)))
    if len(shards) > 1:
        write_json(out_dir / _LAYOUTS[0][0], dict(
            metadata=dict(total_size=total), weight_map={key: file for file, keys in shards.items() for key in keys}),
            indent=2)
    return total


def weight_files(store: CheckpointStore) -> set[str]:
    """Names of the weight files (the index is not one of them: it is copied like any other file)."""
    return set(store.files)


def other_weight_files(store: CheckpointStore) -> list[str]:
    """Weight files of another format lying beside the ones that are read."""
    mine = set(store.files) | {store.index}
    known: Iterable[str] = [n for pair in _LAYOUTS for n in pair]
    return sorted(p.name for p in store.directory.iterdir()
                  if p.name not in mine and (p.name in known or _SHARD.search(p.name)))
