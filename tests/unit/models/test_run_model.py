"""Loading, settings and state of the run model and its siblings; what is wrong is said before a weight is read."""
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models import run_model
from sa2va_dpo.models.checkpoint import default_dtype, layout, load_checkpoint
from sa2va_dpo.models.quantised import quantiser
from sa2va_dpo.models.run_model import Sa2VARunModel, check_model, inference_model
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel

RECIPE = dict(llm=dict(mode='lora', r=2), sam2_neck='full')
PREFERENCE = dict(beta=1.0, reduction='balanced')
NOWHERE = 'no/such/checkpoint'


@pytest.fixture(scope='module')
def batch(micro_checkpoint):
    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    return pre.collate([pre(np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8), 'Vessel?')])


def test_inference_has_nothing_trainable_and_an_empty_state(micro_checkpoint, batch):
    model = MODELS.build(dict(type='Sa2VARunModel', checkpoint=str(micro_checkpoint)))
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert dict(model.state_dict()) == {} and model.parameter_groups() == []
    [sample] = model(batch, mode='predict', image_id=['x'])
    assert sample['pred_mask'].shape == (60, 80) and sample['pred_mask'].dtype == bool and sample['image_id'] == 'x'
    with pytest.raises(NotImplementedError, match='has no loss'):
        model(batch, mode='loss')


@pytest.mark.parametrize('build', [
    lambda path: Sa2VARunModel(path, RECIPE), lambda path: Sa2VASegModel(path, RECIPE),
    lambda path: Sa2VADPOModel(path, RECIPE, PREFERENCE)])
def test_a_run_s_state_is_its_trainable_tensors(micro_checkpoint, build):
    model = build(str(micro_checkpoint))
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(model.state_dict()) == wanted == model.trainable_names()
    assert any('lora_A' in name for name in wanted) and any('sam2.vision_encoder.neck' in name for name in wanted)


@pytest.mark.parametrize('settings, words', [
    (dict(type='Sa2VARunModel', trainabel=RECIPE), 'trainabel: Sa2VARunModel has no such setting; did you mean'),
    (dict(type='Sa2VARunModel', preference=PREFERENCE), 'preference: Sa2VARunModel has no such setting'),
    (dict(type='Sa2VARunModel', score_size=64), 'score_size: Sa2VARunModel has no such setting'),
    (dict(type='Sa2VARunModel', trainable_dtype='float32'), 'trainable_dtype: has no effect'),
    (dict(type='Sa2VARunModel', activation_checkpointing=dict(llm=True)), 'activation_checkpointing: has no effect'),
    (dict(type='Sa2VARunModel', activation_checkpointing='auto'), 'activation_checkpointing: has no effect'),
    (dict(type='Sa2VARunModel', dtype='float16'), "dtype: 'float16' is not one of"),
    (dict(type='Sa2VASegModel', trainable=RECIPE, activation_checkpointing='llm'),
     'activation_checkpointing: \'llm\' must be a dict of parts (llm, vision, sam2_encoder), or "auto"'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, activation_checkpointing=True),
     'activation_checkpointing: True must be a dict of parts'),
    (dict(type='Sa2VARunModel', llm_quantisation='fp4'), "llm_quantisation: 'fp4' is not one of nf4, int8, None"),
    (dict(type='Sa2VARunModel', llm_quantisation='nf4', trainable=dict(llm='full')), 'trainable.llm is full'),
    (dict(type='Sa2VASegModel', llm_quantisation='int8', trainable='all'), 'trainable.llm is full'),
    (dict(type='Sa2VARunModel', vision_quantisation='fp4'), "vision_quantisation: 'fp4' is not one of nf4, int8, None"),
    (dict(type='Sa2VARunModel', vision_quantisation='nf4', trainable=dict(vision='full')), 'trainable.vision is full'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, iou_weigth=1.0), 'did you mean iou_weight?'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, iou_weight=1.0), 'iou_weight: has no effect'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, hypotheses='best'), 'hypotheses'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, reference='initial'), 'reference: Sa2VASegModel has no such setting'),
    (dict(type='Sa2VASegModel', trainable=RECIPE, score_size=2.5), 'score_size: 2.5'),
    (dict(type='Sa2VASegModel', trainable=None), 'trainable: None means inference'),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=PREFERENCE, bce_weight=1.0),
     'bce_weight: Sa2VADPOModel has no'),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=PREFERENCE, hypotheses='all'),
     'hypotheses: Sa2VADPOModel has'),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=PREFERENCE, reference='ema'), "reference: 'ema'"),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=dict(betta=1)), 'unknown field betta'),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=dict(sft_weight=1)),
     'sft_weight is called supervised_weight'),
    (dict(type='Sa2VADPOModel', trainable=None, preference=PREFERENCE), 'trainable: None means inference'),
    (dict(type='Sa2VADPOModel', trainable=dict(lm='lora'), preference=PREFERENCE), 'unknown part lm'),
    (dict(type='Sa2VADPOModel', trainable=RECIPE, preference=PREFERENCE, activation_checkpointing=dict(decoder=True)),
     'activation_checkpointing'),
])
def test_what_is_unknown_or_idle_is_named_before_anything_is_read(settings, words):
    settings = dict(settings, checkpoint=NOWHERE)
    for call in (check_model, MODELS.build):
        with pytest.raises(ValueError) as error:
            call(settings)
        assert words in str(error.value)


