"""Which checkpoint is whole, which best file the history names, what goes aside."""
import hashlib
import json

import pytest
import torch

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.checkpointing import ExactCheckpointHook
from sa2va_dpo.engine.run_folder import damage, newest_whole, select, set_aside


def save(path, seed=0):
    torch.manual_seed(seed)
    torch.save(dict(state_dict=dict(a=torch.rand(1000))), path)
    return path


def history(folder, *entries, name='best_dice_iter_{}.pth'):
    """``entries``: (iter, dice, whether it was a new best)."""
    written = []
    for step, dice, best in entries:
        entry = dict(iter=step, dice=dice)
        if best:
            file = save(folder / name.format(step), step)
            entry.update(checkpoint=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        written.append(entry)
    (folder / 'val_history.json').write_text(json.dumps(written))


def test_the_best_is_what_the_history_names_not_the_last_name(tmp_path):
    history(tmp_path, (0, .5, False), (8, .7, True), (10, .6, False))
    save(tmp_path / 'best_dice_iter_9.pth')
    chosen = select(tmp_path)
    assert (chosen.checkpoint, chosen.best, chosen.start) == (tmp_path / 'best_dice_iter_8.pth', .7, .5)


def test_nothing_is_chosen_that_does_not_beat_the_start(tmp_path):
    history(tmp_path, (0, .7, False), (2, .7, True))
    assert select(tmp_path).checkpoint is None
    history(tmp_path, (0, .7, False))
    assert select(tmp_path) == type(select(tmp_path))(None, None, .7)
    history(tmp_path, (0, .7, False), (2, None, False))
    assert select(tmp_path).best is None
    history(tmp_path, (2, .1, True))  # a run whose start was not validated
    assert select(tmp_path).checkpoint is not None and select(tmp_path).start is None


def test_a_best_file_that_is_another_or_missing_is_named(tmp_path):
    history(tmp_path, (0, .5, False), (2, .7, True))
    save(tmp_path / 'best_dice_iter_2.pth', 99)
    with pytest.raises(
        InputError, match='best_dice_iter_2.pth: is not what was written at iteration 2.*resume the training'
    ):
        select(tmp_path)
    (tmp_path / 'best_dice_iter_2.pth').unlink()
    with pytest.raises(InputError, match='best_dice_iter_2.pth: missing'):
        select(tmp_path)


@pytest.mark.parametrize('spoil, words', [
    (lambda content: content[:len(content) // 2], 'is not whole'), (lambda content: b'', 'is not whole'),
    (lambda content: content[:800] + bytes([content[800] ^ 1]) + content[801:], 'is damaged|is not whole')])
def test_the_newest_whole_checkpoint_is_used_and_the_broken_one_named(tmp_path, spoil, words):
    for step in (2, 4, 10):
        save(tmp_path / f'iter_{step}.pth', step)
    assert newest_whole(tmp_path) == (tmp_path / 'iter_10.pth', [])
    path = tmp_path / 'iter_10.pth'
    path.write_bytes(spoil(path.read_bytes()))
    found, lines = newest_whole(tmp_path)
    assert found == tmp_path / 'iter_4.pth' and len(lines) == 1
    import re
    assert re.search(f'iter_10.pth: ({words})', lines[0])
    (tmp_path / 'last_checkpoint').write_text('')  # what it says is not asked
    assert newest_whole(tmp_path)[0] == tmp_path / 'iter_4.pth'


def test_a_deepspeed_directory_is_whole_when_all_its_files_are(tmp_path):
    folder = tmp_path / 'iter_2.pth'
    folder.mkdir()
    assert damage(folder) == 'holds no tensors'
    save(folder / 'mp_rank_00_model_states.pt')
    assert damage(folder) is None
    (folder / 'bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt').write_bytes(b'half')
    assert 'optim_states.pt' in damage(folder) and newest_whole(tmp_path)[0] is None


def test_a_new_start_moves_everything_of_another_run_aside_and_loses_nothing(tmp_path):
    history(tmp_path, (0, .5, False), (2, .7, True))
    for name in ('iter_2.pth', 'iter_4.pth'):
        save(tmp_path / name)
    (tmp_path / '.iter_6.pth.part').write_bytes(b'half')
    (tmp_path / 'config.py').touch()
    [line] = set_aside(tmp_path, 0, None)
    [aside] = tmp_path.glob('earlier_*')
    assert {p.name for p in aside.iterdir()} == {'iter_2.pth', 'iter_4.pth', 'best_dice_iter_2.pth', 'val_history.json'}
    assert {p.name for p in tmp_path.iterdir()} == {aside.name, 'config.py'} and 'iter_4.pth' in line
    assert set_aside(tmp_path, 0, None) == []


def test_a_resume_moves_later_steps_and_other_best_files_aside(tmp_path):
    for name in ('iter_2.pth', 'iter_4.pth', 'best_dice_iter_2.pth', 'best_dice_iter_4.pth'):
        save(tmp_path / name)
    set_aside(tmp_path, 2, 'best_dice_iter_2.pth')
    assert {p.name for p in tmp_path.glob('*.pth')} == {'iter_2.pth', 'best_dice_iter_2.pth'}


@pytest.mark.parametrize('settings, words', [
    (dict(by_epoch=True), 'by_epoch'), (dict(out_dir='x'), 'out_dir'), (dict(save_best='auto'), 'save_best'),
    (dict(save_best=['dice', 'iou']), 'save_best'), (dict(published_keys=['a']), 'published_keys')])
def test_settings_that_are_not_supported_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ExactCheckpointHook(interval=2, **settings)
