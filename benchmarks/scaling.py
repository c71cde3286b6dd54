"""Images a second against the number of GPUs: DeepSpeed ZeRO-2 in bf16 through torchrun, one image and its pairs a GPU
and step.

    python benchmarks/scaling.py --variant Sa2VA-1B --gpus 1 2 4 --out work_dirs/speed
    python benchmarks/scaling.py --variant tiny --cpu --gpus 1 2    # processes over gloo, to try it out

The DeepSpeed settings are those of ``sa2va_dpo_vessel.py`` without the offload of optimiser states, unless
``--offload``. Weights are random. Reference logits and vision tokens are stored, as in a run with ``cache``; every
process has an image of its own. Efficiency is images a second of a GPU over those of the run with the fewest GPUs.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variant', default='Sa2VA-1B')
    parser.add_argument('--gpus', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--cpu', action='store_true', help='processes over gloo instead of GPUs')
    parser.add_argument('--offload', action='store_true', help='optimiser states in host memory, as in the config')
    parser.add_argument('--recipe', default='default', help='see benchmarks/speed/arms.py')
    parser.add_argument('--candidates', type=int, default=5)
    parser.add_argument('--steps', type=int, default=20, help='measured steps, after five to warm up')
    parser.add_argument('--out', default='work_dirs/speed')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def worker(args: argparse.Namespace) -> None:
    """One process of a measured run; the first writes the median to ``args.worker``."""
    import statistics
    import time

    import deepspeed
    import torch
    from mmengine.config import Config

    from benchmarks.speed import arms as speed
    from benchmarks.speed.measure import synchronise
    from benchmarks.speed.setup import Variant, variant_name

    rank = int(os.environ['LOCAL_RANK'])
    device = 'cpu' if args.cpu else f'cuda:{rank}'
    if args.cpu:
        from sa2va_dpo.engine.strategy import _skip_shared_memory_op

        _skip_shared_memory_op()
    else:
        torch.cuda.set_device(rank)
    deepspeed.init_distributed(dist_backend='gloo' if args.cpu else 'nccl', auto_mpi_discovery=False)
    torch.manual_seed(0)  # the same weights everywhere
    variant = Variant.named(variant_name(args.variant))
    arm = next(
        arm
        for arm in speed.ARMS
        if arm.recipe == args.recipe and arm.cached == {'reference_low_res', 'vision_tokens'}
        and not (arm.checkpointing or arm.compiled)
    )
    model = speed.build_model(
        variant, arm, device, torch.float32 if args.cpu else torch.bfloat16, trainable_float32=False
    )
    data = speed.stored(model, variant.data(1, args.candidates, first_image=rank), arm, device)

    settings = Config.fromfile(
        Path(__file__).resolve().parents[1] / 'projects/sa2va/configs/sa2va_dpo_vessel.py'
    ).strategy
    zero = dict(settings.zero_optimization)
    if not args.offload:
        zero.pop('offload_optimizer')
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=[p for p in model.parameters() if p.requires_grad],
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6),
        config=dict(train_micro_batch_size_per_gpu=1, zero_optimization=zero, bf16=dict(settings.bf16),
                    gradient_clipping=settings.gradient_clipping, steps_per_print=10 ** 9, **settings.config))
    times = []
    for step in range(args.steps + 5):
        synchronise(device)
        began = time.perf_counter()
        engine.backward(speed.our_loss(engine, data, device))
        engine.step()
        synchronise(device)
        if step >= 5:
            times.append(time.perf_counter() - began)
    peak = 0.0 if args.cpu else torch.cuda.max_memory_allocated() / 2 ** 30
    if int(os.environ['RANK']) == 0:
        Path(args.worker).write_text(json.dumps(dict(seconds=statistics.median(times), peak_allocated_gib=peak)))
    torch.distributed.destroy_process_group()


def measure(gpus: int, argv: list[str]) -> dict:
    """A run of ``gpus`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / 'result.json'
        subprocess.run(
            [
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--standalone',
                f'--nproc_per_node={gpus}',
                __file__,
                *argv,
                '--worker',
                str(result),
            ],
            check=True,
        )
        return json.loads(result.read_text())


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.worker:
        worker(args)
        return
    import torch

    from sa2va_dpo.common.files import write_json

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for gpus in args.gpus:
        result = measure(gpus, argv)
        rows.append(dict(gpus=gpus, images_per_second=gpus / result['seconds'], **result))
        rows[-1]['efficiency'] = rows[-1]['images_per_second'] / gpus / (rows[0]['images_per_second'] / rows[0]['gpus'])
        print(
            f'{gpus} GPUs: {rows[-1]["images_per_second"]:.3f} images/s, efficiency {rows[-1]["efficiency"]:.3f}',
            flush=True,
        )
    name = 'CPU' if args.cpu else torch.cuda.get_device_name(0)
    write_json(
        out / 'scaling.json',
        dict(machine=name, variant=args.variant, recipe=args.recipe, offload=args.offload, rows=rows),
    )


if __name__ == '__main__':
    main()
