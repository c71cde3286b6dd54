"""Whether activations fit: the arithmetic by hand, and what a run measures, with a meter that invents the memory."""
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config

from sa2va_dpo.datasets.image_views import InternVLImages, LlavaImages, QwenVLImages
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.engine import activation_hook
from sa2va_dpo.engine.activation_hook import ActivationMemoryHook, CudaMeter, growth, meter_of
from sa2va_dpo.engine.activation_memory import Measured, allowed, decide
from sa2va_dpo.models import run_model
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.models.trainable import checkpoint_activations, parts_with_layers

GIB = 2 ** 30


def measured(limit=80, available=60, step=2, tokens=1.0, pairs=1.0, **kept) -> Measured:
    """In GiB."""
    kept = kept or dict(llm=17, sam2_encoder=5)
    return Measured(limit * GIB, int(available * GIB), int(step * GIB),
                    {part: None if size is None else int(size * GIB) for part, size in kept.items()}, tokens, pairs)


# ---- the arithmetic ------------------------------------------------------------------------------------------------
def test_a_tenth_of_the_limit_stays_free():
    assert allowed(60 * GIB, 80 * GIB) == 52 * GIB == measured().allowed
    assert allowed(5 * GIB, 80 * GIB) == 0


def test_tokens_scale_the_language_model_and_pairs_the_step():
    # 2 x 1.5 + 17 x 1.5 + 5: SAM2's input has one size. Pairs make the step larger and nothing else.
    assert measured(tokens=1.5).need(['llm', 'sam2_encoder']) == 33.5 * GIB
    assert measured(tokens=1.5, pairs=4).need(['llm', 'sam2_encoder']) == (8 + 25.5 + 5) * GIB
    assert measured(tokens=0.5, pairs=0.1).need([]) == 2 * GIB


@pytest.mark.parametrize('one, kept, line', [
    # 60 - 8 = 52; 2 + 17 + 5 = 24.
    (measured(), ('sam2_encoder', 'llm'), 'activations: kept (a step takes 24.0 GiB, it may take 52.0)'),
    # 8B on 24 GB: 7 - 2.4 = 4.6; with SAM2 alone 2 + 5 = 7.
    (measured(limit=24, available=7), (),
     'activations: layers keep their inputs only (keeping all, a step would take 24.0 GiB, it may take 4.6)'),
    # 15 - 3.2 = 11.8: 7 fits, 24 does not.
    (measured(limit=32, available=15), ('sam2_encoder',), 'activations: kept in sam2_encoder, inputs only in llm '
     '(keeping all, a step would take 24.0 GiB, it may take 11.8)'),
    # The same card, images that may have twice the tokens: 4 + 5 still fits.
    (measured(limit=32, available=15, tokens=2), ('sam2_encoder',), 'activations: kept in sam2_encoder, inputs only in '
     'llm (keeping all, a step would take 43.0 GiB, it may take 11.8)'),
    (measured(llm=None, sam2_encoder=5), ('sam2_encoder',), 'activations: kept in sam2_encoder, inputs only in llm '
     '(keeping those of llm runs out of memory, a step may take 52.0 GiB)'),
    (measured(llm=None, sam2_encoder=None), (), 'activations: layers keep their inputs only (keeping those of llm and '
     'sam2_encoder runs out of memory, a step may take 52.0 GiB)'),
])
def test_decisions(one, kept, line):
    assert decide([one]) == decide([one, one]) and decide([one]).kept == kept
    assert decide([one]).line == line


def test_exactly_what_is_allowed_fits():
    one = measured(limit=80, available=32)  # 32 - 8 = 24
    assert decide([one]).kept == ('sam2_encoder', 'llm')
    less = Measured(one.limit, one.available - 1, one.step, one.kept)
    assert decide([less]).kept == ('sam2_encoder',)


def test_the_process_with_least_memory_decides_for_all():
    much, little, none = measured(), measured(limit=32, available=15), measured(llm=17, sam2_encoder=None)
    assert decide([much, little]).kept == decide([little, much]).kept == ('sam2_encoder',)
    assert decide([much, little]).line == decide([little]).line
    # SAM2 does not fit here, the language model does: 2 + 17 of 52.
    assert decide([much, none]).kept == ('llm',)
    assert 'keeping those of sam2_encoder runs out of memory' in decide([much, none]).line


def test_the_largest_image_of_each_family():
    assert InternVLImages(448, 256).most_tokens == 13 * 256
    assert InternVLImages(448, 256, max_tiles=1).most_tokens == 256
    assert InternVLImages(448, 256, max_tiles=6, thumbnail=False).most_tokens == 6 * 256
    assert LlavaImages(336, 576).most_tokens == 576
    processor = SimpleNamespace(patch_size=14, merge_size=2)
    assert QwenVLImages(processor, max_pixels=2048 * 28 * 28).most_tokens == 2048


