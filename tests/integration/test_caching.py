"""Runs with caches train what runs without them train; bad wishes end before anything is computed."""
import json
import shutil

import pytest

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

FROZEN_LLM = ['model.trainable.llm=frozen']
FROZEN_ALL = [*FROZEN_LLM, 'model.trainable.sam2_encoder=frozen', 'model.trainable.sam2_neck=frozen']
# As in test_training.py: AdamW divides tiny gradients by their own size, which amplifies rounding.
ROUNDING = 2e-3


def train(run_config, work_dir, cache, *options):
    assert train_main([str(run_config), '--work-dir', str(work_dir), '--cfg-options', *(
        ['cache=None'] if cache is None else [f'cache.dir={cache}']), *options]) == 0
    [log] = work_dir.glob('*/*.log')
    return log.read_text()


def assert_same_run(first, second):
    a, b = read_trained_tensors(first / 'iter_4.pth'), read_trained_tensors(second / 'iter_4.pth')
    assert a.keys() == b.keys() and a
    for name in a:
        assert (a[name].float() - b[name].float()).abs().max() < ROUNDING, name
    histories = [json.loads((path / 'val_history.json').read_text()) for path in (first, second)]
    for one, other in zip(*histories, strict=True):
        # The name of the best file is the same, its hash follows every rounding.
        one, other = ({name: value for name, value in entry.items() if name != 'sha256'} for entry in (one, other))
        assert one.pop('checkpoint', None) == other.pop('checkpoint', None)
        assert one == pytest.approx(other, abs=5e-3, rel=1e-2)


@pytest.mark.parametrize('options, kinds', [
    ([], 'vision_tokens, reference_low_res'),
    (FROZEN_LLM, 'seg_states, reference_low_res'),
    (FROZEN_ALL, 'seg_states, sam2_levels, reference_low_res')], ids=['llm_lora', 'llm_frozen', 'encoders_frozen'])
def test_training_with_caches_is_training_without(run_config, tmp_path, options, kinds):
    plain = train(run_config, tmp_path / 'plain', None, *options)
    assert 'cache:' not in plain
    options = [*options, f'cache.items=[{kinds.replace(" ", "")}]']
    cached = train(run_config, tmp_path / 'cached', tmp_path / 'cache', *options)
    # Four flips of six training images, three validation pairs' images and the same as validation masks' images.
    assert f'cache: {kinds} of 30 views' in cached
    assert_same_run(tmp_path / 'plain', tmp_path / 'cached')
    again = train(run_config, tmp_path / 'again', tmp_path / 'cache', *options)
    assert '30 views' in again and ' 0 computed now' in again


def test_the_saved_config_is_as_it_was_written(run_config, tmp_path):
    train(run_config, tmp_path / 'run', tmp_path / 'cache', *FROZEN_LLM, 'cache.items=[seg_states,reference_low_res]')
    text = (tmp_path / 'run/config.py').read_text()
    assert 'with_mllm' not in text and "reference='initial'" in text, 'export and test build the whole model from it'


def test_other_weights_find_no_stale_values(run_config, micro_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    items = 'cache.items=[vision_tokens,reference_low_res]'
    train(run_config, tmp_path / 'one', tmp_path / 'cache', 'train_cfg.max_iters=1', items)
    other = tmp_path / 'other'
    shutil.copytree(micro_checkpoint, other)
    [weights] = other.glob('*.safetensors')
    tensors = load_file(weights)
    name = next(name for name in tensors if 'vision_model' in name and name.endswith('weight'))
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, weights, metadata={'format': 'pt'})
    work_dir = tmp_path / 'two'
    assert train_main([str(run_config), '--work-dir', str(work_dir), '--checkpoint', str(other), '--cfg-options',
                       f'cache.dir={tmp_path / "cache"}', 'train_cfg.max_iters=1', items]) == 0
    assert '30 computed now' in next(work_dir.glob('*/*.log')).read_text()
    folders = sorted(path.name.rsplit('-', 1)[0] for path in (tmp_path / 'cache').iterdir())
    assert folders == ['reference_low_res'] * 2 + ['vision_tokens'] * 2


