"""A training run on record: what it is, who may go on with it, and the links that show it elsewhere."""
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from sa2va_dpo.common import ownership
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.run_record import annotation_hashes, claim_training, publish, training_identity, withdraw


@pytest.fixture
def run(tmp_path):
    """A config on small files; ``run()`` claims its folder as training does and lets go of it again."""
    root, base = tmp_path / 'pairs', tmp_path / 'base'
    for folder in ('images', 'masks', 'gt'):
        (root / folder).mkdir(parents=True)
        for name in 'ab':
            Image.fromarray(np.full((4, 4), ord(name), np.uint8)).save(root / folder / f'{name}.png')
    record = dict(image='images/a.png', chosen_mask='gt/a.png', rejected_mask='masks/a.png')
    (root / 'dpo_annotations.json').write_text(json.dumps([record]))
    (root / 'val_annotations.json').write_text(json.dumps([dict(image='images/b.png', mask='gt/b.png', prompt='p')]))
    base.mkdir()
    (base / 'model.safetensors').write_bytes(b'weights')

    def claim(overwrite=False, resume=None, **changes):
        cfg = Config(
            dict(
                model=dict(type='Sa2VADPOModel', checkpoint=str(base)),
                lr=1e-4,
                train_cfg=dict(max_iters=4),
                work_dir=str(tmp_path / 'w'),
                train_dataloader=dict(dataset=dict(type='DPOVesselDataset', data_root=str(root))),
                val_dataloader=dict(dataset=dict(source=dict(type='AnnotatedMasks', data_root=str(root)))),
            )
        )
        cfg.merge_from_dict(changes)
        if resume:
            cfg.resume, cfg.load_from = True, None if resume == 'auto' else str(resume)
        claim.cfg = cfg
        lines = claim_training(cfg, overwrite)
        for held in list(ownership._held.values()):
            held.release()
        return lines

    claim.root, claim.base, claim.work_dir = root, base, tmp_path / 'w'
    return claim


def test_every_file_that_decides_is_hashed(run):
    run()
    identity = training_identity(run.cfg)
    assert set(identity['data'][str(run.root)]) == {
        'dpo_annotations.json',
        'val_annotations.json',
        'images/a.png',
        'gt/a.png',
        'masks/a.png',
        'images/b.png',
        'gt/b.png',
    }
    assert set(identity['checkpoint']) == {'model.safetensors'} and 'work_dir' not in identity['config']
    assert annotation_hashes(run.root, ['no.json']) == {}


def test_the_same_run_may_start_anew_resume_and_go_on_for_longer(run):
    assert run() == []
    assert 'this very run was begun here before and starts anew' in run()[0]
    assert 'no whole checkpoint to resume from' in run(resume='auto')[0] and not run.cfg.resume
    torch.save({}, run.work_dir / 'iter_4.pth')
    (run.work_dir / 'iter_8.pth').write_bytes(b'half')
    [line] = run(resume='auto')
    assert 'iter_8.pth: is not whole' in line and run.cfg.load_from == str(run.work_dir / 'iter_4.pth')
    assert run(resume='auto', **{'train_cfg.max_iters': 8}) == [line]


@pytest.mark.parametrize('file, words', [
    ('pairs/dpo_annotations.json', 'dpo_annotations.json: its content has changed'),
    ('pairs/masks/a.png', 'masks/a.png: its content has changed'),
    ('pairs/gt/b.png', 'gt/b.png: its content has changed'),
    ('base/model.safetensors', 'checkpoint.model.safetensors: its content has changed')])
@pytest.mark.parametrize('resume', [None, 'auto'])
def test_changed_files_are_refused(run, file, words, resume):
    run()
    path = run.root.parent / file
    path.write_bytes(path.read_bytes() + b' ')
    with pytest.raises(InputError, match=words):
        run(resume=resume)


def test_other_settings_are_refused_and_overwrite_says_what_goes(run):
    run()
    (run.work_dir / 'iter_2.pth').touch()
    with pytest.raises(InputError, match='--work-dir .*config.lr: was 0.0001, is 0.001.*--overwrite'):
        run(lr=1e-3)
    [line] = run(lr=1e-3, overwrite=True)
    assert 'iter_2.pth' in line and not (run.work_dir / 'iter_2.pth').exists()


def test_checkpoints_without_a_record_are_refused(run):
    run.work_dir.mkdir()
    (run.work_dir / 'last_checkpoint').touch()
    with pytest.raises(InputError, match='holds last_checkpoint, which no record'):
        run(resume='auto')


def test_a_named_checkpoint_of_another_run_is_refused(run, tmp_path):
    run()
    run.work_dir.rename(tmp_path / 'first')
    assert run(resume=tmp_path / 'first/iter_2.pth') == []
    with pytest.raises(InputError, match='--resume .*first/iter_2.pth: is of another run: config.lr'):
        run(lr=1e-3, overwrite=True, resume=tmp_path / 'first/iter_2.pth')


def test_published_files_are_links_that_training_never_writes_through(run):
    training = run.work_dir / 'training'
    training.mkdir(parents=True)
    for name in ('iter_2.pth', 'best_dice_iter_2.pth', 'config.py', 'last_checkpoint'):
        (training / name).write_text("the job's")
    (run.work_dir / 'config.py').write_text('mine')
    assert publish(run.work_dir, training) == ['config.py']
    assert (run.work_dir / 'iter_2.pth').read_text() == "the job's" and (
        run.work_dir / 'config.py'
    ).read_text() == 'mine'
    assert not (run.work_dir / 'last_checkpoint').exists(), 'nobody may resume it from here'
    (run.work_dir / 'config.py').unlink()
    (run.work_dir / 'error.log').touch()
    assert publish(run.work_dir, training) == []
    run()
    assert sorted(path.name for path in run.work_dir.iterdir()) == ['error.log', ownership.RECORD, 'training']
    assert (training / 'config.py').read_text() == "the job's"
    withdraw(run.work_dir / 'nowhere')


def test_what_rounds_read_is_hashed_down_to_the_images_of_a_list(run, tmp_path):
    """Folders that vote, and images that a list names wherever they lie."""
    votes, more = tmp_path / 'votes', tmp_path / 'more'
    for folder in (votes, more):
        folder.mkdir()
        Image.new('L', (4, 4), 7).save(folder / 'x.png')
    (tmp_path / 'list.txt').write_text('more/x.png\n')

    def claim():
        return run(rounds=dict(unlabelled=str(tmp_path / 'list.txt'), judge='committee', members=[str(votes)],
                               labelled=dict(images=str(run.root / 'images'), gt=str(run.root / 'gt'))))

    claim()
    data = training_identity(run.cfg)['data']
    assert set(data[str(tmp_path / 'list.txt')]) == {'', str(more / 'x.png')}
    assert set(data[str(votes)]) == {'x.png'} and set(data[str(run.root / 'gt')]) == {'a.png', 'b.png'}
    torch.save({}, run.work_dir / 'iter_2.pth')
    for changed in (votes / 'x.png', more / 'x.png'):
        before = changed.read_bytes()
        Image.new('L', (4, 4), 8).save(changed)
        with pytest.raises(InputError, match='x.png: its content has changed'):
            claim()
        changed.write_bytes(before)
    claim()
