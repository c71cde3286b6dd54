"""Validation pairs, the frozen reference and the alarm on the real runner."""
import json
import math
import shutil

import numpy as np
import pytest
import torch

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset, dpo_collate
from sa2va_dpo.engine.pair_validation import PairValidationHook
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel

pytestmark = pytest.mark.integration

TRAINABLE = dict(sam2_neck='full', projector='full', mask_decoder='full')


@pytest.fixture(scope='module')
def model(micro_checkpoint):
    torch.manual_seed(0)
    model = Sa2VADPOModel(str(micro_checkpoint), TRAINABLE,
                          dict(reduction='balanced', beta=1.0, weight=0.2, supervised_weight=1.0),
                          score_size=64)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def hook_of(model, pair_root) -> PairValidationHook:
    hook = PairValidationHook()
    hook.dataset = DPOVesselDataset(str(pair_root), model.checkpoint, ann_file=hook.ann_file, score_size=64,
                                    pairs_per_image=None)
    return hook


def test_pair_metrics_by_hand(model, pair_root):
    """Every pair on its own, with numpy, against the hook's one forward pass an image."""
    hook = hook_of(model, pair_root)
    margins, losses, shares, drifts = [], [], [], []
    model.eval()
    for index in range(len(hook.dataset)):
        data = dpo_collate([hook.dataset[index]], model.checkpoint)
        with torch.no_grad():
            z = model.score_logits(model.policy(data['batch']))[0].double().numpy()
            reference = model.score_logits(model.reference(model.policy, data['batch']))[0].double().numpy()
        for chosen, rejected in zip(data['chosen'].numpy() / 255.0, data['rejected'].numpy() / 255.0):
            s, change = chosen - rejected, z - reference
            plus, minus = np.maximum(s, 0), np.maximum(-s, 0)
            # A dilated mask lacks nothing of the chosen one: the average is then over the other region alone.
            regions = [(w, sign) for w, sign in ((plus, 1), (minus, -1)) if w.sum()]
            margin = np.mean([sign * (w * change).sum() / w.sum() for w, sign in regions])
            margins.append(margin)
            losses.append(0.2 * math.log1p(math.exp(-margin)))
            shares.append(np.abs(s).mean())
            drifts.append(((1 - np.abs(s)) * np.abs(change)).sum() / (1 - np.abs(s)).sum())
    measured = hook.measure(model, at_start=False)
    assert len(margins) == 6 and np.std(margins) > 0
    assert measured['margin'] == pytest.approx(np.mean(margins), rel=1e-3, abs=1e-5)
    assert measured['dpo_loss'] == pytest.approx(np.mean(losses), rel=1e-4)
    assert measured['accuracy'] == pytest.approx(np.mean(np.array(margins) > 0))
    assert measured['disagreement'] == pytest.approx(np.mean(shares), rel=1e-4)
    assert measured['drift_outside'] == pytest.approx(np.mean(drifts), rel=1e-3)


def test_measuring_leaves_mode_and_gradients_alone(model, pair_root):
    model.train()
    hook_of(model, pair_root).measure(model, at_start=False)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_history_and_tensorboard_hold_pairs_and_reference(run_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_main([str(run_config), '--work-dir', str(tmp_path), '--cfg-options', 'train_cfg.max_iters=2'])
    start, later = json.loads((tmp_path / 'val_history.json').read_text())
    # Policy and reference are one before the first step.
    assert start['pairs/dpo_loss'] == pytest.approx(0.2 * math.log(2), abs=1e-5)
    assert start['pairs/accuracy'] == 0 and start['pairs/drift_outside'] == 0
    assert later['pairs/drift_outside'] > 0 and later['pairs/margin'] != 0
    for name in ('dice', 'iou', 'cldice', 'betti0_error', 'betti1_error'):
        assert start[f'reference/{name}'] == later[f'reference/{name}'] == start[name]
    [vis_data] = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(vis_data)).Reload()
    assert {'val/pairs/accuracy', 'val/pairs/dpo_loss', 'val/pairs/saturation', 'reference/dice',
            'val/alarm'} <= set(events.Tags()['scalars'])


