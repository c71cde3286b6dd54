"""One home a fact: files, their children, the command line and mmengine alone read the same settings."""
import copy
import json

import pytest
from mmengine.config import Config

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.config import check_settled, derive, read_config, save
from sa2va_dpo.engine.config import test_source as source_of_test
from sa2va_dpo.engine.facts import FACTS, get

NAMES = ('sa2va_dpo_vessel', 'sa2va_dpo_vessel_tiny', 'sa2va_dpo_vessel_tiny_self', 'sa2va_sft_tiny',
         'sa2va_sft_tiny_640')


@pytest.fixture(params=NAMES)
def config_path(request, repo_root):
    return str(repo_root / 'projects/sa2va/configs' / f'{request.param}.py')


@pytest.fixture()
def full(repo_root):
    return str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel.py')


@pytest.fixture()
def tiny(repo_root):
    return str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py')


@pytest.fixture()
def child(tmp_path):
    """A config of a user: (base, text) -> its path."""
    def write(base, text, name='child.py'):
        path = tmp_path / name
        path.write_text(f'_base_ = [{str(base)!r}]\n{text}\n')
        return str(path)
    return write


def test_mmengine_alone_reads_what_the_commands_read(config_path, monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    assert derive(read := read_config(config_path)) == []
    assert Config.fromfile(config_path).to_dict() == read.to_dict()


def test_the_guide_s_settings(full):
    cfg = read_config(full)
    assert (cfg.beta, cfg.label_smoothing, cfg.lr, cfg.max_epochs, cfg.min_iou_gap) == (0.1, 0.0, 5e-6, 2, 0.05)
    assert cfg.strategy.zero_optimization == dict(stage=2, offload_optimizer=dict(device='cpu'))
    assert cfg.strategy.bf16 == dict(enabled=True)
    assert (cfg.model.preference.beta, cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs) == (0.1, 5e-6, 2)
    assert cfg.train_dataloader.dataset.min_iou_gap == 0.05


def test_the_tiny_config_s_settings(tiny):
    """What the main job has been measured with."""
    cfg = read_config(tiny)
    assert cfg.model.preference == dict(
        beta=1.0, label_smoothing=0.0, reduction='balanced', weight=0.2, supervised_weight=1.0, supervised_bce=2.0,
        supervised_dice=0.5, supervised_cldice=0.5)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_iters, cfg.train_cfg.max_epochs) == (3e-4, 80, None)
    assert (cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval) == (20, 40)
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.model.score_size == cfg.train_dataloader.dataset.score_size == 320
    assert cfg.randomness.seed == 0


SHORT = {
    'beta': (0.2, ['model.preference.beta']),
    'label_smoothing': (0.1, ['model.preference.label_smoothing']),
    'lr': (1e-6, ['optim_wrapper.optimizer.lr']),
    'seed': (7, ['randomness.seed', 'train_dataloader.dataset.seed']),
    'min_iou_gap': (0.1, ['train_dataloader.dataset.min_iou_gap']),
    'max_epochs': (1, ['train_cfg.max_epochs']),
    'max_iters': (8, ['train_cfg.max_iters']),
    'batch_size': (3, ['train_dataloader.batch_size', 'strategy.train_micro_batch_size_per_gpu']),
    'score_size': (64, ['model.score_size', 'train_dataloader.dataset.score_size']),
    'log_interval': (5, ['default_hooks.logger.interval', 'log_processor.window_size']),
    'checkpoint': ('/new, with a comma/c', ['model.checkpoint'] + [
        f'{loader}_dataloader.{part}.preprocessor' for loader in ('train', 'val', 'test')
        for part in ('dataset', 'collate_fn')]),
    'data_root': ('/new data', ['train_dataloader.dataset.data_root', 'val_dataloader.dataset.source.data_root',
                                'test_dataloader.dataset.source.data_root']),
    'view': (2, [f'{loader}_dataloader.dataset.view' for loader in ('train', 'val', 'test')]),
}


def at(cfg, path):
    return get(cfg, tuple(int(part) if part.isdecimal() else part for part in path.split('.')))


