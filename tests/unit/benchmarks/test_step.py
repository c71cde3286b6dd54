"""The studies chose the defaults: a step of theirs has to be a step of the runner, to the bit."""
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.study.step import CLIP, optimizer_of, step  # noqa: E402
from sa2va_dpo import plugins  # noqa: E402, F401
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor  # noqa: E402
from sa2va_dpo.engine.optim import PolicyOptimWrapperConstructor  # noqa: E402
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel  # noqa: E402

LR = 1e-3
PARTS = dict(sam2_encoder='full', sam2_neck='full', projector='full', mask_decoder='full')
OBJECTIVE = dict(
    reduction='disagreement',
    beta=1.0,
    weight=0.3,
    supervised_weight=1.0,
    supervised_bce=2.0,
    supervised_dice=0.5,
    supervised_cldice=0.5,
)


@pytest.fixture
def model(micro_checkpoint):
    return Sa2VADPOModel(str(micro_checkpoint), PARTS, OBJECTIVE, reference='stored', score_size=32)


@pytest.fixture
def data(micro_checkpoint, model):
    """Two images, three pairs; what is frozen comes with the batch, as it does from a cache and in the studies."""
    generator = torch.Generator().manual_seed(3)
    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    pictures = [torch.randint(0, 256, (40, 48, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2)]
    batch = pre.collate([pre(picture, 'Please segment the blood vessels.') for picture in pictures])
    with torch.no_grad():
        states, low_res = model.policy.seg_states(batch), model.policy(batch).low_res
    masks = torch.randint(0, 2, (2, 3, 32, 32), generator=generator, dtype=torch.uint8) * 255
    brought = dict(sam_pixel_values=batch['sam_pixel_values'], seg_states=states, reference_low_res=low_res + 0.1,
                   seg_index=torch.tensor([[0, 0], [1, 0]]), original_sizes=batch['original_sizes'])
    return dict(
        batch=brought, chosen=masks[0], rejected=masks[1], image_index=torch.tensor([0, 0, 1]), gaps=torch.ones(3)
    )


def test_a_step_of_the_studies_is_a_step_of_the_runner(micro_checkpoint, model, data):
    other = Sa2VADPOModel(str(micro_checkpoint), PARTS, OBJECTIVE, reference='stored', score_size=32)
    wrapper = PolicyOptimWrapperConstructor(dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, betas=(0.9, 0.999), weight_decay=0.0),
        clip_grad=dict(max_norm=CLIP)))(other)
    assert isinstance(wrapper, OptimWrapper)
    optimizer, parameters = optimizer_of(model, LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        step(model.train(), optimizer, schedule, parameters, data)
        other.train().train_step(dict(data), wrapper)
    moved = dict(model.named_parameters())
    assert any(not torch.equal(moved[name], value) for name, value in before.items())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, moved[name]), name
