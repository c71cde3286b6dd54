"""The card of an export: what is known stands in it, what is not is said, and no place of the machine does."""
import json
import re
import shutil

import pytest
from mmengine.config import Config

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.checkpoint import copy_with_sam_size, copy_with_view, export_checkpoint, load_checkpoint
from sa2va_dpo.models.view_geometry import ViewGeometry
from sa2va_dpo.reporting.model_card import read_tested, run_card, untrained_card
from sa2va_dpo.reporting.tested import checkpoint_hash

SECRET = '/home/alice/Patients of Dr. Bob'
CONFIG = dict(
    model=dict(type='Sa2VADPOModel', preference=dict(beta=0.2, weight=1.0),
               trainable=dict(llm=dict(mode='lora', r=4), mask_decoder='full'), reference='initial'),
    lr=1e-4, seed=3, train_cfg=dict(max_iters=40),
    train_dataloader=dict(dataset=dict(type='DPOVesselDataset', data_root=f'{SECRET}/pairs', pairs_per_image=4)),
    val_dataloader=dict(dataset=dict(source=dict(type='FolderMasks', images_dir=f'{SECRET}/held out'))),
    rounds=dict(count=3, unlabelled=f'{SECRET}/angio', predictions=f'{SECRET}/theirs', prompt='Arteries/veins, please.',
                members=[f'{SECRET}/a', '../b/c']))


@pytest.fixture
def run(tmp_path, micro_checkpoint):
    """A run's folder: checkpoint, history, record. Gives (cfg, checkpoint)."""
    folder = tmp_path / 'alice' / 'run'
    folder.mkdir(parents=True)
    (folder / 'best_dice_iter_20.pth').write_bytes(b'tensors')
    (folder / 'val_history.json').write_text(json.dumps([
        dict(iter=0, dice=0.5, cldice=0.4), dict(iter=20, dice=0.61, cldice=0.55, checkpoint='best_dice_iter_20.pth'),
        dict(iter=40, dice=0.6)]))
    files = {f'images/patient_{index}.png': 'ab' * 16 for index in range(5)}
    (folder / 'owner.json').write_text(json.dumps(dict(kind='training', since='', identity=dict(
        config=CONFIG, checkpoint={'model.safetensors': '0123456789abcdef' * 2, 'config.json': 'ff' * 16},
        data={f'{SECRET}/pairs': files, f'{SECRET}/held out': files, f'{SECRET}/angio': files}))))
    cfg = Config(dict(json.loads(json.dumps(CONFIG)), model=dict(CONFIG['model'], checkpoint=str(micro_checkpoint))))
    return cfg, folder / 'best_dice_iter_20.pth'


def section(card, title):
    return card.split(f'\n## {title}\n')[1].split('\n## ')[0]


def test_what_is_known_is_said(run, micro_checkpoint):
    card = run_card(*run, 'exported')
    assert card.startswith('# Model card: exported\n\n**Not for clinical use.**')
    assert micro_checkpoint.name in section(card, 'Base') and '0123456789abcdef' * 2 in section(card, 'Base')
    assert 'SAM2 reads 128 x 128 pixels; it sees the whole image at once' in section(card, 'What it looks at')
    data = section(card, 'Data')
    assert 'Training: `pairs` (5 files' in data and '`held out`, 5 files' in data and 'in 3 rounds' in data
    assert '`angio`' in data
    recipe = section(card, 'Recipe')
    assert 'Taken after step 20 of 40.' in recipe and '| `model.trainable.llm.r` | `4` |' in recipe
    assert '| `lr` | `0.0001` |' in recipe and '`beta` | `0.2`' in recipe
    figures = section(card, 'Figures')
    assert 'Dice 0.6100, clDice 0.5500; the start: Dice 0.5000, clDice 0.4000' in figures
    assert 'No test figures were measured' in figures and 'Look at its masks' in section(card, 'Limits')
    assert "Predictor.from_pretrained('THIS_FOLDER')" in card and 'sa2va-dpo predict --model THIS_FOLDER' in card
    assert 'torch ' in section(card, 'Versions')