@pytest.mark.parametrize('name', SHORT)
@pytest.mark.parametrize('config', ['sa2va_dpo_vessel', 'sa2va_dpo_vessel_tiny_self'])
def test_a_short_name_reaches_every_place_and_no_old_value_is_left(repo_root, config, name):
    path = str(repo_root / f'projects/sa2va/configs/{config}.py')
    value, places = SHORT[name]
    cfg = read_config(path, [f'{name}={value}'])
    old = read_config(path)
    assert cfg[name] == value
    for place in places:
        if at(old, place) is not None or name in ('max_epochs', 'max_iters'):
            # What the data set no longer takes is no place.
            assert at(cfg, place) == value, place
    if isinstance(old.get(name), str):
        assert f"'{old[name]}'" not in cfg.pretty_text


def test_every_fact_is_tested():
    assert set(SHORT) == {fact.name for fact in FACTS}


@pytest.mark.parametrize('name', SHORT)
def test_the_long_spelling_does_the_same(full, name):
    value, places = SHORT[name]
    assert read_config(full, [f'{places[0]}={value}']).to_dict() == read_config(full, [f'{name}={value}']).to_dict()


def test_parts_of_a_view_reach_every_loader(full):
    cfg = read_config(full, ['view.grid=3', 'view.context=tile'])
    for loader in ('train', 'val', 'test'):
        assert cfg[f'{loader}_dataloader'].dataset.view == dict(grid=3, context='tile')
    for option, words in (('view.grid=0', 'view: .* must be fields of a view'),
                          ('view.tiles=2', 'nothing reads view.tiles: there are blend, context, grid')):
        with pytest.raises(InputError, match=words):
            read_config(full, [option])


def test_flags_are_the_same_settings(tiny):
    cfg = read_config(tiny, [], checkpoint='/c', data_root='/d', seed=3)
    assert cfg.to_dict() == read_config(tiny, ['checkpoint=/c', 'data_root=/d', 'seed=3']).to_dict()
    assert cfg.val_dataloader.dataset.source.data_root == '/d' and cfg.randomness.seed == 3


def test_a_length_replaces_the_other_one(full, tiny):
    assert read_config(tiny, ['max_epochs=1']).train_cfg.max_iters is None
    assert read_config(full, ['train_cfg.max_iters=8']).train_cfg.max_epochs is None
    assert read_config(full, ['train_cfg.max_iters=8']).max_epochs is None


@pytest.mark.parametrize('options, flags', [
    (['beta=0.2', 'model.preference.beta=0.3'], {}),
    (['max_epochs=1', 'max_iters=8'], {}),
    (['model.score_size=64', 'train_dataloader.dataset.score_size=128'], {}),
    (['data_root=/a'], dict(data_root='/b')),
    (['seed=1', 'seed=2'], {}),
])
def test_contradictions_are_refused(full, options, flags):
    with pytest.raises(InputError, match='one of them'):
        read_config(full, options, **flags)


def test_the_same_thing_said_twice_is_no_contradiction(full):
    assert read_config(full, ['beta=0.2', 'model.preference.beta=0.2']).model.preference.beta == 0.2


@pytest.mark.parametrize('option, hint', [
    ('betta=0.2', 'did you mean beta?'),
    ('preference.beta=0.2', 'did you mean model.preference.beta?'),
    ('model.preference.betaa=0.2', 'did you mean model.preference.beta?'),
    ('model.scoresize=64', 'did you mean model.score_size?'),
    ('train_cfg.max_iter=8', 'did you mean train_cfg.max_iters?'),
    ('optim_wrapper.optimizer.learning_rate=1', 'there are '),
    ('optim_wrapper.lr=1', 'did you mean optim_wrapper.optimizer.lr?'),
    ('train_dataloader.dataset.min_gap=0.1', 'did you mean train_dataloader.dataset.min_iou_gap?'),
    ('val_dataloader.dataset.source.data_rot=x', 'did you mean val_dataloader.dataset.source.data_root?'),
    ('default_hooks.checkpoint.max_keep=1', 'did you mean default_hooks.checkpoint.max_keep_ckpts?'),
    ('model.trainable.llm.rank=4', 'nothing reads model.trainable.llm.rank'),
    ('model.trainable.sam_encoder=full', 'did you mean model.trainable.sam2_encoder?'),
    ('model.activation_checkpointing.lm=True', 'did you mean model.activation_checkpointing.llm?'),
    ('model.compile.backends=eager', 'did you mean model.compile.backend?'),
    ('rounds.counts=3', 'did you mean rounds.count?'),
    ('rounds.guard.patient=3', 'did you mean rounds.guard.patience?'),
    ('cache.directory=x', 'did you mean cache.dir?'),
    ('param_scheduler.0.stop=3', 'nothing reads param_scheduler.0.stop'),
    ('param_scheduler.7.end=3', 'is a list of 2'),
    ('custom_hooks.2.min_dop=0.1', 'did you mean custom_hooks.2.min_drop?'),
    ('randomness.sed=1', 'did you mean randomness.seed?'),
    ('strategy.zero_optimisation.stage=1', 'did you mean strategy.zero_optimization?'),
    ('strategy.gradient_clip=1', 'did you mean strategy.gradient_clipping?'),
])
def test_what_nothing_reads_is_refused_with_the_nearest_name(full, option, hint):
    with pytest.raises(InputError) as error:
        read_config(full, [option])
    assert hint in str(error.value) and option in str(error.value), str(error.value)