def test_a_run_that_was_given_trained_tensors_does_not_start_at_its_reference(run_config, tmp_path):
    lr = 'optim_wrapper.optimizer.lr=1e-2'
    train_main([str(run_config), '--work-dir', str(tmp_path / 'a'), '--cfg-options', 'train_cfg.max_iters=2', lr])
    train_main([str(run_config), '--work-dir', str(tmp_path / 'b'), '--cfg-options', 'train_cfg.max_iters=2',
                f'load_from={tmp_path / "a" / "iter_2.pth"}'])
    first, second = (json.loads((tmp_path / name / 'val_history.json').read_text()) for name in 'ab')
    start = second[0]
    assert start['iter'] == 0 and start['pairs/drift_outside'] > 0 and start['pairs/margin'] != 0
    assert start['pairs/margin'] == pytest.approx(first[1]['pairs/margin'], rel=1e-3)
    # The reference's masks were not measured in this run: what is not known is not reported.
    assert not any(name.startswith('reference/') for entry in second for name in entry)


def test_without_validation_pairs_one_line_says_so(run_config, pair_root, tmp_path, caplog):
    root = tmp_path / 'pairs'
    shutil.copytree(pair_root, root)
    (root / 'dpo_annotations_val.json').unlink()
    train_main([str(run_config), '--work-dir', str(tmp_path / 'run'), '--data-root', str(root), '--cfg-options',
                'train_cfg.max_iters=2'])
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count('no validation pairs, so pairs/* is not reported') == 1
    assert not any(
        name.startswith('pairs/') for name in json.loads((tmp_path / 'run' / 'val_history.json').read_text())[-1]
    )


def train_tiny(run_config, repo_root, work_dir, preference: str, *options: str, data_root=None) -> list[dict]:
    """The bundled checkpoint on the small pair set; the validations."""
    tiny = repo_root / 'projects/sa2va/assets/tiny_sa2va'
    config = work_dir / 'config_of_test.py'
    config.write_text(f'_base_ = [{str(run_config)!r}]\nmodel = dict(score_size=128, preference={preference})\n'
                      'train_dataloader = dict(dataset=dict(score_size=128))\n'
                      'train_cfg = dict(max_iters=6, val_interval=3)\n')
    where = ['--data-root', str(data_root)] if data_root else []
    train_main([str(config), '--work-dir', str(work_dir), '--checkpoint', str(tiny), *where, '--cfg-options', *options])
    return json.loads((work_dir / 'val_history.json').read_text())


def test_the_alarm_fires_where_the_guide_as_written_collapses(run_config, repo_root, pair_root, tmp_path):
    # Rejected is always the thicker mask, so the objective has no reason to stop before the mask is empty.
    root = tmp_path / 'pairs'
    shutil.copytree(pair_root, root)
    for name in ('dpo_annotations.json', 'dpo_annotations_val.json'):
        pairs = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps([pair for pair in pairs if 'rejected_0' in pair['rejected_mask']]))
    history = train_tiny(run_config, repo_root, tmp_path, "dict(_delete_=True, type='guide')",
                         'optim_wrapper.optimizer.lr=1e-3', data_root=root)
    assert history[-1]['dice'] < history[0]['dice'] - 0.02
    assert history[-1]['pairs/accuracy'] >= 0.5, 'preferences look healthy'
    alarms = json.loads((tmp_path / 'alarms.json').read_text())
    assert alarms and alarms[-1]['pairs'] == 'validation'
    [log] = tmp_path.glob('*/*.log')
    assert 'ALARM at iteration' in log.read_text()


def test_no_alarm_in_a_healthy_run(run_config, repo_root, tmp_path):
    history = train_tiny(run_config, repo_root, tmp_path, 'dict()', 'optim_wrapper.optimizer.lr=1e-4')
    assert history[-1]['dice'] > history[0]['dice'] - 0.02
    assert not (tmp_path / 'alarms.json').exists()
