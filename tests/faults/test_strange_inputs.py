"""Whatever is in a file or a setting: it works, or it ends in one line. Never a traceback, never for long, never in
memory that the file does not have."""
import copy
import json
import resource
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.common.json_text import parse_json
from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.annotations import read_pairs, read_segs
from sa2va_dpo.datasets.coco import read_coco
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.checkpoint.store import read_safetensors_header
from sa2va_dpo.preferences.config import GenerateConfig

from .harness import LONG, TALLY

pytestmark = pytest.mark.integration
LIMIT_S, LIMIT_MIB = 30.0, 1024


def examples(short, long):
    return settings(max_examples=long if LONG else short, deadline=None, derandomize=not LONG, database=None,
                    suppress_health_check=list(HealthCheck))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3),
    st.sampled_from([10 ** 9, -10 ** 9, 2 ** 63, 10 ** 60, 0.5, -1e-9, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.sampled_from(['', ' ', '../x', '/etc/passwd', 'a\x00b', 'x' * 300, '\ud800', 'ä.png', 'cuda:99', '1e400']))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_leaves=6)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
              st.text(st.characters(exclude_categories=['Cs']), max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
        st.text(st.characters(exclude_categories=['Cs']), max_size=4), inner, max_size=3)), max_leaves=6)


def one_line_or_fine(call):
    """Runs it; anything but success or an InputError of one line is raised or asserted."""
    TALLY.done['malformed inputs'] += 1
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        call()
    except InputError as error:
        line = ' '.join(str(error).split())
        assert 10 < len(line) < 3000, line
        line.encode('utf-8')
    except BaseException:
        TALLY.bad['tracebacks'] += 1
        raise
    assert time.monotonic() - begun < LIMIT_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < LIMIT_MIB


def dump(path, value):
    path.write_text(json.dumps(value), encoding='utf-8')
    return path


def places(value, path=()):
    """Every place in nested dicts and lists."""
    yield path
    below_here = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in below_here:
        yield from places(below, (*path, key))


def changed(value, place, new):
    value = copy.deepcopy(value)
    if not place:
        return new
    node = value
    for key in place[:-1]:
        node = node[key]
    if new is KeyError:
        del node[place[-1]]
    else:
        node[place[-1]] = new
    return value


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('strange')
    for name in ('a', 'b', 'c'):
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(root / f'{name}.png')
    return root


PAIR = dict(image='a.png', chosen_mask='b.png', rejected_mask='c.png', chosen_iou=0.9, rejected_iou=0.5, iou_gap=0.4,
            prompt='<image>Please.', gt_mask='b.png', judge='x', chosen_score=2, rejected_score=1, reviewed='accept')
SEG = dict(image='a.png', mask='b.png', prompt='<image>Please.', field_of_view='c.png')


@examples(60, 600)
@given(data=st.data())
def test_annotations(root, data):
    entry, reader = data.draw(st.sampled_from([(PAIR, read_pairs), (SEG, read_segs)]))
    content = changed([entry], data.draw(st.sampled_from(list(places([entry])))), data.draw(VALUES))
    one_line_or_fine(lambda: reader(dump(root / 'x.json', content), root))


COCO = dict(images=[dict(id=1, file_name='a.png', height=8, width=8)], categories=[dict(id=1, name='v')], annotations=[
    dict(image_id=1, category_id=1, segmentation=[[1, 1, 5, 1, 5, 5]]),
    dict(image_id=1, category_id=1, segmentation=dict(size=[8, 8], counts=[10, 20, 34]))])


@examples(60, 600)
@given(data=st.data())
def test_coco(root, data):
    content = changed(COCO, data.draw(st.sampled_from(list(places(COCO)))), data.draw(VALUES))
    one_line_or_fine(lambda: read_coco(dump(root / 'coco.json', content), ('v',)))


@examples(60, 600)
@given(st.one_of(st.binary(max_size=60), st.integers(1, 100000).map(lambda n: b'[' * n),
                 st.integers(1, 5000).map(lambda n: b'1' * n), JSON_VALUES.map(lambda v: json.dumps(v).encode()[:-1])))
def test_json(root, content):
    (root / 'x.json').write_bytes(content)
    one_line_or_fine(lambda: read_json(root / 'x.json'))


def test_json_that_is_fine_is_read():
    assert parse_json('{"a": [1, 2.5, "ä", null]}') == dict(a=[1, 2.5, 'ä', None])


HEADER = {'__metadata__': {'format': 'pt'}, 'a': dict(dtype='F32', shape=[2, 2], data_offsets=[0, 16]),
          'b': dict(dtype='I64', shape=[1], data_offsets=[16, 24])}


@examples(80, 800)
@given(data=st.data())
def test_safetensors_headers(root, data):
    content = changed(HEADER, data.draw(st.sampled_from(list(places(HEADER)))), data.draw(VALUES))
    raw = json.dumps(content).encode()
    length = data.draw(st.one_of(st.just(len(raw)), st.integers(0, 2 ** 64 - 1)))
    path = root / 'x.safetensors'
    path.write_bytes(struct.pack('<Q', length) + raw + b'\0' * data.draw(st.integers(0, 24)))
    one_line_or_fine(lambda: read_safetensors_header(path))


