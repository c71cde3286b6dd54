"""From folders to a data root, with a policy worked out by hand."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs, read_segs
from sa2va_dpo.datasets.ground_truth import patient_of
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.datasets.seg_dataset import AnnotatedMasks
from sa2va_dpo.evaluation.counts import mask_iou
from sa2va_dpo.preferences import generate
from sa2va_dpo.preferences.generate import GenerateConfig, generate_pairs
from sa2va_dpo.preferences.miner import Miner


@pytest.fixture
def run(folders, policy, preprocessor):
    def run(images=None, overwrite=False, **changes):
        settings = dict(mode='generate', images_dir=folders.images, gt_dir=folders.gt, output_dir=folders.out,
                        model_path='given', min_iou_gap=0.02, device='cpu', val_fraction=0.0, test_fraction=0.0)
        return generate_pairs(GenerateConfig(**{**settings, **changes}), policy, preprocessor, images, overwrite)
    return run


@pytest.fixture
def disk(run, folders):
    return lambda **changes: run(
        **{**dict(mode='from_predictions', images_dir=folders.pred, model_path=None), **changes}
    )


def contents(folder):
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_pairs_are_true(run, folders):
    """Every figure in the annotations is recomputed from the files beside it."""
    report = run()
    root = Path(folders.out)
    records = read_pairs(root / 'dpo_annotations.json', root)
    assert len(records) == report['train_pairs'] > 20 and report['greedy_iou'] < report['best_candidate_iou']
    for record in records:
        gt, chosen, rejected = (
            read_mask(root / name) for name in (record.gt_mask, record.chosen_mask, record.rejected_mask)
        )
        with Image.open(root / record.chosen_mask) as image:
            assert image.mode == 'L' and image.size == Image.open(root / record.image).size
            assert set(np.unique(np.asarray(image))) <= {0, 255}
        assert record.chosen_iou == mask_iou(chosen, gt) and record.rejected_iou == mask_iou(rejected, gt)
        assert record.iou_gap == record.chosen_iou - record.rejected_iou
        assert record.iou_gap >= 0.02
        differ = chosen != rejected
        assert record.extra['disagreement_pixels'] == differ.sum()
        assert record.extra['chosen_agreement'] == pytest.approx((chosen == gt)[differ].mean(), abs=1e-6)
        assert record.prompt == '<image>Please segment the blood vessels.'
        assert record.chosen_source != record.rejected_source and 'ground_truth' not in record.chosen_source
    stem = Path(records[0].image).stem
    i, j = records[0].chosen_mask.removesuffix('.png').split('_')[-2:]
    assert records[0].chosen_mask == f'masks/{stem}_chosen_{i}_{j}.png'
    assert records[0].rejected_mask == f'masks/{stem}_rejected_{i}_{j}.png'
    assert json.loads((root / 'generation_report.json').read_text()) == report
    assert not list(root.glob('*journal*')) and not list(root.rglob('*.tmp'))


def test_masks_of_an_image_are_distinct(run, folders):
    run(num_samples=8, max_candidate_iou=0.9)
    root = Path(folders.out)
    for record in read_pairs(root / 'dpo_annotations.json', root):
        assert mask_iou(read_mask(root / record.chosen_mask), read_mask(root / record.rejected_mask)) < 0.9


def test_greedy_is_always_a_candidate(run, folders, monkeypatch):
    seen = []
    mine = Miner.mine
    monkeypatch.setattr(Miner, 'mine', lambda self, *a: seen.append(mine(self, *a)) or seen[-1])
    run(num_samples=2)
    assert all(mined.entry['candidates'][0]['source'] == 'greedy' for mined in seen)
    assert all(len(mined.entry['candidates']) == 2 for mined in seen)


def test_validation_patients_are_not_in_the_training_file(run, folders):
    run(val_fraction=0.3)
    root = Path(folders.out)
    train = {Path(r.image).stem for r in read_pairs(root / 'dpo_annotations.json', root)}
    val = {Path(r.image).stem for r in read_segs(root / 'val_annotations.json', root)}
    assert len(val) == 2 and not {patient_of(s) for s in train} & {patient_of(s) for s in val}
    assert {Path(r.image).stem for r in read_pairs(root / 'dpo_annotations_val.json', root)} <= val
    for record in read_segs(root / 'val_annotations.json', root):
        source = read_mask(Path(folders.gt) / f'{Path(record.image).stem}_mask.png')
        assert np.array_equal(read_mask(root / record.mask), source)


def test_by_default_validation_and_test_patients_are_held_out(run, disk, folders, capsys):
    """Four patients: two for training, one for each other part; the test's files are there, its pairs are not."""
    for index, make in enumerate((run, disk)):
        root = folders.root / f'default{index}'
        report = make(output_dir=str(root), val_fraction=None, test_fraction=None)
        pairs, val_pairs = (
            read_pairs(root / name, root) for name in ('dpo_annotations.json', 'dpo_annotations_val.json')
        )
        val, test = (read_segs(root / name, root) for name in ('val_annotations.json', 'test_annotations.json'))
        stems = [{Path(r.image).stem for r in records} for records in (pairs, val_pairs, val, test)]
        assert len(stems[2]) == len(stems[3]) == 2 and stems[1] <= stems[2] and not stems[2] & stems[3]
        patients = [{patient_of(stem) for stem in part} for part in (stems[0], stems[2], stems[3])]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 4
        assert not [path for path in (root / 'masks').iterdir() if any(path.name.startswith(stem) for stem in stems[3])]
        for record in test:
            assert np.array_equal(
                read_mask(root / record.mask), read_mask(Path(folders.gt) / f'{Path(record.image).stem}_mask.png')
            )
            assert (root / record.image).read_bytes() == (Path(folders.images) / Path(record.image).name).read_bytes()
        assert report['split'] == dict(train=dict(patients=2, images=4), val=dict(patients=1, images=2),
                                       test=dict(patients=1, images=2))
        assert report['images'] == 6 and not any('too few' in text for text in report['warnings'])
        said = capsys.readouterr().out
        assert said.count('2 images of 1 patients for the test (test_annotations.json, no pairs)') == 2
        assert '--val_fraction 0 --test_fraction 0' in said


