"""The clock's arithmetic: what is counted, what is compared, and that every arm trains what it says."""
from dataclasses import replace

import pytest
import torch

from benchmarks.speed import arms as speed
from benchmarks.speed.measure import _attention_counts, counted, median_seconds
from benchmarks.speed.setup import Variant, variant_name
from benchmarks.train_throughput import len_pairs, measure_arm, parse_args, with_ratios
from sa2va_dpo.models.compiled import compilation


def test_operations_of_products_and_of_grouped_attention():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7)
    assert counted(lambda: a @ b) == 2 * 3 * 5 * 7
    assert counted(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 5 * 7)
    rules = _attention_counts()
    aten = torch.ops.aten
    # Two products of 11 x 13 per head and 4 query heads; 2 key heads are shared, not fewer products.
    shapes = (2, 4, 11, 16), (2, 2, 13, 16), (2, 2, 13, 16)
    expected = 2 * 4 * (2 * 11 * 13 * 16) * 2
    for kind in ('flash', 'efficient', 'cudnn'):
        assert rules[getattr(aten, f'_scaled_dot_product_{kind}_attention')](*shapes) == expected
        backward = rules[getattr(aten, f'_scaled_dot_product_{kind}_attention_backward')]
        assert backward((2, 4, 11, 16), *shapes) == 2.5 * expected


def test_medians_need_few_repeats_when_time_is_short():
    calls = []
    assert median_seconds(lambda: calls.append(1), 'cpu', repeats=50, seconds=0.0) >= 0
    assert len(calls) == 2 + 2


def test_ratios_are_to_the_obvious_arm_of_the_same_trained_parts():
    rows = [dict(kind='obvious', recipe='LLM LoRA', pairs_per_second=2.0),
            dict(kind='image', recipe='LLM LoRA', pairs_per_second=50.0),
            dict(kind='obvious', recipe='LLM frozen', pairs_per_second=4.0),
            dict(kind='image', recipe='LLM frozen, SAM2 LoRA', pairs_per_second=400.0)]
    assert [row['ratio'] for row in with_ratios(rows)] == [1.0, 25.0, 1.0, 100.0]
    assert len_pairs(5) == 10


def test_variants_are_named_with_or_without_the_family():
    assert variant_name('InternVL3-8B') == variant_name('Sa2VA-InternVL3-8B') == 'Sa2VA-InternVL3-8B'
    with pytest.raises(SystemExit, match='choose one of tiny'):
        variant_name('Sa2VA-9B')


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return Variant.named('tiny')


def test_a_large_image_makes_twelve_tiles_and_a_thumbnail():
    variant = Variant.named('Sa2VA-1B')
    assert len(variant.data(1, 2)['batch']['pixel_values']) == 13


@pytest.mark.parametrize('kind', ['obvious', 'pair', 'image'])
def test_arms_compute_the_same_loss_of_one_pair(tiny, kind):
    """Policy and reference agree at the start, so DPO's term is log 2, the supervised term that of the chosen mask."""
    arm = next(
        arm for arm in speed.ARMS if arm.kind == kind and arm.recipe == 'LLM frozen' or arm.kind == kind == 'pair'
    )
    torch.manual_seed(0)
    model = speed.build_model(tiny, arm, 'cpu', torch.float32)
    data = speed.one_pair(tiny.data(1, 3, truncate=kind != 'obvious'))
    head = torch.zeros(tiny.config['llm_config']['vocab_size'], model.policy.text_hidden_fcs[0].in_features)
    with torch.no_grad():
        loss = speed.obvious_loss(model, data, 'cpu', head) if kind == 'obvious' else speed.our_loss(model, data, 'cpu')
        reference = speed.our_loss(model, data, 'cpu')
    assert loss.item() == pytest.approx(reference.item(), abs=1e-4)


def test_what_is_cached_takes_the_place_of_what_it_was_computed_from(tiny):
    for arm in speed.ARMS:
        if not arm.cached or arm.recipe not in ('LLM LoRA', 'LLM frozen'):
            continue
        model = speed.build_model(tiny, arm, 'cpu', torch.float32)
        batch = speed.stored(model, tiny.data(1, 3), arm, 'cpu')['batch']
        assert arm.cached <= batch.keys()
        assert ('pixel_values' in batch) == (not {'vision_tokens', 'seg_states'} & arm.cached), arm.name
        assert ('sam_pixel_values' in batch) == ('sam2_levels' not in arm.cached), arm.name
        with torch.no_grad():
            assert torch.isfinite(speed.our_loss(model, dict(tiny.data(1, 3), batch=batch), 'cpu'))


def test_a_compiled_arm_is_a_plain_one_but_for_that():
    compiled = [arm for arm in speed.ARMS if arm.compiled]
    assert {arm.recipe for arm in compiled} == {'LLM LoRA', 'default'}
    for arm in compiled:
        twin = replace(arm, name=arm.name.removesuffix(', compiled'), compiled=False)
        # Right behind it, so that the table sets the two side by side.
        assert speed.ARMS[speed.ARMS.index(arm) - 1] == twin


def test_a_compiled_arm_compiles_before_the_clock_starts_and_leaves_nothing(tiny, monkeypatch):
    """With a backend that compiles nothing, which needs no compiler."""
    monkeypatch.setattr(speed, 'compilation', lambda _: compilation(dict(backend='eager', parts=['llm'])))
    arm = next(arm for arm in speed.ARMS if arm.compiled)
    torch.manual_seed(0)
    model = speed.build_model(tiny, arm, 'cpu', torch.float32)
    args = parse_args(['--candidates', '2', '--repeats', '2', '--seconds', '0', '--pixels', '112', '112'])
    rows = [measure_arm(model, speed.optimiser_of(model, 'cpu'), tiny, one, args)
            for one in (arm, replace(arm, compiled=False))]
    assert rows[0]['compiled'] and rows[0]['compile_seconds'] > 0
    assert not rows[1]['compiled'] and rows[1]['compile_seconds'] is None
    assert rows[0]['flops'] == rows[1]['flops'] > 0
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_the_sweep_alone_takes_the_flag_for_compiled_rows():
    assert parse_args(['--sweep', '--compiled']).compiled
    with pytest.raises(SystemExit):
        parse_args(['--compiled'])