def test_a_fact_without_a_place_is_refused(repo_root):
    with pytest.raises(InputError, match='nothing reads beta'):
        read_config(str(repo_root / 'projects/sa2va/configs/sa2va_sft_tiny.py'), ['beta=0.2'])


@pytest.mark.parametrize(
    'option',
    [
        'rounds.count=2',
        'rounds.guard.patience=3',
        'model.trainable.llm.r=4',
        'model.dtype=bfloat16',
        'cache.dir=x',
        'deepspeed_on_cpu=True',
        'param_scheduler.0.end=3',
        'default_hooks.checkpoint.max_keep_ckpts=1',
        'custom_hooks.2.stop=True',
        'strategy.zero_optimization.stage=1',
        'strategy.gradient_accumulation_steps=2',
        'train_dataloader.dataset.brightness=0.1',
        'train_dataloader.drop_last=True',
        'val_dataloader.dataset.source.ann_file=test_annotations.json',
        'optim_wrapper.optimizer.weight_decay=0.1',
        'model.activation_checkpointing.llm=True',
        'model.activation_checkpointing=auto',
        'model.compile=True',
        'model.compile.backend=aot_eager',
        'model.preference.kl_weight=0.1',
        'randomness.deterministic=True',
        'default_hooks.timer.type=IterTimerHook',
        'env_cfg.dist_cfg.backend=gloo',
        'load_from=x',
        'train_cfg.val_interval=20',
        'train_dataloader.sampler.shuffle=False',
        'model.trainable.vision.mode=full',
    ],
)
def test_what_something_reads_is_accepted(full, option):
    key, _, text = option.partition('=')
    assert str(at(read_config(full, [option]), key)) == text


def test_the_guide_s_objective_brings_the_guide_s_values(tiny, child):
    options = ['model.preference._delete_=True', 'model.preference.type=guide']
    cfg = read_config(tiny, options)
    assert cfg.model.preference == dict(type='guide', beta=0.1, label_smoothing=0.0) and cfg.beta == 0.1
    assert read_config(tiny, [*options, 'beta=0.2']).model.preference.beta == 0.2
    path = child(tiny, "model = dict(preference=dict(_delete_=True, type='guide'))")
    assert read_config(path).to_dict() == cfg.to_dict()
    assert read_config(child(path, 'beta = 0.3', 'grandchild.py')).model.preference.beta == 0.3


# ---- children of a user --------------------------------------------------------------------------------------------
def test_a_child_s_short_name_reaches_every_place(tiny, child):
    cfg = read_config(child(tiny, "beta = 0.2\nmax_epochs = 3\ncheckpoint = '/c'\nscore_size = 64\nseed = 5"))
    assert cfg.model.preference.beta == 0.2 and cfg.train_cfg.max_epochs == 3 and cfg.train_cfg.max_iters is None
    assert cfg.model.checkpoint == cfg.val_dataloader.collate_fn.preprocessor == '/c'
    assert cfg.train_dataloader.dataset.score_size == 64 and cfg.randomness.seed == 5


def test_a_child_s_nested_setting_is_honoured_and_named(tiny, child):
    cfg = read_config(child(tiny, "model = dict(preference=dict(beta=0.3), checkpoint='/c')\noptim_wrapper = "
                                  "dict(optimizer=dict(lr=1e-2))\ntrain_cfg = dict(max_iters=4)"))
    assert (cfg.beta, cfg.lr, cfg.max_iters) == (0.3, 1e-2, 4)
    assert cfg.model.preference.beta == 0.3 and cfg.train_dataloader.dataset.preprocessor == '/c'


