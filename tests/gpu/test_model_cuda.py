"""The model on a GPU: same masks as on the CPU, half precision, straight loading, generation."""
import copy

import pytest
import torch
from PIL import Image

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.inference.predictor import Predictor
from sa2va_dpo.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu


@pytest.fixture(scope='module', params=['internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl'])
def parts(request, shared_dir):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    directory = shared_dir / 'fixtures/sa2va_parity' / request.param
    limits = {} if 'internvl' in request.param else dict(min_pixels=12000, max_pixels=40000)
    pre = Sa2VAPreprocessor.from_pretrained(directory, **limits)
    batch = pre.collate([pre(Image.open(directory / 'image.png'), 'Please segment blood vessel in this image.')] * 2)
    with torch.no_grad():
        expected = load_checkpoint(directory)(batch)
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return directory, pre, on_gpu, expected


def test_float32_equals_cpu(parts):
    directory, _, batch, expected = parts
    model = load_checkpoint(directory, device='cuda')
    assert all(t.is_cuda for t in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        output = model(batch)
    torch.testing.assert_close(output.low_res.cpu(), expected.low_res, atol=1e-3, rtol=0)
    torch.testing.assert_close(output.iou_pred.cpu(), expected.iou_pred, atol=1e-4, rtol=0)


@pytest.mark.parametrize('cast', ['weights', 'autocast'])
def test_bfloat16_trains(parts, cast):
    directory, _, batch, expected = parts
    model = load_checkpoint(directory, dtype=torch.bfloat16 if cast == 'weights' else torch.float32, device='cuda',
                            requires_grad=True).train()
    model.gradient_checkpointing_enable()
    with torch.autocast('cuda', torch.bfloat16, enabled=cast == 'autocast'):
        output = model(batch)
    output.hypotheses.square().mean().backward()
    unused = set(model.unused_by_masks())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None or not parameter.grad.any()) if name in unused else \
            (parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())), name
    nearest = min((h - expected.low_res[0]).abs().mean() for h in output.hypotheses[0].detach().cpu())
    assert nearest < 0.35 * expected.low_res.std()


def test_deepcopy_and_cast_on_the_gpu(parts):
    model = copy.deepcopy(load_checkpoint(parts[0], device='cuda')).bfloat16()
    assert all(b.dtype == torch.float32 and b.is_cuda for b in model.buffers())


def test_free_generation(parts):
    directory, pre, *_ = parts
    predictor = Predictor(load_checkpoint(directory, device='cuda'), pre)
    result = predictor.predict(Image.open(directory / 'image.png'), 'Please segment blood vessel in this image.',
                               free_generation=True)
    assert result.masks.shape[1:] == (160, 200)
