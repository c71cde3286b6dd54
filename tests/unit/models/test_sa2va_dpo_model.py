"""Every cheaper way to compute a preference loss gives the loss and the gradients of the plain one."""
import pytest
import torch

from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from tests.unit.models.preference_case import RECIPE, build, data_of

DECODER = dict(projector='full', mask_decoder='full')


@pytest.fixture(scope='module')
def data(micro_checkpoint) -> dict:
    return data_of(micro_checkpoint, (64, 96), images=2, pairs=2)


def loss_and_gradients(model: Sa2VADPOModel, data: dict) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = model(**data, mode='loss')
    loss = sum(value for name, value in losses.items() if 'loss' in name)
    loss.backward()
    return loss.item(), {
        name.replace('.base_layer.', '.'): p.grad.float().clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_same(first, second, tolerance):
    assert first[0] == pytest.approx(second[0], abs=tolerance)
    assert first[1].keys() == second[1].keys() and first[1]
    for name, gradient in first[1].items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert (gradient - second[1][name]).abs().max() < tolerance * scale, name


def test_activation_checkpointing_changes_no_gradient(micro_checkpoint, data):
    plain = build(micro_checkpoint)
    lean = build(micro_checkpoint, activation_checkpointing=dict(llm=True, sam2_encoder=True))
    layers = [module for module in lean.policy.modules() if getattr(module, 'gradient_checkpointing', False)]
    assert layers and not [m for m in plain.policy.modules() if getattr(m, 'gradient_checkpointing', False)]
    assert_same(loss_and_gradients(plain, data), loss_and_gradients(lean, data), 1e-5)


def test_activation_checkpointing_drops_the_same_numbers_out(micro_checkpoint, data):
    recipe = dict(RECIPE, llm=dict(mode='lora', r=4, dropout=0.5), sam2_encoder=dict(mode='lora', r=4, dropout=0.5))
    found = []
    for spec, seed in ((dict(), 3), (dict(llm=True, sam2_encoder=True), 3), (dict(), 4)):
        model = build(micro_checkpoint, recipe, activation_checkpointing=spec)
        torch.manual_seed(seed)
        found.append(loss_and_gradients(model, data))
    assert_same(found[0], found[1], 1e-5)
    with pytest.raises(AssertionError):
        assert_same(found[0], found[2], 1e-5)  # another seed drops others


def test_layers_through_which_no_gradient_flows_keep_nothing_anyway(micro_checkpoint):
    model = build(micro_checkpoint, DECODER, activation_checkpointing=dict(llm=True, sam2_encoder=True))
    assert not [module for module in model.policy.modules() if getattr(module, 'gradient_checkpointing', False)]


@pytest.mark.parametrize('spec', [dict(decoder=True), dict(llm=1), dict(llm='yes')])
def test_unknown_parts_and_values_are_refused(micro_checkpoint, spec):
    with pytest.raises(ValueError, match='activation_checkpointing'):
        build(micro_checkpoint, activation_checkpointing=spec)


def test_float32_where_it_trains_bfloat16_where_it_does_not(micro_checkpoint, data):
    mixed = build(micro_checkpoint, dtype='bfloat16', trainable_dtype='float32')
    for name, parameter in mixed.policy.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    plain, mixed = loss_and_gradients(build(micro_checkpoint), data), loss_and_gradients(mixed, data)
    assert mixed[0] == pytest.approx(plain[0], rel=0.03)
    # Rounded products scatter single entries; the direction of the step is what has to stay.
    a, b = (torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for _, gradients in (plain, mixed))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98


def test_a_model_without_its_language_model_takes_stored_states(micro_checkpoint, data):
    whole, part = build(micro_checkpoint, DECODER), build(micro_checkpoint, DECODER, with_mllm=False)
    assert part.policy.mllm is None and not [name for name, _ in part.named_parameters() if 'mllm' in name]
    with torch.no_grad():
        states = whole.policy.seg_states(data['batch'])
    batch = dict(seg_states=states, **{name: data['batch'][name] for name in ('seg_index', 'sam_pixel_values')})
    batch['seg_index'] = torch.tensor([[0, 0], [1, 0]])
    assert_same(loss_and_gradients(whole, data), loss_and_gradients(part, dict(data, batch=batch)), 1e-5)
    with pytest.raises(ValueError, match='built without its language model'):
        part(**data, mode='loss')


def test_stored_reference_logits_are_the_reference(micro_checkpoint, data):
    online, stored = build(micro_checkpoint), build(micro_checkpoint, reference='stored')
    assert stored.reference is None and stored.preference.use_reference
    low_res = online.reference_low_res(data['batch'])
    brought = dict(data, batch=dict(data['batch'], reference_low_res=low_res))
    assert_same(loss_and_gradients(online, data), loss_and_gradients(stored, brought), 1e-6)
    with pytest.raises(ValueError, match='brings no reference_low_res'):
        stored(**data, mode='loss')


def test_a_policy_in_memory_takes_the_place_of_a_checkpoint(micro_checkpoint, data):
    from sa2va_dpo.models.checkpoint import load_checkpoint

    # Without adapters, which are drawn at random.
    given = build('no/such/directory', DECODER, policy=load_checkpoint(micro_checkpoint))
    assert_same(loss_and_gradients(build(micro_checkpoint, DECODER), data), loss_and_gradients(given, data), 1e-6)


def test_all_pairs_of_an_image_in_one_pass_equal_one_pass_a_pair(micro_checkpoint, data):
    model = build(micro_checkpoint)
    grouped = loss_and_gradients(model, data)
    total, gradients = 0.0, {}
    for pair in range(4):
        image = int(data['image_index'][pair])
        batch = {**data['batch']}
        for name in ('input_ids', 'labels', 'attention_mask', 'image_token_mask', 'sam_pixel_values'):
            batch[name] = data['batch'][name][image:image + 1]
        tiles = len(data['batch']['pixel_values']) // 2
        batch['pixel_values'] = data['batch']['pixel_values'][image * tiles:(image + 1) * tiles]
        batch['seg_index'] = data['batch']['seg_index'][image:image + 1] * torch.tensor([[0, 1]])
        loss, parts = loss_and_gradients(model, dict(
            batch=batch, chosen=data['chosen'][pair:pair + 1], rejected=data['rejected'][pair:pair + 1],
            image_index=torch.tensor([0]), gaps=data['gaps'][pair:pair + 1]))
        total += loss / 4
        for name, gradient in parts.items():
            gradients[name] = gradients.get(name, 0) + gradient / 4
    assert_same(grouped, (total, gradients), 1e-4)