def test_switched_off_nothing_is_held_out(run, folders):
    report = run()
    assert report['split']['train'] == dict(patients=4, images=8)
    assert not {'val_annotations.json', 'test_annotations.json', 'dpo_annotations_val.json'} & set(
        contents(folders.out)
    )


@pytest.mark.parametrize('fractions', [{}, dict(val_fraction=0.5)])
def test_too_few_patients_are_said_and_all_are_trained_on(run, folders, capsys, fractions):
    report = run(**{**dict(val_fraction=None, test_fraction=None, group_regex='^()'), **fractions})
    assert report['split']['train'] == dict(patients=1, images=8) and report['train_pairs'] > 20
    assert any('too few to hold out validation and test' in text for text in report['warnings'])
    assert 'too few to hold out' in capsys.readouterr().out
    assert not {'val_annotations.json', 'test_annotations.json', 'dpo_annotations_val.json'} & set(
        contents(folders.out)
    )


def test_a_copy_of_a_test_image_is_not_trained_on(run, folders):
    """Under another patient's name in both folders: it goes where its original goes."""
    for i, (image, gt) in enumerate(zip(sorted(Path(folders.images).iterdir()), sorted(Path(folders.gt).iterdir()))):
        shutil.copy(image, image.with_name(f'copy{i}{image.suffix}'))
        shutil.copy(gt, gt.with_name(f'copy{i}_mask.png'))
    report = run(val_fraction=None, test_fraction=None)
    root = Path(folders.out)
    parts = [{(root / r.image).read_bytes() for r in records} for records in (
        read_pairs(root / 'dpo_annotations.json', root), read_segs(root / 'val_annotations.json', root),
        read_segs(root / 'test_annotations.json', root))]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert report['split']['test'] == dict(patients=1, images=4)
    assert any('8 images are copies of another' in text for text in report['warnings'])


def test_fields_of_view_go_with_the_images_that_are_scored(run, folders):
    """DRIVE's own layout: mask/<stem>_mask.gif beside images/; only validation and test need it."""
    field = np.zeros((40, 56), np.uint8)
    field[1:39, 1:55] = 255
    (folders.root / 'mask').mkdir()
    for image in Path(folders.images).iterdir():
        gt = Path(folders.gt) / f'{image.stem}_mask.png'
        Image.fromarray(np.minimum(np.asarray(Image.open(gt)), field)).save(gt)
        Image.fromarray(field).save(folders.root / 'mask' / f'{image.stem}_mask.gif')
    run(val_fraction=None, test_fraction=None)
    root = Path(folders.out)
    records = [record for part in ('val', 'test') for record in read_segs(root / f'{part}_annotations.json', root)]
    assert len(records) == 4 and len(list((root / 'fov').iterdir())) == 4
    for record in records:
        assert record.field_of_view == f'fov/{Path(record.image).stem}.png'
        assert np.array_equal(read_mask(root / record.field_of_view), field > 0)
    item = AnnotatedMasks(str(root), 'test_annotations.json')[0]
    assert np.array_equal(item['field_of_view'], field > 0)