class Copy:
    """A checkpoint directory of links in which one file is changed at a time."""

    def __init__(self, source, folder):
        self.source, self.folder = source, folder
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).symlink_to(path)

    def json(self, name):
        return json.loads((self.source / name).read_text())

    def put(self, name, content):
        text = json.dumps(content)
        (self.folder / name).unlink()
        (self.folder / name).write_text(text)

    def restore(self, name):
        (self.folder / name).unlink()
        (self.folder / name).symlink_to(self.source / name)


@pytest.fixture(scope='module')
def checkpoint(micro_checkpoint, tmp_path_factory):
    return Copy(micro_checkpoint, tmp_path_factory.mktemp('changed') / 'checkpoint')


def try_checkpoint(checkpoint, name, content):
    checkpoint.put(name, content)
    try:
        one_line_or_fine(lambda: load_checkpoint(checkpoint.folder, device='meta'))
        one_line_or_fine(lambda: Sa2VAPreprocessor.from_pretrained(checkpoint.folder))
    finally:
        checkpoint.restore(name)


@pytest.mark.parametrize('name', ['config.json', 'sam2_dims.json', 'tokenizer_config.json', 'tokenizer.json'])
@examples(25, 150)
@given(data=st.data())
def test_checkpoint_files(checkpoint, name, data):
    content = checkpoint.json(name)
    spots = [place for place in places(content) if 0 < len(place) < 3]
    try_checkpoint(checkpoint, name, changed(content, data.draw(st.sampled_from(spots)),
                                             data.draw(st.one_of(VALUES, st.just(KeyError)))))


@pytest.mark.parametrize('size', [10 ** 6, 10 ** 9, 10 ** 30, 1e300, -1, 0, 0.5, True, None, 'x', [1], {}])
def test_absurd_sizes(checkpoint, size):
    """Every size of the configuration, before memory is asked for it."""
    for name in ('config.json', 'sam2_dims.json'):
        content = checkpoint.json(name)
        for place in places(content):
            value = content
            for key in place:
                value = value[key]
            chosen = LONG or zlib.crc32(str((place, size)).encode()) % 3 == 0
            if isinstance(value, int) and not isinstance(value, bool) and chosen:
                try_checkpoint(checkpoint, name, changed(content, place, size))


def test_a_width_of_a_thousand_million_is_named(checkpoint):
    for part in ('llm_config', 'vision_config'):
        checkpoint.put('config.json', changed(checkpoint.json('config.json'), (part, 'hidden_size'), 10 ** 9))
        with pytest.raises(InputError, match=f'{part}: hidden_size is 1000000000, the limit is'):
            load_checkpoint(checkpoint.folder)
        checkpoint.put('config.json', changed(checkpoint.json('config.json'), (part, 'num_hidden_layers'), 900))
        with pytest.raises(InputError, match='layers, the weights have'):
            load_checkpoint(checkpoint.folder)
        checkpoint.restore('config.json')


def test_long_prompts(micro_checkpoint):
    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    begun = time.monotonic()
    for prompt in ('x' * 10 ** 6, 'vessel ' * 200_000):
        with pytest.raises(InputError, match='characters, the limit is 20000'):
            pre(np.zeros((8, 8, 3), np.uint8), prompt)
    assert time.monotonic() - begun < 2
    pre.context = 50
    with pytest.raises(InputError, match='tokens with the image, the model reads 50'):
        pre(np.zeros((8, 8, 3), np.uint8), 'vessel ' * 60)


def setting_paths(cfg):
    return ['.'.join(map(str, place)) for place in places(cfg) if place and place[0] not in (
        'custom_imports', 'default_scope') and '_scope_' not in place and len(place) < 5]


@pytest.fixture(scope='module')
def config_paths(run_config):
    return setting_paths(read_config(str(run_config)).to_dict())


@examples(60, 600)
@given(data=st.data())
def test_settings(run_config, config_paths, data):
    path = data.draw(st.sampled_from(config_paths))
    text = data.draw(st.sampled_from(['-1', '0', '1e9', '1e400', 'nan', 'None', 'True', 'x', '[]', '[1,x]', '(3,)',
                                      '0.5', '-0.1', '9' * 30, '', '[[[[1]]]]', "{'a':1}"]))
    one_line_or_fine(lambda: read_config(str(run_config), [f'{path}={text}']))


GENERATING = dict(mode='generate', images_dir='i', gt_dir='g', output_dir='o', model_path='m')


@examples(60, 600)
@given(name=st.sampled_from(sorted(GenerateConfig.__dataclass_fields__)), value=SCALARS)
def test_generator_settings(name, value):
    one_line_or_fine(lambda: GenerateConfig(**{**GENERATING, name: value}))


@examples(30, 200)
@given(st.one_of(st.text(max_size=10), st.sampled_from(['cuda:99', 'cuda:-1', 'gpu', 'cpu:7', 'meta', 'mps'])))
def test_devices(text):
    one_line_or_fine(lambda: pick_device(text))


def test_what_is_fine_works(micro_checkpoint):
    assert isinstance(load_checkpoint(micro_checkpoint, device='meta'), torch.nn.Module)
