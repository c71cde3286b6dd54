"""What a run leaves in TensorBoard's tab HPARAMS."""
import pytest

from sa2va_dpo.engine.hparams import final_figures, hyper_parameters

HISTORY = [dict(iter=0, dice=0.5, cldice=0.4), dict(iter=10, dice=0.7, cldice=0.6), dict(iter=20, dice=None),
           {'iter': 30, 'dice': 0.65, 'cldice': None, 'pairs/accuracy': 0.9}]


def test_best_and_last_are_of_training_steps():
    figures = final_figures(HISTORY, 30, 0.25)
    assert figures == pytest.approx({
        'final/best_dice': 0.7, 'final/best_step': 10, 'final/best_cldice': 0.6, 'final/last_dice': 0.65,
        'final/gain': 0.2, 'final/last_pair_accuracy': 0.9, 'final/start_dice': 0.5, 'final/loss': 0.25,
        'final/step': 30})
    assert next(iter(figures)) == 'final/best_dice'


@pytest.mark.parametrize('history, expected', [
    ([], {'final/step': 7.0}), (HISTORY[:1], {'final/start_dice': 0.5, 'final/step': 7.0})])
def test_without_validation(history, expected):
    assert final_figures(history, 7) == expected


def test_numbers_are_numbers_and_what_differs_is_there(repo_root, tmp_path):
    from sa2va_dpo.engine.config import read_config, save

    named = repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py'
    save(read_config(str(named), ['lr=0.5', 'train_dataloader.num_workers=3', 'log_interval=3',
                                  'default_hooks.validation_images.count=0']), tmp_path / 'config.py')
    found = hyper_parameters(tmp_path / 'config.py', str(named))
    assert found['lr'] == 0.5 and found['train_dataloader.num_workers'] == 3 and isinstance(found['seed'], int)
    assert found['model.type'] == 'Sa2VADPOModel'
    assert not [name for name in found if 'hooks' in name or 'log_interval' in name or 'visualizer' in name]
    assert 'train_dataloader.num_workers' not in hyper_parameters(tmp_path / 'config.py', str(tmp_path / 'moved.py'))
    assert hyper_parameters(tmp_path / 'none.py', None) == {}