def test_a_model_of_another_house_is_refused():
    with pytest.raises(ValueError, match="type: 'ResNet'"):
        check_model(dict(type='ResNet', checkpoint=NOWHERE))


def test_siblings_have_no_setting_of_each_other():
    seg, dpo = set(Sa2VASegModel.setting_names()), set(Sa2VADPOModel.setting_names())
    common = set(Sa2VARunModel.setting_names())
    assert seg & dpo == common | {'score_size'}
    assert not issubclass(Sa2VADPOModel, Sa2VASegModel)


def test_the_dtype_follows_size_and_device(micro_checkpoint, monkeypatch):
    assert default_dtype(micro_checkpoint, 'cuda:1') == default_dtype(micro_checkpoint, 'cpu') == torch.float32
    monkeypatch.setattr(layout, 'RELEASED_BYTES', 1000)
    assert default_dtype(micro_checkpoint, 'cuda:1') == torch.bfloat16
    assert default_dtype(micro_checkpoint, 'cpu') == torch.float32


def test_inference_takes_the_default_dtype_and_training_float32(micro_checkpoint, monkeypatch):
    monkeypatch.setattr(run_model, 'default_dtype', lambda *_: torch.bfloat16)
    assert {p.dtype for p in Sa2VARunModel(str(micro_checkpoint)).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in Sa2VARunModel(str(micro_checkpoint), dtype='float32').parameters()} == {torch.float32}
    assert {p.dtype for p in Sa2VARunModel(str(micro_checkpoint), RECIPE).parameters()} == {torch.float32}


def test_activation_checkpointing_is_on_by_default_for_released_sizes(micro_checkpoint, monkeypatch):
    def layers(**settings) -> int:
        model = Sa2VARunModel(str(micro_checkpoint), dict(llm='lora', sam2_encoder='lora'), **settings)
        return sum(getattr(module, 'gradient_checkpointing', False) for module in model.policy.modules())

    assert layers() == layers(activation_checkpointing='auto') == 0
    monkeypatch.setattr(run_model, 'is_released_size', lambda _: True)
    assert layers() == layers(activation_checkpointing='auto') > layers(activation_checkpointing=dict(llm=True)) > 0
    assert layers(activation_checkpointing={}) == 0


def test_on_the_meta_device_no_weight_is_read(micro_checkpoint):
    model = Sa2VARunModel(str(micro_checkpoint), RECIPE, device='meta')
    assert all(p.is_meta for p in model.parameters())
    assert model.trainable_names() == Sa2VARunModel(str(micro_checkpoint), RECIPE).trainable_names()


def test_the_inference_model_of_a_config_takes_the_run_s_tensors(micro_checkpoint, batch):
    settings = dict(type='Sa2VADPOModel', checkpoint=str(micro_checkpoint), trainable=RECIPE, preference=PREFERENCE)
    trained = MODELS.build(settings)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    model = inference_model(settings)
    assert not hasattr(model, 'reference') and type(model) is Sa2VARunModel
    model.load_state_dict(trained.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).low_res, trained.eval()(batch).low_res)
    with pytest.raises(ValueError, match='betta'):
        inference_model(dict(settings, preference=dict(betta=1), checkpoint=NOWHERE))


def test_a_quantised_language_model_is_for_gpus(micro_checkpoint):
    with pytest.raises(InputError, match='llm_quantisation=nf4: is for GPUs, and the model goes to cpu'):
        Sa2VARunModel(str(micro_checkpoint), RECIPE, llm_quantisation='nf4')


@pytest.mark.parametrize('parts', [dict(llm='nf4'), dict(vision='int8'), dict(llm='int8', vision='nf4')])
def test_the_matrices_of_the_named_parts_and_nothing_else_are_quantised(micro_checkpoint, monkeypatch, parts):
    def mark(layer, weight, kind):
        new = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        new.weight, new.bias, new.kind = torch.nn.Parameter(weight), layer.bias, kind
        return new

    monkeypatch.setitem(sys.modules, 'bitsandbytes', sys)
    monkeypatch.setattr('sa2va_dpo.models.quantised.quantised_linear', mark)
    place = quantiser(parts, micro_checkpoint, 'cuda')
    mllm = load_checkpoint(micro_checkpoint, place=place).mllm
    for part, module in (('llm', mllm.language_model), ('vision', mllm.vision_model)):
        kinds = {getattr(layer, 'kind', None) for layer in module.modules() if isinstance(layer, torch.nn.Linear)}
        assert kinds == {parts.get(part)}
        assert getattr(module, 'is_loaded_in_4bit', False) == (parts.get(part) == 'nf4')
        assert getattr(module, 'is_loaded_in_8bit', False) == (parts.get(part) == 'int8')
    assert not any(hasattr(layer, 'kind') for layer in mllm.mlp1.modules())


def test_without_bitsandbytes_the_extra_is_named(micro_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes.*sa2va-dpo\[quantised\]"):
        quantiser(dict(llm='int8'), micro_checkpoint, 'cuda')