def test_two_processes_share_the_work(run_config, cli, tmp_path):
    done = cli(
        'tools/train.py',
        run_config,
        '--work-dir',
        tmp_path / 'run',
        '--launcher',
        'pytorch',
        '--cfg-options',
        f'cache.dir={tmp_path / "cache"}',
        'train_cfg.max_iters=1',
        'cache.items=[vision_tokens,reference_low_res]',
        processes=2,
    )
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'cache: vision_tokens, reference_low_res of 30 views' in log, done.stdout
    # Twenty-four training views, three validation pairs' images; the same three, keyed by their pixels, without a
    # reference.
    assert len(list((tmp_path / 'cache').glob('reference_low_res-*/*/*.safetensors'))) == 27
    assert len(list((tmp_path / 'cache').glob('vision_tokens-*/*/*.safetensors'))) == 30


def test_the_bound_leaves_out_the_largest_kind(run_config, tmp_path):
    log = train(
        run_config, tmp_path / 'run', tmp_path / 'cache', 'cache.max_gib=0.0005', 'train_cfg.max_iters=24', *FROZEN_ALL
    )
    assert 'cache: sam2_levels needs' in log and 'left out' in log
    assert 'cache: seg_states, reference_low_res of 30 views' in log


def test_auto_caches_what_is_visited_often_enough(run_config, tmp_path):
    # Two images a step; 30 views have to be computed.
    short = train(run_config, tmp_path / 'short', tmp_path / 'cache', 'train_cfg.max_iters=4')
    assert 'cache: off, 30 views would be computed for 8 visits' in short and not list(
        (tmp_path / 'cache').glob('*/*/*')
    )
    train(run_config, tmp_path / 'long', tmp_path / 'cache', 'train_cfg.max_iters=24')
    assert len(list((tmp_path / 'cache').glob('vision_tokens-*/*/*.safetensors'))) == 30
    short = train(run_config, tmp_path / 'again', tmp_path / 'cache', 'train_cfg.max_iters=2')
    assert 'cache: vision_tokens, reference_low_res of 30 views' in short, 'what is there already costs nothing'


def test_lazily_filled_caches_train_the_same_and_hold_what_was_visited(run_config, tmp_path):
    train(run_config, tmp_path / 'plain', None)
    log = train(run_config, tmp_path / 'lazy', tmp_path / 'cache', 'cache.lazy=True')
    assert '30 to be computed when they are first visited' in log
    assert_same_run(tmp_path / 'plain', tmp_path / 'lazy')
    # Eight visits of twenty-four training views; the validation pairs' images need both, the validation masks' tokens
    # only.
    references = len(list((tmp_path / 'cache').glob('reference_low_res-*/*/*.safetensors')))
    assert 3 < references <= 3 + 8
    assert len(list((tmp_path / 'cache').glob('vision_tokens-*/*/*.safetensors'))) == references + 3
    train(run_config, tmp_path / 'again', tmp_path / 'cache', 'cache.lazy=True')
    assert_same_run(tmp_path / 'plain', tmp_path / 'again')
    assert len(list((tmp_path / 'cache').glob('reference_low_res-*/*/*.safetensors'))) == references


@pytest.mark.parametrize('options, message', [
    (['cache.lazy=True', 'train_dataloader.num_workers=2'], 'cache.lazy: train_dataloader.num_workers is 2'),
    (['cache.items=[seg_states]'], 'cache.items: seg_states cannot be cached: it depends on llm'),
    (['cache.item=auto'], 'nothing reads cache.item: did you mean cache.items'),
    (['cache.max_gib=0'], 'cache.max_gib: 0 must be a number above 0'),
    (['cache.items=[reference_low_res]', 'cache.max_gib=0.0001'], 'raise cache.max_gib'),
    (['model.reference=stored', 'cache=None'], 'set cache=dict\\(\\) as well'),
    (['model.reference=stored', 'cache.items=[vision_tokens]'], 'needs reference_low_res among cache.items')])
def test_impossible_settings_end_in_one_line(run_config, tmp_path, options, message):
    from sa2va_dpo.common.errors import InputError

    directory = [] if 'cache=None' in options else [f'cache.dir={tmp_path / "cache"}']
    with pytest.raises(InputError, match=message):
        train_main([str(run_config), '--work-dir', str(tmp_path / 'run'), '--cfg-options', *directory, *options])
    assert not (tmp_path / 'cache').exists() or not list((tmp_path / 'cache').rglob('*.safetensors'))