def test_no_place_of_this_machine_and_no_image_is_named(run):
    for adapter in (False, True):
        card = run_card(*run, 'exported', adapter=adapter, base=run[0].model.checkpoint)
        for word in ('alice', 'Bob', 'Patients', '/home', 'patient_', '..', str(run[1].parent.parent)):
            assert word not in card, word
        assert '`rounds.members` | `["a", "c"]`' in card and '`rounds.predictions` | `theirs`' in card
        assert 'Arteries/veins, please.' in card


def test_pairs_are_counted_where_they_are(run, pair_files):
    cfg, checkpoint = run
    record = json.loads((checkpoint.parent / 'owner.json').read_text())
    record['identity']['config']['train_dataloader']['dataset']['data_root'] = str(pair_files)
    (checkpoint.parent / 'owner.json').write_text(json.dumps(record))
    assert f'Training: 3 preference pairs of 2 images, `{pair_files.name}`.' in run_card(cfg, checkpoint, 'x')


@pytest.fixture
def pair_files(tmp_path):
    root = tmp_path / 'data root'
    root.mkdir()
    (root / 'dpo_annotations.json').write_text(json.dumps([dict(image=name) for name in 'aab']))
    return root


def test_without_a_record_the_config_speaks_and_the_card_says_so(run):
    cfg, checkpoint = run
    for name in ('owner.json', 'val_history.json'):
        (checkpoint.parent / name).unlink()
    card = run_card(cfg, checkpoint, 'x')
    assert 'The run left no record beside its checkpoint' in card and '`lr` | `0.0001`' in card
    assert 'On the validation images' not in card and 'SHA-256 of model' not in card


@pytest.mark.parametrize('content', ['', '[]', '{"kind": "job", "identity": {}}', '{}'])
def test_a_damaged_or_foreign_record_is_none(run, content):
    cfg, checkpoint = run
    (checkpoint.parent / 'owner.json').write_text(content)
    assert 'The run left no record beside its checkpoint' in run_card(cfg, checkpoint, 'x')


def test_supervised_on_drawn_vessels(run, micro_checkpoint, tmp_path):
    source = dict(type='DrawnVesselDataset', styles=dict(fundus=1.0), seed=4, length=9)
    drawn = dict(type='VesselSegDataset', source=source)
    cfg = Config(dict(model=dict(type='Sa2VASegModel', checkpoint=str(micro_checkpoint), trainable='all'), max_iters=8,
                      train_cfg=dict(max_iters=8), train_dataloader=dict(dataset=drawn), val_dataloader=None))
    card = run_card(cfg, tmp_path / 'iter_8.pth', 'x')
    assert '9 drawn vessels (fundus; seed 4), no photograph of a patient' in card and 'Validation: none.' in card
    assert 'trained on masks (supervised)' in card and 'step 8 of 8' in card


def test_an_adapter_says_that_it_is_one(run):
    card = run_card(*run, 'x', adapter=True)
    assert 'An adapter for its base' in card and '`base_checkpoint.json` says which checkpoint' in card
    assert 'base_checkpoint.json' not in run_card(*run, 'x')


@pytest.mark.parametrize('grid, words', [(1, 'the whole image at once'), (3, 'overlapping tiles (grid 3, 3 by 3)')])
def test_a_start_that_is_handed_on(micro_checkpoint, grid, words):
    card = untrained_card(micro_checkpoint, 'x', base=micro_checkpoint, why='It is the start.',
                          view=ViewGeometry.of(dict(grid=grid)))
    assert 'It is the start.' in card and 'Nothing was trained here.' in card and '## Recipe' not in card
    assert words in card


# ---- figures of a test ----------------------------------------------------------------------------------------------
def test_figures_with_a_before(run, tested_folder, results):
    cfg, checkpoint = run
    names = [f'case_{index:02d}' for index in range(12)]
    before = tested_folder(names, lambda i: 0.4, folder='before')
    after = tested_folder(names, lambda i: 0.8 + 0.01 * i, folder='after', before=str(before),
                          checkpoint_hash=checkpoint_hash(checkpoint))
    tested = read_tested(after, checkpoint)
    card = run_card(cfg, checkpoint, 'x', tested=tested)
    figures = section(card, 'Figures')
    assert 'Better on images it never saw' in figures and '12 images of `images`' in figures
    rows = re.search(r'\n\n((?:\|.*\n)+)\n', figures)[1].splitlines()  # one table, nothing between its rows
    assert rows[0] == '| metric | before | after | change | p |' and rows[1] == '| --- | --- | --- | --- | --- |'
    assert rows[2].startswith('| Dice | 0.38') and rows[2].endswith('| < 0.001 |')
    assert len({row.count('|') for row in rows}) == 1
    assert len(rows) == 2 + 10 and any('HD95, px (lower is better)' in row for row in rows)
    assert 'tested on 12 images of `images` and on no other' in section(card, 'Limits') and 'case_0' not in card