def test_how_much_larger_a_batch_can_be():
    mask = torch.zeros(2, 30, dtype=torch.bool)
    mask[0, :20], mask[1, :10] = True, True  # 30 tokens of two images, of which each may have 40
    data = dict(batch=dict(original_sizes=[(1, 1)] * 2, image_token_mask=mask), gaps=torch.zeros(3))
    dataset = SimpleNamespace(pre=SimpleNamespace(images=SimpleNamespace(most_tokens=40)), most_pairs=6)
    assert growth(dataset, data) == (80 / 30, 4.0)
    assert growth(object(), data) == (1.0, 1.0), 'nothing is known of another data set'
    assert growth(dataset, dict(batch=dict(original_sizes=[(1, 1)]))) == (1.0, 1.0), 'states from a cache, masks'


# ---- what a run measures -------------------------------------------------------------------------------------------
SIZES = dict(llm=17 * GIB, sam2_encoder=5 * GIB)


class Invented:
    """A device on which the graph of a loss takes 1 GiB, and what ``SIZES`` says more where a part keeps everything."""

    def __init__(self, limit: int, available: int) -> None:
        self.limit, self.available, self.held, self.bound, self.seen = limit * GIB, available * GIB, 0, None, []

    def follow(self, model) -> None:
        inner = model.loss

        def loss(**data):
            kept = [part for part in parts_with_layers(model.policy) if part not in checkpointed(model)]
            self.seen.append((' '.join(kept), torch.rand(1).item()))
            self.held = GIB + sum(SIZES[part] for part in kept)
            if self.bound is not None and self.held > self.bound:
                raise torch.cuda.OutOfMemoryError('invented')
            return inner(**data)
        model.loss = loss

    def start(self) -> None:
        self.held = 0

    def allocated(self) -> int:
        return 3 * GIB + self.held

    def peak(self) -> int:
        return 5 * GIB

    def room(self):
        return self.available, self.limit

    @contextmanager
    def bounded(self, extra):
        self.bound = extra
        try:
            yield
        finally:
            self.bound = None

    def release(self) -> None:
        self.held = 0


def checkpointed(model) -> set[str]:
    roots = dict(llm=model.policy.mllm.language_model, sam2_encoder=model.policy.sam2.vision_encoder.backbone)
    return {part for part, root in roots.items()
            if any(getattr(module, 'gradient_checkpointing', False) for module in root.modules())}


@pytest.fixture(scope='module')
def data(micro_checkpoint):
    rng, pre = np.random.default_rng(0), Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    chosen, rejected = (torch.from_numpy(rng.integers(0, 2, (2, 64, 64)).astype(np.uint8) * 255) for _ in range(2))
    return dict(batch=pre.collate([pre(rng.integers(0, 255, (64, 96, 3), np.uint8), 'segment')]), chosen=chosen,
                rejected=rejected, image_index=torch.tensor([0, 0]), gaps=torch.full((2,), 0.2))


@pytest.fixture()
def run(micro_checkpoint, monkeypatch, data):
    """(iterations, memory of the card, what is available in GiB) -> (meter, lines and whether they are said, model)."""
    monkeypatch.setattr(run_model, 'is_released_size', lambda _: True)

    def go(steps=2, limit=80, available=60, first=0, exchanged=(), config=None, max_iters=9, **settings):
        model = Sa2VADPOModel(str(micro_checkpoint), dict(llm='lora', sam2_encoder='lora'), dict(beta=1.0),
                              score_size=64, **settings).train()
        meter, lines = Invented(limit, available), []
        meter.follow(model)
        monkeypatch.setattr(activation_hook, 'meter_of', lambda device: meter)
        logger = SimpleNamespace(info=lambda line, extra: lines.append((line, bool(extra))))
        loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=None))
        runner = SimpleNamespace(model=model, train_loop=loop, logger=logger, cfg=Config(config or {}), iter=first,
                                 optim_wrapper=None, max_iters=max_iters)
        hook = ActivationMemoryHook()
        for runner.iter in range(first, first + steps):
            if runner.iter in exchanged:
                loop.dataloader = SimpleNamespace(dataset=None)
            torch.manual_seed(runner.iter)
            hook.before_train_iter(runner, runner.iter, data)
            model.loss(**data)
            before = torch.random.get_rng_state()
            hook.after_train_iter(runner, runner.iter, data)
            assert torch.equal(torch.random.get_rng_state(), before)
        return meter, lines, model
    return go


