"""Compiled layers: the numbers of plain ones, really compiled, and nothing of a model's names or state changed."""
import copy

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.compiled import Compilation, compilation, compile_layers, layers_of, undo_compilation
from sa2va_dpo.models.run_model import Sa2VARunModel, check_model
from sa2va_dpo.models.trainable import merge_adapters
from tests.unit.models.preference_case import RECIPE, build, data_of

PARTS = ['llm', 'vision', 'sam2_encoder']
CHECKPOINTED = dict(llm=True, vision=True, sam2_encoder=True)


class Counting:
    """A backend that runs graphs as they are and counts: graphs that were made, and calls of them."""

    def __init__(self):
        self.graphs, self.calls = 0, 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*arguments):
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compilations lie at the classes' code: those of one test must not answer another's."""
    config = torch._dynamo.config
    kept = {name: getattr(config, name)
            for name in ('recompile_limit', 'accumulated_recompile_limit', 'optimize_ddp')}
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    for name, value in kept.items():
        setattr(config, name, value)


@pytest.fixture(scope='module')
def data(micro_checkpoint) -> dict:
    return data_of(micro_checkpoint, (64, 96), images=1)


def gradients(model, data) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses = model(**data, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys() and first
    for name, tensor in first.items():
        scale = tensor.abs().max().clamp_min(1e-3)
        assert (tensor - second[name]).abs().max() < 1e-4 * scale, name


@pytest.mark.parametrize('spec', [None, CHECKPOINTED], ids=['plain', 'checkpointed'])
def test_every_layer_is_compiled_and_gives_the_numbers_of_the_plain_one(micro_checkpoint, data, spec):
    counting = Counting()
    plain = build(micro_checkpoint, activation_checkpointing=spec)
    model = build(micro_checkpoint, activation_checkpointing=spec, compile=dict(backend=counting))
    layers = {part: len(layers_of(model.policy, part)) for part in PARTS}
    assert all(layers.values()) and counting.graphs == 0

    with torch.no_grad():
        torch.testing.assert_close(model.reference(model.policy, data['batch']).low_res,
                                   plain.reference(plain.policy, data['batch']).low_res, rtol=1e-5, atol=1e-5)
    assert counting.calls == sum(layers.values())
    low_res = model.policy(data['batch']).low_res
    torch.testing.assert_close(low_res, plain.policy(data['batch']).low_res, rtol=1e-5, atol=1e-5)
    assert counting.calls == 2 * sum(layers.values())

    counting.calls = 0
    found = gradients(model, data)
    # The reference, the policy, and those that run again on the way back; the vision tower's, which are frozen, serve
    # both and run once.
    # transformers 5 checkpoints inside of the compiled function: what runs again is then a part of the graph.
    outside = '__call__' in vars(GradientCheckpointingLayer)
    again = layers['llm'] + layers['sam2_encoder'] if spec and outside else 0
    assert counting.calls == 2 * (layers['llm'] + layers['sam2_encoder']) + layers['vision'] + again
    assert_same(found, gradients(plain, data))

    graphs = counting.graphs
    gradients(model, data)
    assert counting.graphs == graphs  # nothing new to compile


def kept_for_backward(model, data) -> int:
    """Bytes of activations that a forward pass keeps."""
    seen: dict[int, int] = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.policy(data['batch'])
    return sum(seen.values())


def test_through_the_compiler_s_own_backward_pass(micro_checkpoint, data):
    """aot_eager traces the backward pass as inductor does; a checkpointed layer keeps its input only there, too."""
    how = dict(backend='aot_eager', parts=['llm'])
    plain, lean = (build(micro_checkpoint, activation_checkpointing=spec) for spec in ({}, dict(llm=True)))
    compiled = build(micro_checkpoint, activation_checkpointing=dict(llm=True), compile=how)
    assert_same(gradients(compiled, data), gradients(lean, data))
    most, least, found = (kept_for_backward(model, data) for model in (plain, lean, compiled))
    assert least < most and found - least < 0.1 * (most - least)


def test_under_autocast(micro_checkpoint, data):
    settings = dict(dtype='bfloat16', trainable_dtype='float32')
    counting = Counting()
    model = build(micro_checkpoint, compile=dict(backend=counting, parts=['llm']), **settings)
    assert_same(gradients(model, data), gradients(build(micro_checkpoint, **settings), data))
    assert counting.calls == 2 * len(layers_of(model.policy, 'llm'))


def test_other_sizes_are_compiled_and_agree(micro_checkpoint):
    counting = Counting()
    plain = build(micro_checkpoint)
    model = build(micro_checkpoint, compile=dict(backend=counting, parts=['llm', 'vision']))
    made = []
    for size in ((64, 96), (56, 224), (56, 112), (64, 96), (56, 168)):
        batch = data_of(micro_checkpoint, size, images=1)['batch']
        before = counting.graphs
        with torch.no_grad():
            torch.testing.assert_close(model.policy(batch).low_res, plain.policy(batch).low_res, rtol=1e-5, atol=1e-5)
        made.append(counting.graphs - before)
    # The second length is compiled for any length.
    assert made[0] and made[1] and made[2:] == [0, 0, 0]


def test_a_part_trained_fully_and_a_reference_that_was_reset(micro_checkpoint, data):
    trainable = dict(RECIPE, sam2_encoder='full')
    plain = build(micro_checkpoint, trainable)
    counting = Counting()
    model = build(micro_checkpoint, trainable, compile=dict(backend=counting, parts=['llm', 'sam2_encoder']))
    for one in (plain, model):
        one.reset_reference()
        with torch.no_grad():
            for parameter in one.policy.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.05)
    with torch.no_grad():
        torch.testing.assert_close(model.reference_low_res(data['batch']), plain.reference_low_res(data['batch']),
                                   rtol=1e-5, atol=1e-5)
    assert counting.calls == len(layers_of(model.policy, 'llm')) + len(layers_of(model.policy, 'sam2_encoder'))


def test_a_full_copy_as_reference_is_compiled_too(micro_checkpoint, data):
    counting = Counting()
    model = build(micro_checkpoint, reference='copy', compile=dict(backend=counting, parts=['llm']))
    model.reference_low_res(data['batch'])
    assert counting.calls == len(layers_of(model.policy, 'llm'))


def test_names_and_state_stay_and_a_copy_is_plain(micro_checkpoint):
    plain, model = build(micro_checkpoint), build(micro_checkpoint, compile=dict(backend='eager'))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert model.trainable_names() == plain.trainable_names()
    first, second = model.state_dict(), plain.state_dict()
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    merge_adapters(plain.policy)
    merge_adapters(model.policy)
    assert model.policy.state_dict().keys() == plain.policy.state_dict().keys()
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(model.policy).modules())
    undo_compilation(model.policy)
    assert all(module._compiled_call_impl is None for module in model.policy.modules())


def test_off_compiles_nothing(micro_checkpoint):
    for value in (None, False):
        model = Sa2VARunModel(str(micro_checkpoint), RECIPE, compile=value)
        assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_part_that_is_not_held_is_left_out_and_the_line_says_what_is_compiled(micro_checkpoint):
    model = Sa2VARunModel(str(micro_checkpoint), dict(projector='full', mask_decoder='full'), with_mllm=False)
    said: list[str] = []
    counts = compile_layers(model.policy, Compilation(tuple(PARTS), 'eager'), said.append)
    assert counts == dict(llm=0, vision=0, sam2_encoder=len(layers_of(model.policy, 'sam2_encoder')))
    [line] = said
    assert f'layers {counts["sam2_encoder"]} of sam2_encoder, by eager' in line and 'llm' not in line
    compile_layers(model.policy, Compilation(('llm',), 'eager'), said.append)
    assert 'none that this run holds' in said[1]


def test_enough_variants_are_allowed(micro_checkpoint):
    build(micro_checkpoint, compile=dict(backend='eager', parts=['llm']))
    assert torch._dynamo.config.recompile_limit >= 256
    assert torch._dynamo.config.accumulated_recompile_limit >= 256


def test_what_the_setting_means():
    assert compilation(None) is None and compilation(False) is None
    everything = Compilation(tuple(PARTS), 'inductor', None)
    assert compilation(True) == compilation({}) == everything
    assert compilation(dict(parts=['llm', 'llm'], backend='aot_eager')) == Compilation(('llm',), 'aot_eager')
    assert compilation(dict(mode='max-autotune-no-cudagraphs')).mode == 'max-autotune-no-cudagraphs'
    assert compilation(dict(parts=['vision']), dict(llm='nf4')).parts == ('vision',)


@pytest.mark.parametrize('settings, words', [
    (dict(compile='yes'), "compile: 'yes' must be True, None or a dict"),
    (dict(compile=dict(part=['llm'])), 'compile: unknown field part; the fields are parts, backend, mode'),
    (dict(compile=dict(parts=['llm', 'mask_decoder'])), 'compile.parts:'),
    (dict(compile=dict(parts='llm')), "compile.parts: 'llm' must be a list of some of llm, vision, sam2_encoder"),
    (dict(compile=dict(parts=[])), 'compile.parts: [] must be'),
    (dict(compile=dict(backend='indictor')), "compile.backend: 'indictor' is not one of"),
    (dict(compile=dict(mode='fast')), "compile.mode: 'fast' is not one of"),
    (dict(compile=dict(mode='max-autotune', backend='aot_eager')), 'compile.mode: has no effect'),
    (dict(compile=True, llm_quantisation='nf4'), 'compile: cannot look into the kernels of llm in nf4'),
    (dict(compile=dict(parts=['vision']), vision_quantisation='int8'),
     'compile: cannot look into the kernels of vision in int8'),
    (dict(compile=True, trainable=None), 'compile: has no effect, for trainable is None'),
])
def test_bad_values_are_refused_before_anything_is_read(settings, words):
    with pytest.raises(ValueError) as error:
        check_model(dict(dict(type='Sa2VARunModel', checkpoint='no/such/checkpoint', trainable=RECIPE), **settings))
    assert str(error.value).startswith(words)


def test_a_backend_that_cannot_compile_here_is_one_line(micro_checkpoint):
    with pytest.raises(InputError) as error:
        Sa2VARunModel(str(micro_checkpoint), RECIPE, compile=dict(backend='relu_compile_error_TESTING_ONLY'))
    assert str(error.value).startswith('compile: relu_compile_error_TESTING_ONLY cannot compile for ')
    assert str(error.value).endswith('or leave compile out') and '\n' not in str(error.value)
