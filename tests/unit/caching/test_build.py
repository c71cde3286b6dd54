"""What is stored gives the logits that computing gives, for every family; fingerprints notice every change."""
import json
import threading
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_dpo.caching import fingerprint as module
from sa2va_dpo.caching.build import batch_of, compute, fill
from sa2va_dpo.caching.fingerprint import fingerprint, machine_of, weights_digest
from sa2va_dpo.caching.kinds import KINDS
from sa2va_dpo.common.tensor_store import CacheStore
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.datasets.samples import SampleMaker, View
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.trainable import set_trainable

FAMILIES = ('internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl')


def views_of(image: np.ndarray):
    return [
        View(lambda: 'picture', lambda: image, 'segment the vessel', horizontal, False) for horizontal in (False, True)
    ]


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, shared_dir):
    directory = shared_dir / 'fixtures/sa2va_parity' / request.param
    limits = {} if 'internvl' in request.param else dict(min_pixels=12000, max_pixels=40000)
    pre = Sa2VAPreprocessor.from_pretrained(directory, **limits)
    return load_checkpoint(directory), pre, np.asarray(Image.open(directory / 'image.png').convert('RGB'))


@pytest.mark.parametrize('names', [
    ['vision_tokens'], ['seg_states'], ['sam2_levels'], ['sam2_features'], ['seg_states', 'sam2_features'],
    ['vision_tokens', 'sam2_levels', 'reference_low_res']], ids='+'.join)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
def test_stored_results_give_the_logits_of_the_plain_path(family, tmp_path, names, dtype):
    model, pre, image = family
    model = model.to(dtype)
    try:
        stores = {name: CacheStore(tmp_path / name) for name in names}
        views = views_of(image)
        plain = SampleMaker(pre)
        assert fill(model, plain, [(view, tuple(names)) for view in views], stores) == 2
        cached = SampleMaker(pre, {name: str(store.directory) for name, store in stores.items()})
        with torch.no_grad():
            for view in views:
                expected = model(batch_of(plain, view, model)).low_res
                batch = batch_of(cached, view, model)
                assert ('pixel_values' in batch) == (not {'vision_tokens', 'seg_states'} & set(names))
                torch.testing.assert_close(model(batch).low_res, expected, atol=1e-3, rtol=0)
                if 'reference_low_res' in names:
                    torch.testing.assert_close(batch['reference_low_res'], expected, atol=1e-3, rtol=0)
        difference = [model(batch_of(plain, view, model)).low_res for view in views]
        assert not torch.allclose(*difference, atol=1e-2), 'the two flips are two views'
    finally:
        model.float()


def test_no_pixel_is_read_where_everything_is_stored(family, tmp_path):
    model, pre, image = family
    names = ('seg_states', 'sam2_levels', 'reference_low_res')
    stores = {name: CacheStore(tmp_path / name) for name in names}
    fill(model, SampleMaker(pre), [(view, names) for view in views_of(image)], stores)

    def unreadable():
        raise AssertionError('the image was read')

    maker = SampleMaker(pre, {name: str(store.directory) for name, store in stores.items()})
    sample = maker(View(lambda: 'picture', unreadable, 'segment the vessel', True, False))
    assert sample['original_size'] == image.shape[:2]
    batch = pre.collate([sample, sample])
    assert batch['seg_index'].tolist() == [[0, 0], [1, 0]] and batch['reference_low_res'].shape[0] == 2
    assert not {'pixel_values', 'input_ids', 'sam_pixel_values'} & batch.keys()


def test_filling_goes_on_where_it_stopped_and_processes_share_the_work(family, tmp_path):
    model, pre, image = family
    stores = {name: CacheStore(tmp_path / name) for name in ('vision_tokens', 'reference_low_res')}
    wishes = [(view, tuple(stores)) for view in views_of(image)]
    first = compute(model, batch_of(SampleMaker(pre), wishes[0][0], model), ['vision_tokens'])
    stores['vision_tokens'].write(wishes[0][0].key(), first['vision_tokens'])
    before = stores['vision_tokens'].path(wishes[0][0].key()).stat().st_mtime_ns
    # The other process has done its share, the second view, when this one looks for what is still missing.
    assert fill(model, SampleMaker(pre), wishes[1:], stores) == 1
    assert fill(model, SampleMaker(pre), wishes, stores, rank=0, world_size=2) == 1
    assert stores['vision_tokens'].path(wishes[0][0].key()).stat().st_mtime_ns == before, 'not computed twice'
    assert fill(model, SampleMaker(pre), wishes, stores) == 0


def test_a_process_that_starts_late_leaves_no_view_to_nobody(family, tmp_path):
    model, pre, image = family
    stores = {'vision_tokens': CacheStore(tmp_path / 'vision_tokens')}
    wishes = [(View(lambda i=i: str(i), lambda: image, 'segment the vessel'), tuple(stores)) for i in range(4)]
    fill(model, SampleMaker(pre), wishes[:1], stores)  # the first process is at work before the second looks
    late = threading.Thread(target=fill, args=(model, SampleMaker(pre), wishes, stores, 1, 2), daemon=True)
    late.start()
    fill(model, SampleMaker(pre), wishes[::2], stores)  # the share of the first
    late.join(30)
    assert not late.is_alive()
    assert all(view.key() in stores['vision_tokens'] for view, _ in wishes)


def test_fingerprints_belong_to_weights_precision_and_preprocessing(shared_dir):
    model = load_checkpoint(shared_dir / 'fixtures/sa2va_parity/internvl_qwen2')
    digests = {name: weights_digest(model, kind.modules) for name, kind in KINDS.items()}
    assert len(set(digests.values())) == len(KINDS)

    set_trainable(model, dict(llm=dict(mode='lora', r=2), sam2_encoder=dict(mode='lora', r=2)))
    assert {name: weights_digest(model, kind.modules) for name, kind in KINDS.items()} == digests, (
        'adapters are not the start'
    )

    with torch.no_grad():
        model.mllm.vision_model.embeddings.cls_token.view(-1)[0] += 1e-3
    changed = {name for name, kind in KINDS.items() if weights_digest(model, kind.modules) != digests[name]}
    assert changed == {'seg_states', 'vision_tokens', 'reference_low_res'}
    assert weights_digest(model.bfloat16(), ('sam2.vision_encoder.',)) != digests['sam2_levels']

    base = dict(kind='seg_states', weights='w', preprocessing='p', precision='cpu', machine='m')
    assert len({fingerprint(**{**base, name: 'other'}) for name in base} | {fingerprint(**base)}) == 6


def test_another_library_version_or_processor_is_another_machine(monkeypatch):
    here = machine_of('cpu')
    assert json.loads(here)['versions']['torch'] == version('torch') and json.loads(here)['processor']
    try:
        for name, change in (('version', lambda name: 'another'), ('_LIBRARIES', ()),
                             ('platform', SimpleNamespace(machine=lambda: 'another'))):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, change)
                machine_of.cache_clear()
                assert machine_of('cpu') != here, name
    finally:
        machine_of.cache_clear()
    assert machine_of('cpu') == here