def test_same_seed_same_files_other_seed_other_pairs(run, folders, tmp_path):
    run(output_dir=str(tmp_path / 'a'), val_fraction=0.3)
    run(output_dir=str(tmp_path / 'b'), val_fraction=0.3)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    run(output_dir=str(tmp_path / 'c'), val_fraction=0.3, seed=1)
    assert contents(tmp_path / 'a')['dpo_annotations.json'] != contents(tmp_path / 'c')['dpo_annotations.json']


@pytest.mark.parametrize('stop_after', [0, 1, 4, 7])
def test_interrupted_run_ends_as_an_uninterrupted_one(run, folders, tmp_path, monkeypatch, stop_after):
    run(output_dir=str(tmp_path / 'whole'), val_fraction=0.3, test_fraction=0.2)
    mine, done = Miner.mine, []

    def failing(self, item, pixels):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(item.image.name)
        return mine(self, item, pixels)

    monkeypatch.setattr(Miner, 'mine', failing)
    with pytest.raises(KeyboardInterrupt):
        run(val_fraction=0.3, test_fraction=0.2)
    out = Path(folders.out)
    assert not (out / 'dpo_annotations.json').exists() and list(out.glob('*journal*'))
    # What a kill can leave: half a line in the journal and half a file beside the masks.
    journal = next(out.glob('*journal*'))
    journal.write_bytes(journal.read_bytes() + b'{"image": "scan')
    (out / 'masks').mkdir(exist_ok=True)
    (out / 'masks' / '.123-0123456789ab.part').write_bytes(b'half')
    before, again = list(done), []
    monkeypatch.setattr(
        Miner, 'mine', lambda self, item, pixels: again.append(item.image.name) or mine(self, item, pixels)
    )
    run(val_fraction=0.3, test_fraction=0.2)
    assert contents(out) == contents(tmp_path / 'whole')
    assert not set(before) & set(again) and len(before) + len(again) == 8


def test_a_ground_truth_corrected_between_the_runs_is_used(run, folders, tmp_path, monkeypatch):
    mine = Miner.mine
    count = []

    def failing(self, item, pixels):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return mine(self, item, pixels)

    monkeypatch.setattr(Miner, 'mine', failing)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(Miner, 'mine', mine)
    first = sorted(Path(folders.gt).iterdir())[0]
    Image.fromarray(np.roll(np.asarray(Image.open(first)), 3, 1)).save(first)
    run()
    run(output_dir=str(tmp_path / 'fresh'))
    assert contents(folders.out) == contents(tmp_path / 'fresh')


def test_a_finished_run_is_not_repeated(run, monkeypatch, capsys):
    first = run()
    monkeypatch.setattr(Miner, 'mine', None)
    assert run() == first and 'finished before' in capsys.readouterr().out


def test_other_settings_need_overwrite(run, folders):
    run()
    before = contents(folders.out)
    with pytest.raises(InputError, match='--overwrite'):
        run(seed=3)
    assert contents(folders.out) == before
    run(seed=3, overwrite=True)
    assert not contents(folders.out).items() <= before.items()


def test_an_unfinished_run_is_not_thrown_away_unasked(run, folders, monkeypatch):
    mine, done = Miner.mine, []

    def failing(self, item, pixels):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(item.image.name)
        return mine(self, item, pixels)

    monkeypatch.setattr(Miner, 'mine', failing)
    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(InputError, match='unfinished run'):
        run(seed=3)
    with pytest.raises(KeyboardInterrupt):
        done.clear()
        run(seed=3, overwrite=True)