def test_figures_without_a_before_of_images_that_chose(run, tested_folder):
    cfg, checkpoint = run
    folder = tested_folder(chose=True, checkpoint_hash=checkpoint_hash(checkpoint))
    card = run_card(cfg, checkpoint, 'x', tested=read_tested(folder, checkpoint))
    assert '| metric | value |' in card and 'These images chose the checkpoint: the figures are too good.' in card
    assert 'So few images prove little.' in card


def test_a_test_of_another_checkpoint_is_refused(run, tested_folder, tmp_path):
    _, checkpoint = run
    for hashed in (None, 'ab' * 16):
        with pytest.raises(InputError, match='--test .*tested another checkpoint than .*best_dice_iter_20.pth'):
            read_tested(tested_folder(folder=f'eval_{hashed}', checkpoint_hash=hashed), checkpoint)
    with pytest.raises(InputError, match='give the --work-dir of a test'):
        read_tested(tmp_path / 'nothing', checkpoint)


@pytest.mark.parametrize('name', ['a|b`c\nd', '<script>alert(1)</script>', 'é 病例', '{{ 7 * 7 }}'])
def test_names_break_no_table(run, name):
    card = run_card(*run, name, origin=[f'Images of {name}'])
    assert card.splitlines()[0].startswith('# Model card: ') and '49' not in card.splitlines()[0]
    assert '`c' not in card.splitlines()[0] and '|b' not in card.splitlines()[0]


# ---- beside the weights ---------------------------------------------------------------------------------------------
def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_export_is_the_base_byte_for_byte_with_a_card_beside_it(micro_checkpoint, tmp_path):
    base = tmp_path / 'base'
    shutil.copytree(micro_checkpoint, base)
    (base / 'README.md').write_text('theirs'), (base / 'MODEL_CARD.md').write_text('of the base')
    (base / 'BASE_MODEL_CARD.md').write_text('of the base of the base')
    out = export_checkpoint(load_checkpoint(base), base, tmp_path / 'out', card='ours')
    kept, made = contents(micro_checkpoint), contents(out)
    assert {name: made[name] for name in kept} == kept
    assert {name: made[name] for name in set(made) - set(kept)} == {
        'MODEL_CARD.md': b'ours', 'BASE_README.md': b'theirs', 'BASE_MODEL_CARD.md': b'of the base'}
    # The next generation: its base is this one, and the first licence is still there.
    again = contents(export_checkpoint(load_checkpoint(out), out, tmp_path / 'again', card='the next'))
    assert {name: again[name] for name in kept} == kept
    assert (again['MODEL_CARD.md'], again['BASE_MODEL_CARD.md'], again['BASE_README.md']) == (
        b'the next', b'ours', b'theirs')
    # Without a card an export is the directory that it came from, as ever.
    assert contents(export_checkpoint(load_checkpoint(base), base, tmp_path / 'plain')) == contents(base)


def test_a_copy_that_looks_in_another_way_does_not_keep_the_card_as_its_own(micro_checkpoint, tmp_path):
    base = tmp_path / 'base'
    shutil.copytree(micro_checkpoint, base)
    (base / 'MODEL_CARD.md').write_text('figures at 128 px')
    for copy in (copy_with_sam_size(base, tmp_path / 'size', 192),
                 copy_with_view(base, tmp_path / 'view', ViewGeometry.of(dict(grid=2)))):
        assert not (copy / 'MODEL_CARD.md').exists()
        assert (copy / 'BASE_MODEL_CARD.md').read_text() == 'figures at 128 px'