def test_in_a_file_the_nested_setting_wins(tiny, child):
    cfg = read_config(child(tiny, 'beta = 0.2\nmodel = dict(preference=dict(beta=0.3))'))
    assert cfg.beta == cfg.model.preference.beta == 0.3


def test_a_place_that_a_child_sets_apart_stays_apart(tiny, child):
    path = child(tiny, "val_dataloader = dict(dataset=dict(source=dict(data_root='/held out')))")
    assert read_config(path).data_root == 'work_dirs/dpo_vessel_training/pairs'
    cfg = read_config(path, ['data_root=/new'])
    assert cfg.val_dataloader.dataset.source.data_root == '/held out'
    assert cfg.train_dataloader.dataset.data_root == '/new'


@pytest.mark.parametrize('first, second', [
    ('beta = 0.2', 'model = dict(preference=dict(weight=0.5))'),
    ('model = dict(preference=dict(beta=0.2))', 'lr = 1e-3'),
    ('beta = 0.7', 'beta = 0.2'),
    ('model = dict(preference=dict(beta=0.7))', 'beta = 0.2'),
    ('beta = 0.7', 'model = dict(preference=dict(beta=0.2))'),
])
def test_grandchildren(tiny, child, first, second):
    cfg = read_config(child(child(tiny, first), second, 'grandchild.py'))
    assert cfg.beta == cfg.model.preference.beta == 0.2


def test_a_saved_config_can_be_a_base(tiny, child, tmp_path):
    save(read_config(tiny, ['beta=0.4']), tmp_path / 'config.py')
    cfg = read_config(child(tmp_path / 'config.py', 'beta = 0.2\nmax_iters = 9'))
    assert cfg.model.preference.beta == 0.2 and cfg.train_cfg.max_iters == 9


def test_changes_after_reading_are_settled_when_a_runner_is_built(tiny, child):
    """As xtuner train makes them: merged, without a word to us."""
    cfg = Config.fromfile(child(tiny, 'beta = 0.2'))
    with pytest.raises(InputError, match=r'beta=0.2, but model.preference.beta=1.0'):
        check_settled(cfg)
    cfg.merge_from_dict(dict(randomness=dict(seed=9), lr=1e-2))
    derive(cfg)
    check_settled(cfg)
    assert cfg.model.preference.beta == 0.2 and cfg.seed == 9 and cfg.optim_wrapper.optimizer.lr == 1e-2
    again = copy.deepcopy(cfg)
    assert derive(again) == [] and again.to_dict() == cfg.to_dict()


def test_a_misspelt_name_in_a_file_is_told(tiny, child):
    [line] = derive(read_config(child(tiny, 'betta = 0.2\nn = 3')))
    assert 'nothing reads betta: did you mean beta?' in line


# ---- what is saved -------------------------------------------------------------------------------------------------
def test_a_saved_config_reads_back_as_the_same_run_and_holds_nothing_else(config_path, tmp_path, child):
    cfg = read_config(child(config_path, 'helper = 3'), ['lr=1e-2'])
    cfg.launcher, cfg.resume, cfg.load_from = 'pytorch', True, 'iter_1.pth'
    save(cfg, tmp_path / 'config.py')
    saved = read_config(str(tmp_path / 'config.py'))
    left_out = ('helper', 'launcher', 'resume', 'load_from')
    assert saved.to_dict() == {k: v for k, v in cfg.to_dict().items() if k not in left_out}
    assert [path.name for path in tmp_path.iterdir() if 'part' in path.name] == []


def test_the_package_s_own_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = read_config('projects/sa2va/configs/sa2va_dpo_vessel_tiny.py')
    assert cfg.checkpoint == cfg.model.checkpoint and cfg.checkpoint.endswith('assets/tiny_sa2va')
    assert (tmp_path / cfg.model.checkpoint / 'config.json').is_file()