def test_a_run_that_failed_at_its_first_image_binds_nobody(run, monkeypatch):
    mine = Miner.mine
    monkeypatch.setattr(Miner, 'mine', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(Miner, 'mine', mine)
    assert run(seed=3)['images'] == 8


def test_foreign_files_are_never_touched(run, folders, tmp_path):
    (tmp_path / 'out' / 'masks').mkdir(parents=True)
    (tmp_path / 'out' / 'masks' / 'mine.png').write_bytes(b'x')
    for overwrite in (False, True):
        with pytest.raises(InputError, match='did not make'):
            run(overwrite=overwrite)
    assert contents(folders.out) == {'masks/mine.png': b'x'}


def test_output_must_not_be_where_the_images_are(run, folders):
    before = contents(folders.root)
    with pytest.raises(InputError, match='reads from'):
        run(output_dir=str(folders.root))
    assert contents(folders.root) == before


def test_explicit_images(run, folders):
    subset = sorted(Path(folders.images).iterdir())[:3]
    report = run(images=subset)
    assert report['images'] == 3 and len(list((Path(folders.out) / 'images').iterdir())) == 3


def test_images_without_ground_truth_are_listed(run, folders, capsys):
    gone = sorted(Path(folders.gt).iterdir())[2]
    gone.unlink()
    report = run()
    (skipped,) = report['skipped_without_ground_truth']
    assert Path(skipped).stem == gone.stem.removesuffix('_mask')
    assert Path(skipped).name in capsys.readouterr().out and report['images'] == 7


def test_ground_truth_as_candidate_wins(run, folders):
    report = run(include_gt=True, pairing='BestVsEach')
    assert report['win_rates'].keys() >= {'ground_truth'} and report['win_rates']['ground_truth']['losses'] == 0
    assert report['candidates_per_image']['max'] == 6  # beside the five samples
    assert any('ground_truth wins 100%' in text for text in report['warnings'])


def test_corruption_and_morphology_and_prompts(run):
    report = run(sources=('GroundTruthCorruption', 'Morphology', 'Prompts'), num_samples=9)
    assert {'corruption', 'morphology'} <= report['win_rates'].keys()


@pytest.mark.parametrize('judge', [('Dice',), ('ClDice',), ('BettiError=1', 'IoU=3'), ('BoundaryDistance',)])
def test_other_judges_are_recorded_beside_iou(run, folders, judge):
    run(judge=judge)
    root = Path(folders.out)
    records = read_pairs(root / 'dpo_annotations.json', root)
    for record in records:
        assert record.extra['judge'] and record.preference_gap >= 0.02
        assert record.chosen_iou == pytest.approx(mask_iou(read_mask(root / record.chosen_mask),
                                                           read_mask(root / record.gt_mask)), abs=1e-6)


@pytest.mark.parametrize('judge', ['Agreement', 'PredictedIoU', 'ExpectedIoU'])
def test_without_ground_truth(run, folders, judge):
    report = run(gt_dir=None, judge=(judge,), val_fraction=0.3, test_fraction=None, min_iou_gap=0.0)
    root = Path(folders.out)
    records = read_pairs(root / 'dpo_annotations.json', root)
    assert all(r.extra['iou_estimated'] and r.gt_mask is None for r in records)
    assert report['chosen_agrees_with_ground_truth'] is None and not (root / 'val_annotations.json').exists()
    assert any('no ground truth' in text for text in report['warnings'])


def test_without_ground_truth_nothing_is_held_out_unless_asked(run, folders):
    report = run(gt_dir=None, judge=('Agreement',), val_fraction=None, test_fraction=None, min_iou_gap=0.0)
    assert report['split']['train']['images'] == 8 and any(
        'no patient is held out' in text for text in report['warnings']
    )
    assert not {'val_annotations.json', 'test_annotations.json', 'dpo_annotations_val.json'} & set(
        contents(folders.out)
    )


def test_linked_images(run, folders):
    run(link=True)
    for image in Path(folders.images).iterdir():
        assert os.path.samefile(image, Path(folders.out) / 'images' / image.name)
    before = contents(folders.images)
    run(link=True, seed=4, overwrite=True)
    assert contents(folders.images) == before


def test_cap_per_image(run):
    assert run(max_pairs_per_image=2)['pairs_per_image']['max'] == 2


def test_no_pair_leaves_nothing(run, folders):
    with pytest.raises(InputError, match='no training pair'):
        run(min_iou_gap=0.99)
    assert contents(folders.out) == {}
    run()


# --- predictions on disk -------------------------------------------------------------------------------------------


def test_from_predictions(disk, folders):
    report = disk()
    root = Path(folders.out)
    records = read_pairs(root / 'dpo_annotations.json', root)
    assert len(records) == 8 and report['train_images'] == 8
    assert {(r.chosen_source, r.rejected_source) for r in records} == {('prediction:good', 'prediction:bad')}


def test_missing_predictions_are_listed(disk, folders):
    sorted(Path(folders.pred, 'bad').iterdir())[-1].unlink()
    report = disk()
    assert report['missing_predictions'] == ['bad/scan_03R'] and report['images_without_pairs'] == ['scan_03R.png']


def test_sizes_and_probability_maps(disk, folders):
    """A grey map of half the size and a binary mask of twice the size describe the image's own pixels."""
    maps, big = Path(folders.pred, 'map'), Path(folders.pred, 'big')
    for path in (maps, big):
        path.mkdir()
    for gt_path in Path(folders.gt).iterdir():
        gt = read_mask(gt_path)
        stem = gt_path.stem.removesuffix('_mask')
        grey = Image.fromarray((40 + 170 * gt).astype(np.uint8)).resize((gt.shape[1] // 2, gt.shape[0] // 2), Image.BOX)
        grey.save(maps / f'{stem}.png')
        Image.fromarray(gt.astype(np.uint8) * 255).resize((gt.shape[1] * 2, gt.shape[0] * 2), Image.NEAREST).save(
            big / f'{stem}.png'
        )
    report = disk(pairing='BestVsWorst')
    wins = report['win_rates']
    assert wins['prediction:big']['wins'] == 8 and report['best_candidate_iou'] == 1.0
    root = Path(folders.out)
    shutil.rmtree(Path(folders.pred, 'big'))
    disk(output_dir=str(folders.root / 'second'))
    sources = {}
    for record in read_pairs(folders.root / 'second' / 'dpo_annotations.json', folders.root / 'second'):
        sources.setdefault(record.chosen_source, []).append(record.chosen_iou)
    assert np.mean(sources['prediction:map']) > 0.8
    assert root.is_dir()


def test_original_images_beside_the_ground_truth_or_named(disk, folders):
    os.rename(folders.images, folders.root / 'photographs')
    with pytest.raises(InputError, match='--source_images_dir'):
        disk()
    assert disk(source_images_dir=str(folders.root / 'photographs'))['images'] == 8


def test_predictions_without_ground_truth(disk, folders):
    """Two similar methods outvote the third; the same file under another name would be a duplicate, not a vote."""
    shutil.copytree(Path(folders.pred, 'good'), Path(folders.pred, 'similar'))
    for path in Path(folders.pred, 'similar').iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[:4] = 0
        Image.fromarray(mask).save(path)
    report = disk(gt_dir=None, source_images_dir=folders.images, judge=('Agreement',))
    assert report['train_pairs'] >= 8 and report['win_rates']['prediction:bad']['wins'] == 0


# --- malformed input: one line, nothing written --------------------------------------------------------------------


def _write(path, content=b''):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def _first(folder):
    return sorted(Path(folder).iterdir())[0]


def _resize(path):
    Image.open(path).resize((10, 10)).save(path)


MALFORMED = {
    'no images folder': (lambda f: shutil.rmtree(f.images), {}, 'images: no such folder'),
    'empty images folder': (lambda f: [p.unlink() for p in Path(f.images).iterdir()], {}, 'holds no image'),
    'images folder is a file': (lambda f: (shutil.rmtree(f.images), _write(f.images)), {}, 'no such folder'),
    'no gt folder': (lambda f: shutil.rmtree(f.gt), {}, 'gt: no such folder'),
    'empty gt folder': (lambda f: [p.unlink() for p in Path(f.gt).iterdir()], {}, 'holds no image'),
    'gt fits nothing': (
        lambda f: [p.rename(p.with_name('x' + p.name)) for p in list(Path(f.gt).iterdir())],
        {},
        'no ground truth fits',
    ),
    'gt of another size': (lambda f: _resize(_first(f.gt)), {}, 'must have the size'),
    'corrupt image': (lambda f: _first(f.images).write_bytes(b'\x89PNG\r\n\x1a\nxx'), {}, 'cannot be read'),
    'empty gt file': (lambda f: _first(f.gt).write_bytes(b''), {}, 'cannot be read'),
    'two gt for one image': (
        lambda f: shutil.copy(Path(f.gt, 'scan_02L_mask.png'), Path(f.gt, 'scan_02L.png')),
        {},
        'same image',
    ),
    'two images of one stem': (
        lambda f: shutil.copy(Path(f.images, 'scan_02L.tif'), Path(f.images, 'scan_02L.bmp')),
        {},
        'same stem',
    ),
    'group_regex is no expression': (
        lambda f: None,
        dict(group_regex='(', val_fraction=0.5),
        'not a regular expression',
    ),
    'group_regex does not match': (lambda f: None, dict(group_regex=r'^case', val_fraction=0.5), 'does not match'),
    'output is a file': (lambda f: _write(f.out), {}, 'is a file'),
    'output holds a foreign annotation file': (
        lambda f: _write(Path(f.out, 'dpo_annotations.json'), b'[]'),
        {},
        'did not make',
    ),
    'output holds a broken report': (lambda f: _write(Path(f.out, 'generation_report.json'), b'{'), {}, '--overwrite'),
    'output under a file': (lambda f: _write(Path(f.out)), dict(output_dir='below'), 'cannot be written'),
    'no predictions folder': (lambda f: shutil.rmtree(f.pred), dict(mode='from_predictions'), 'no such folder'),
    'one method only': (
        lambda f: shutil.rmtree(Path(f.pred, 'bad')),
        dict(mode='from_predictions'),
        '1 method folders',
    ),
    'predictions without sub-folders': (
        lambda f: [shutil.rmtree(p) for p in Path(f.pred).iterdir()],
        dict(mode='from_predictions'),
        '0 method folders',
    ),
    'empty method folder': (
        lambda f: [p.unlink() for p in Path(f.pred, 'bad').iterdir()],
        dict(mode='from_predictions'),
        'bad: holds no image',
    ),
    'two predictions of one image': (
        lambda f: shutil.copy(Path(f.pred, 'good', 'scan_02L.png'), Path(f.pred, 'good', 'scan_02L_gt.png')),
        dict(mode='from_predictions'),
        'same image',
    ),
    'no original images': (lambda f: shutil.rmtree(f.images), dict(mode='from_predictions'), '--source_images_dir'),
}


@pytest.mark.parametrize('name', MALFORMED)
def test_malformed(run, disk, folders, name):
    damage, changes, message = MALFORMED[name]
    if 'output_dir' in changes:
        changes = dict(changes, output_dir=str(Path(folders.out) / changes['output_dir']))
    damage(folders)
    before = contents(folders.root)
    with pytest.raises(InputError) as error:
        (disk if changes.get('mode') == 'from_predictions' else run)(**changes)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert contents(folders.root) == before


@pytest.mark.parametrize('broken', ['prediction', 'image', 'gt'])
def test_truncated_files_end_the_run_with_their_name(disk, folders, broken):
    """Only decoding finds these. The annotation file must not appear; after a repair the run goes on."""
    path = _first({'prediction': Path(folders.pred, 'good'), 'image': folders.images, 'gt': folders.gt}[broken])
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) * 2 // 3])
    with pytest.raises(InputError, match='cannot be read') as error:
        disk()
    assert path.name in str(error.value)
    assert not (Path(folders.out) / 'dpo_annotations.json').exists()
    path.write_bytes(whole)
    assert disk()['train_pairs'] == 8


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(run, folders, monkeypatch, tmp_path):
    def full(path, mask):
        raise OSError(28, 'No space left on device')

    whole = generate.write_mask
    monkeypatch.setattr(generate, 'write_mask', full)
    with pytest.raises(InputError, match='No space left'):
        run()
    assert not (Path(folders.out) / 'dpo_annotations.json').exists()
    monkeypatch.setattr(generate, 'write_mask', whole)
    run()
    run(output_dir=str(tmp_path / 'fresh'))
    assert contents(folders.out) == contents(tmp_path / 'fresh')


def test_image_folder_reported_in_from_predictions(folders):
    config = GenerateConfig(
        mode='from_predictions', images_dir='p', gt_dir=str(Path(folders.root, 'gt')), output_dir='o'
    )
    assert generate._image_folder(config) == Path(folders.images)


def test_a_second_generator_in_the_same_folder_is_refused_while_the_first_writes(run, folders, monkeypatch):
    import subprocess
    import sys

    mine, messages = Miner.mine, []

    def mining(self, item, pixels):
        if not messages:
            # Another process, in the middle of this run.
            other = subprocess.run(
                [sys.executable, '-c', f'from sa2va_dpo.common.ownership import lock; lock({folders.out!r}, "pairs")'],
                capture_output=True,
                text=True,
            )
            messages.append(other.stderr.splitlines()[-1])
        return mine(self, item, pixels)

    monkeypatch.setattr(Miner, 'mine', mining)
    run()
    assert 'is being written by process' in messages[0] and '(pairs: ' in messages[0]
    run()  # and afterwards the folder is free


def test_what_differs_is_named(run, folders):
    run(seed=0)
    with pytest.raises(InputError, match=r'settings.seed: was 0, is 1'):
        run(seed=1)
