"""Measures, during the first step of a run on a GPU, what activations take, and decides whether layers keep them."""
from __future__ import annotations

import gc
from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Iterator, Mapping, Protocol

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook

from sa2va_dpo.models.run_model import Sa2VARunModel
from sa2va_dpo.models.trainable import checkpoint_activations, parts_with_layers

from .activation_memory import Measured, allowed, decide
from .console_hook import SAID
from .pair_validation import bare_model


class Meter(Protocol):
    """Memory of one device as this process sees it, bytes."""

    def start(self) -> None:
        """Begin to look for the peak."""

    def allocated(self) -> int:
        """What tensors take now."""

    def peak(self) -> int:
        """The most that tensors took since :meth:`start`."""

    def room(self) -> tuple[int, int]:
        """(what tensors may still take, what this process may hold at most)."""

    def bounded(self, extra: int) -> ContextManager:
        """Inside the block an allocation that would take more than ``extra`` beyond the present fails."""

    def release(self) -> None:
        """Give back what no tensor uses."""


class CudaMeter:
    """The meter of a CUDA device: the caching allocator's own count, its cap, and what the driver has free."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def room(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.device)
        allocated, limit = self.allocated(), int(self._fraction() * total)
        # What the allocator holds and no tensor uses is free for tensors; what other processes hold is not.
        unused = torch.cuda.memory_reserved(self.device) - allocated
        return max(0, min(free + unused, limit - allocated)), limit

    @contextmanager
    def bounded(self, extra: int) -> Iterator[None]:
        before = self._fraction()
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(min(before, (self.allocated() + extra) / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(before, self.device)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def _fraction(self) -> float:
        # Releases of PyTorch that cannot tell their cap are taken to have none.
        asked = getattr(torch.cuda, 'get_per_process_memory_fraction', None)
        return 1.0 if asked is None else float(asked(self.device))


def meter_of(device: torch.device) -> Meter | None:
    """The meter of a device; None where activations are not measured."""
    return CudaMeter(device) if device.type == 'cuda' else None


class ActivationMemoryHook(Hook):
    """Where ``model.activation_checkpointing`` leaves it to the memory: watches one optimiser step in which layers keep
    their inputs only, runs the forward pass of its batch once more for each part that keeps its activations (no
    backward pass, so that no hook of gradients fires), and lets those parts keep them that fit
    (``engine/activation_memory.py``).

    A whole step is watched, not computed: what DeepSpeed's buckets, gradients and the optimiser take is in its peak.
    Measured anew where the data were exchanged (docs/rounds.md) and in a resumed run. Neither draws nor random numbers
    are touched.
    """

    # Before LoggerHook, which starts the count of the peak anew.
    priority = 'HIGH'

    def __init__(self) -> None:
        self.data: Any = None
        self.left = self.start = self.highest = 0
        self.said: tuple[str, ...] | None = None
        self.meter: Meter | None = None

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.data is not runner.train_loop.dataloader:
            self.data = runner.train_loop.dataloader
            self._begin(runner)

    def _begin(self, runner) -> None:
        model = bare_model(runner.model)
        self.left, self.meter = 0, None
        if not isinstance(model, Sa2VARunModel) or not model.checkpointing_by_memory:
            return
        parts = parts_with_layers(model.policy)
        self.meter = meter_of(next(model.parameters()).device)
        if not parts or self.meter is None or _zero_stage(runner) == 3:
            # Under ZeRO-3 a forward pass outside DeepSpeed's own order would confuse its gathering of weights.
            return
        checkpoint_activations(model.policy, dict.fromkeys(parts, True))
        self.left = _steps_of_update(runner)
        self.meter.start()
        self.start = self.highest = self.meter.allocated()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.left or self.meter is None:
            return
        self.left -= 1
        self.highest = max(self.highest, self.meter.peak())
        if self.left or runner.iter + 1 >= runner.max_iters:
            return
        model, loader = bare_model(runner.model), runner.train_loop.dataloader
        available, limit = self.meter.room()
        tokens, pairs = growth(loader.dataset, data_batch)
        kept = self._probe(runner, model, data_batch, allowed(available, limit))
        measured = Measured(limit, available, self.highest - self.start, kept, tokens, pairs)
        decision = decide(all_gather_object(measured))
        checkpoint_activations(model.policy, {part: part not in decision.kept for part in kept})
        again = self.said is not None or runner.iter > 0
        line = decision.line.replace('activations:', 'activations, measured again:') if again else decision.line
        # What is as it was is for the log alone.
        runner.logger.info(line, extra={} if decision.kept == self.said else SAID)
        self.said = decision.kept

    def _probe(self, runner, model: Sa2VARunModel, data_batch, extra: int) -> dict[str, int | None]:
        """Part -> what its activations take, or None where that is more than ``extra`` bytes; see :class:`Measured`.
        Afterwards all layers keep their inputs only."""
        device = next(model.parameters()).device
        found: dict[str, int | None] = {}
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            data = model.data_preprocessor(data_batch, True)
            inputs_only = self._held(runner, model, data, extra)
            for part in parts_with_layers(model.policy):
                checkpoint_activations(model.policy, {part: False})
                whole = self._held(runner, model, data, extra)
                checkpoint_activations(model.policy, {part: True})
                found[part] = None if whole is None or inputs_only is None else max(0, whole - inputs_only)
            del data
        self.meter.release()
        return found

    def _held(self, runner, model: Sa2VARunModel, data: Mapping, extra: int) -> int | None:
        """What a loss holds for its backward pass, bytes; None: it needs more than ``extra``."""
        # The graph of the pass before may hang in a circle.
        self.meter.release()
        before = self.meter.allocated()
        context = getattr(runner.optim_wrapper, 'optim_context', None)
        try:
            # Where it does not fit, neither the card's other processes nor the margin should suffer.
            with self.meter.bounded(extra), torch.enable_grad(), nullcontext() if context is None else context(model):
                # Not the module's call, which DeepSpeed's hooks follow.
                losses = model.loss(**data)
            held = self.meter.allocated() - before
            del losses
            return held
        except torch.cuda.OutOfMemoryError:
            return None


def growth(dataset: Any, data_batch: Mapping) -> tuple[float, float]:
    """How much larger a batch of a data set can be than this one.

    Args:
        dataset: of this package; of another kind nothing is known, and batches are taken to be alike.
        data_batch: as its collate function made it.

    Returns:
        (image tokens, preference pairs), as multiples of those of this batch, at least 1.
    """
    batch = data_batch['batch']
    rows, tokens, pairs = len(batch['original_sizes']), 1.0, 1.0
    if 'image_token_mask' in batch and hasattr(dataset, 'pre'):
        tokens = rows * dataset.pre.images.most_tokens / max(1, int(batch['image_token_mask'].sum()))
    if 'gaps' in data_batch and hasattr(dataset, 'most_pairs'):
        pairs = rows * dataset.most_pairs / max(1, len(data_batch['gaps']))
    return max(1.0, tokens), max(1.0, pairs)


def _steps_of_update(runner) -> int:
    """Iterations after which the optimiser has stepped once, and has its states."""
    strategy, wrapper = runner.cfg.get('strategy') or {}, runner.cfg.get('optim_wrapper') or {}
    return max(1, int(strategy.get('gradient_accumulation_steps') or wrapper.get('accumulative_counts') or 1))


def _zero_stage(runner) -> int:
    return ((runner.cfg.get('strategy') or {}).get('zero_optimization') or {}).get('stage', 0)