def kept_at(meter) -> list[str]:
    return [kept for kept, _ in meter.seen]


def test_the_first_step_is_watched_and_its_forward_pass_run_again_for_each_part(run):
    meter, lines, model = run()
    # The step, the same batch with inputs only, with each part kept, and the step after it.
    assert kept_at(meter) == ['', '', 'llm', 'sam2_encoder', 'llm sam2_encoder']
    # 5 - 3 + 17 + 5 of 60 - 8.
    assert lines == [('activations: kept (a step takes 24.0 GiB, it may take 52.0)', True)]
    assert checkpointed(model) == set()


def test_what_does_not_fit_keeps_its_inputs_only(run):
    # 15 - 3.2 = 11.8, in which the graph with the language model's activations (18) runs out of memory.
    meter, lines, model = run(limit=32, available=15)
    assert kept_at(meter)[-1] == 'sam2_encoder' and checkpointed(model) == {'llm'}
    assert lines == [('activations: kept in sam2_encoder, inputs only in llm (keeping those of llm runs out of memory, '
                      'a step may take 11.8 GiB)', True)]
    meter, lines, model = run(limit=24, available=7)
    assert kept_at(meter)[-1] == '' and checkpointed(model) == {'llm', 'sam2_encoder'}


def test_measured_again_where_the_data_were_exchanged_and_in_a_resumed_run(run):
    meter, lines, _ = run(steps=4, exchanged=[2])
    assert kept_at(meter) == 2 * ['', '', 'llm', 'sam2_encoder', 'llm sam2_encoder']
    assert lines[1] == (lines[0][0].replace('activations:', 'activations, measured again:'), False), 'as it was'
    _, [(line, said)], _ = run(first=5)
    assert line.startswith('activations, measured again: kept') and said


@pytest.mark.parametrize('config', [dict(strategy=dict(type='x', gradient_accumulation_steps=2)),
                                    dict(optim_wrapper=dict(type='x', accumulative_counts=2))])
def test_accumulated_gradients_are_watched_up_to_the_optimiser_s_step(run, config):
    assert kept_at(run(steps=3, config=config)[0]) == ['', '', '', 'llm', 'sam2_encoder', 'llm sam2_encoder']


def test_nothing_is_measured_where_it_decides_nothing(run, monkeypatch):
    assert kept_at(run(steps=1, max_iters=1)[0]) == [''], 'no step follows'
    meter, lines, _ = run(activation_checkpointing=dict(llm=True))
    assert kept_at(meter) == 2 * ['sam2_encoder'] and lines == [], 'chosen'
    zero3 = dict(strategy=dict(type='x', zero_optimization=dict(stage=3)))
    assert run(config=zero3)[1] == []
    monkeypatch.setattr(run_model, 'is_released_size', lambda _: False)
    meter, lines, _ = run(activation_checkpointing='auto')
    assert kept_at(meter) == 2 * ['llm sam2_encoder'] and lines == [], 'a small checkpoint'


def test_a_cpu_is_not_measured():
    assert meter_of(torch.device('cpu')) is None and isinstance(meter_of(torch.device('cuda:0')), CudaMeter)


@pytest.mark.parametrize('cap, available', [(1.0, 30 + 8 - 5), (0.25, 20 - 5)])
def test_a_cap_of_the_allocator_and_other_processes_count(monkeypatch, cap, available):
    for name, value in dict(memory_allocated=5 * GIB, memory_reserved=8 * GIB, mem_get_info=(30 * GIB, 80 * GIB),
                            get_per_process_memory_fraction=cap).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value, raising=False)
    set_to = []
    monkeypatch.setattr(torch.cuda, 'set_per_process_memory_fraction', lambda value, device: set_to.append(value))
    meter = CudaMeter(torch.device('cuda:0'))
    assert meter.room() == (available * GIB, int(80 * cap) * GIB)
    with meter.bounded(3 * GIB):
        assert set_to == [8 / 80]
    assert set_to == [8 / 80, cap]


def test_parts_are_switched_one_by_one(micro_checkpoint):
    model = Sa2VADPOModel(str(micro_checkpoint), dict(llm='lora', sam2_encoder='lora'), dict(beta=1.0), score_size=64)
    assert parts_with_layers(model.policy) == ['llm', 'sam2_encoder'] and checkpointed(model) == set()
    checkpoint_activations(model.policy, dict(llm=True, sam2_encoder=True))
    assert checkpoint_activations(model.policy, dict(llm=False)) == 0 and checkpointed(model) == {'sam2_encoder'}