# ---- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('option, words', [
    ('beta=0', 'beta: 0 must be a number above 0'),
    ('beta=abc', "beta: 'abc' must be"),
    ('model.preference.beta=-1', 'model.preference.beta: -1 must be'),
    ('lr=nan', 'lr: nan must be'),
    ('max_iters=1.5', 'max_iters: 1.5 must be a whole number'),
    ('seed=-1', 'seed: -1 must be'),
    ('min_iou_gap=5', 'min_iou_gap: 5 must be'),
    ('batch_size=True', 'batch_size: True must be'),
    ('beta', 'must be KEY=VALUE'),
    ('beta.x=1', 'beta'),
    ('seed=(1', "seed: '(1' must be"),
    ('model.trainable.llm.targets=[a,(b]', 'model.trainable.llm.targets=[a,(b]: Imbalanced'),
    ('model.preference.loss_type=dpo', 'loss_type'),
])
def test_bad_values_name_the_setting(full, option, words):
    with pytest.raises(InputError) as error:
        read_config(full, [option])
    assert words in str(error.value)


@pytest.mark.parametrize('content', [
    'model = dict(', 'raise RuntimeError("broken")', '_base_ = ["./missing.py"]', 'beta = 1'])
def test_broken_config_is_named(tmp_path, content):
    path = tmp_path / 'broken.py'
    path.write_text(content)
    with pytest.raises(InputError, match='broken.py'):
        read_config(str(path), [])


def test_missing_config_is_named():
    with pytest.raises(InputError, match='no_such.py: no such config file'):
        read_config('no_such.py')


# ---- what lies in the data root ------------------------------------------------------------------------------------
def write_root(root, **files):
    root.mkdir()
    for name, records in files.items():
        (root / f'{name}.json').write_text(json.dumps(records))
    return str(root)


@pytest.mark.parametrize('files', [dict(), dict(val_annotations=[])])
def test_without_validation_images_the_run_is_not_validated(tiny, tmp_path, files):
    cfg = read_config(tiny, data_root=write_root(tmp_path / 'root', **files))
    [line] = derive(cfg)
    assert 'val_annotations.json: no validation images' in line and 'not validated' in line
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None and cfg.custom_hooks == []
    assert cfg.default_hooks.checkpoint.save_best is None
    # What is saved can be read again, and says nothing new.
    save(cfg, tmp_path / 'config.py')
    assert derive(read_config(str(tmp_path / 'config.py'))) == []


def test_with_validation_images_nothing_is_switched_off(tiny, tmp_path):
    cfg = read_config(tiny, data_root=write_root(tmp_path / 'root', val_annotations=[dict(image='a')]))
    assert derive(cfg) == [] and cfg.val_dataloader and len(cfg.custom_hooks) == 3


def test_a_missing_file_that_the_user_named_stays_an_error(tiny, tmp_path):
    root = write_root(tmp_path / 'root')
    cfg = read_config(tiny, ['val_dataloader.dataset.source.ann_file=mine.json'], data_root=root)
    assert derive(cfg) == [] and cfg.val_dataloader


def test_the_test_split_is_scored_where_there_is_one(tiny, tmp_path):
    one = [dict(image='a')]
    root = write_root(tmp_path / 'both', val_annotations=one, test_annotations=one)
    dataset, line = source_of_test(read_config(tiny, data_root=root))
    assert dataset.source.ann_file == 'test_annotations.json' and 'held out' in line
    root = write_root(tmp_path / 'val', val_annotations=one, test_annotations=[])
    cfg = read_config(tiny, data_root=root)
    dataset, line = source_of_test(cfg)
    assert dataset.source.ann_file == 'val_annotations.json' and 'these images chose the checkpoint' in line
    assert cfg.test_dataloader.dataset.source.ann_file == 'test_annotations.json', 'the config is left as it was'
    with pytest.raises(InputError, match='no test images'):
        source_of_test(read_config(tiny, data_root=write_root(tmp_path / 'none')))


def test_drawn_test_images_that_validation_used_are_called_so(repo_root):
    dataset, line = source_of_test(read_config(str(repo_root / 'projects/sa2va/configs/sa2va_sft_tiny.py')))
    assert dataset.source.type == 'DrawnVesselDataset' and 'it chose the checkpoint' in line


def test_help_needs_no_heavy_import(repo_root):
    """tools/train.py --help must answer at once."""
    import subprocess
    import sys

    code = ('import sys; sys.argv = ["train.py", "--help"]\n'
            'from sa2va_dpo.commands.train import parse_args\n'
            'try: parse_args(["--help"])\nexcept SystemExit: pass\n'
            'assert not {"torch", "mmengine", "transformers"} & set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], cwd=repo_root, check=True, stdout=subprocess.DEVNULL)
