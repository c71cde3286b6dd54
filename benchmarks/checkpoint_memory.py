#!/usr/bin/env python
"""Peak host memory of loading a checkpoint of a released size:

    python benchmarks/checkpoint_memory.py --variant Sa2VA-InternVL3-8B --dtype bfloat16 --device cuda

The checkpoint is synthetic: real names, shapes and shards, bytes all zero (sparse files, so that it costs no disk).
"""
import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_BYTES = {'F32': 4, 'BF16': 2}


def write_synthetic(directory: Path, config: dict, dtype: str = 'F32', shard_bytes: int = 5_000_000_000,
                    sam2_dims: dict | None = None) -> int:
    """A sharded checkpoint of zeros for ``config``; returns its size in bytes."""
    from sa2va_dpo.models.checkpoint import released_shapes
    directory.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for key, shape in sorted(released_shapes(config, sam2_dims).items()):
        count = math.prod(shape) * _BYTES[dtype]
        if size and size + count > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = dict(dtype=dtype, shape=list(shape), data_offsets=[size, size + count])
        size += count
    weight_map, total = {}, 0
    for i, table in enumerate(shards):
        name = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
        header = json.dumps(table).encode()
        end = max(entry['data_offsets'][1] for entry in table.values())
        with open(directory / name, 'wb') as f:
            f.write(struct.pack('<Q', len(header)) + header)
            f.truncate(8 + len(header) + end)
        weight_map.update(dict.fromkeys(table, name))
        total += end
    (directory / 'model.safetensors.index.json').write_text(json.dumps(
        dict(metadata=dict(total_size=total), weight_map=weight_map)))
    (directory / 'config.json').write_text(json.dumps(config))
    if sam2_dims is not None:
        (directory / 'sam2_dims.json').write_text(json.dumps(sam2_dims))
    return total


def _peak() -> int:
    """High-water mark of this process's resident memory, bytes."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


def measure(directory: Path, dtype: str, device: str) -> dict:
    """Load in this process; peak above what importing and building cost. One measurement per process."""
    import time

    import torch

    from sa2va_dpo.models.checkpoint import empty_weights, load_checkpoint, read_config, read_sam2_dims
    from sa2va_dpo.models.sa2va import Sa2VAModel
    with empty_weights():
        Sa2VAModel(read_config(directory), read_sam2_dims(directory))
    torch.zeros(1, device=device)
    before, start = _peak(), time.perf_counter()
    model = load_checkpoint(directory, dtype=getattr(torch, dtype), device=device)
    seconds = time.perf_counter() - start
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    added = _peak() - before
    return dict(model_bytes=size, peak_host_bytes=added, ratio=added / size, seconds=seconds, dtype=dtype,
                device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='Sa2VA-1B')
    parser.add_argument('--stored', default='F32', choices=_BYTES)
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--measure', metavar='DIR', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.dtype, args.device)))
        return
    from sa2va_dpo.models.variants import GROUNDING, RELEASED
    with tempfile.TemporaryDirectory() as folder:
        total = write_synthetic(Path(folder), RELEASED[args.variant], args.stored,
                                sam2_dims=GROUNDING.get(args.variant))
        # A process of its own: the high-water mark never falls.
        out = subprocess.run([sys.executable, __file__, '--measure', folder, '--dtype', args.dtype, '--device',
                              args.device], check=True, capture_output=True, text=True).stdout
    result = json.loads(out.splitlines()[-1])
    print(f'{args.variant}: {total / 1e9:.2f} GB stored as {args.stored}; model {result["model_bytes"] / 1e9:.2f} GB '
          f'in {args.dtype} on {args.device}; peak host memory added {result["peak_host_bytes"] / 1e9:.2f} GB '
          f'({result["ratio"]:.2f} x) in {result["seconds"]:.1f} s')


if __name__ == '__main__':
    main()
