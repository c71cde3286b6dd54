"""Times (medians), peak memory, a measured matmul peak and operation counts."""
from __future__ import annotations

import gc
import statistics
import time
from typing import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def synchronise(device: str) -> None:
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], device: str, repeats: int, seconds: float, warm_up: int = 2) -> float:
    """Median time of one call; fewer repeats (at least 2) once ``seconds`` have gone into them."""
    for _ in range(warm_up):
        work()
    synchronise(device)
    times: list[float] = []
    while len(times) < repeats and (len(times) < 2 or sum(times) < seconds):
        began = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def free(device: str) -> None:
    """Give back what nothing refers to, and start counting the peak anew."""
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> dict[str, float | None]:
    """Peak of GPU memory in tensors, and in what the allocator held for them (GiB); None on a CPU."""
    if not device.startswith('cuda'):
        return dict(peak_allocated_gib=None, peak_reserved_gib=None)
    return dict(peak_allocated_gib=torch.cuda.max_memory_allocated() / 2 ** 30,
                peak_reserved_gib=torch.cuda.max_memory_reserved() / 2 ** 30)


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of some square matrix products: the roofline of this machine."""
    best = 0.0
    for side in ((4096, 8192) if device.startswith('cuda') else (512, 1024)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * side ** 3 / median_seconds(lambda: a @ b, device, 10, 1.0, warm_up=3))
    return best


def _attention_counts() -> dict:
    """Counting rules for attention whose keys have fewer heads than its queries (GQA, arXiv 2305.13245), which
    PyTorch's own rules refuse."""
    aten = torch.ops.aten

    def forward(query, key, value, *_, out_shape=None, **__) -> int:
        return sdpa_flop_count(query, (*query[:2], *key[2:]), (*query[:2], *value[2:]))

    def backward(grad, query, key, value, *_, out_shape=None, **__) -> int:
        return sdpa_backward_flop_count(grad, query, (*query[:2], *key[2:]), (*query[:2], *value[2:]))

    kinds = ('flash', 'efficient', 'cudnn')
    rules = {getattr(aten, f'_scaled_dot_product_{kind}_attention'): forward for kind in kinds}
    return rules | {getattr(aten, f'_scaled_dot_product_{kind}_attention_backward'): backward for kind in kinds}


def counted(work: Callable[[], object]) -> int:
    """Operations of the matrix products, convolutions and attentions inside ``work``, backward passes included.

    Causal attention is counted as if it were full, as PyTorch's counter does.
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_counts()) as counter:
        work()
    return counter.get_total_flops()
