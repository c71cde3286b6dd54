"""tools/test.py and tools/export_hf.py on what a run leaves: a file, a DeepSpeed directory, an exported checkpoint."""
import csv
import json

import pytest
import torch

from sa2va_dpo.commands.export import main as export_main
from sa2va_dpo.commands.test import main as score_main
from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint, load_trained_tensors
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def run_dir(run_config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('run')
    train_main([str(run_config), '--work-dir', str(work_dir), '--cfg-options', 'train_cfg.max_iters=2'])
    return work_dir


def test_scores_of_a_file(run_dir, tmp_path):
    assert score_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), '--work-dir', str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['n_images'] == 3
    for name in ('dice', 'iou', 'precision', 'recall', 'specificity', 'cldice'):
        value = metrics['metrics'][name]
        assert value['ci_low'] <= value['mean'] <= value['ci_high']
    rows = list(csv.DictReader(open(tmp_path / 'per_image.csv', newline='')))
    assert [row['image_id'] for row in rows] == ['case_06', 'case_07', 'case_08']
    mean = sum(float(row['dice']) for row in rows) / 3
    assert mean == pytest.approx(metrics['metrics']['dice']['mean'], abs=1e-6)
    assert len(list((tmp_path / 'overlays').glob('*.png'))) == 3


def test_scores_agree_with_the_validation_of_the_run(run_dir, tmp_path):
    """One code path: what training validated is what testing finds."""
    score_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), '--work-dir', str(tmp_path), '--no-overlays'])
    tested = json.loads((tmp_path / 'metrics.json').read_text())['metrics']['dice']['mean']
    history = json.loads((run_dir / 'val_history.json').read_text())
    assert tested == pytest.approx(history[-1]['dice'], abs=1e-6)
    score_main([str(run_dir / 'config.py'), '--work-dir', str(tmp_path / 'start'), '--no-overlays'])
    start = json.loads((tmp_path / 'start' / 'metrics.json').read_text())['metrics']['dice']['mean']
    assert start == pytest.approx(history[0]['dice'], abs=1e-6)


def test_own_folders_in_place_of_the_config_s_data(run_dir, make_folders, tmp_path):
    images, gt = make_folders(tmp_path / 'mine (1)', [20, 21])
    score_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), '--work-dir', str(tmp_path / 'out'),
               '--images', str(images), '--gt', str(gt), '--no-overlays'])
    assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['n_images'] == 2


def test_deepspeed_directory(cli, run_config, tmp_path):
    cli('tools/train.py', run_config, '--work-dir', tmp_path / 'run', '--cfg-options', 'deepspeed_on_cpu=True',
        'train_cfg.max_iters=2')
    cli('tools/test.py', run_config, tmp_path / 'run' / 'iter_2.pth', '--work-dir', tmp_path / 'eval', '--no-overlays')
    history = json.loads((tmp_path / 'run' / 'val_history.json').read_text())
    tested = json.loads((tmp_path / 'eval' / 'metrics.json').read_text())['metrics']['dice']['mean']
    assert tested == pytest.approx(history[-1]['dice'], abs=0.02), (
        'bf16 in training, float32 master weights in the test'
    )


def test_exported_model_answers_as_the_trained_one(run_dir, run_config, micro_checkpoint, draw_case, tmp_path):
    from sa2va_dpo.engine.config import read_config

    output = tmp_path / 'exported'
    assert export_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {'MODEL_CARD.md', *(p.name for p in micro_checkpoint.iterdir())}
    cfg = read_config(str(run_config), [])
    trained = Sa2VASegModel(str(micro_checkpoint), cfg.model.trainable)
    load_trained_tensors(trained, run_dir / 'iter_2.pth')
    trained.eval()
    pre = Sa2VAPreprocessor.from_pretrained(output)
    batch = pre.collate([pre(draw_case(30)[0], 'Please segment the blood vessels.')])
    with torch.no_grad():
        expected = trained.policy(batch).low_res
        start = load_checkpoint(micro_checkpoint)(batch).low_res
        exported = load_checkpoint(output)(batch).low_res
    assert (expected - start).abs().max() > 1e-3, 'training must have moved the logits'
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-4)


def test_adapter_export(run_dir, tmp_path):
    export_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), str(tmp_path / 'adapter'), '--adapter'])
    assert 'An adapter for its base' in (tmp_path / 'adapter/MODEL_CARD.md').read_text()
    # Merged later: the bytes of the direct merged export, but for what it says about itself.
    export_main([str(tmp_path / 'adapter'), str(tmp_path / 'merged')])
    export_main([str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth'), str(tmp_path / 'direct')])
    merged, direct = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
                      for name in ('merged', 'direct'))
    assert merged.pop('ADAPTER_MODEL_CARD.md') == (tmp_path / 'adapter/MODEL_CARD.md').read_bytes()
    assert b'The adapter `adapter` merged into its base.' in merged.pop('MODEL_CARD.md')
    direct.pop('MODEL_CARD.md')
    assert merged == direct


def test_the_card_of_an_export_has_the_figures_of_its_test(cli, run_dir, draw_case, tmp_path):
    from sa2va_dpo.inference.predictor import Predictor

    config, checkpoint = str(run_dir / 'config.py'), str(run_dir / 'iter_2.pth')
    score_main([config, '--work-dir', str(tmp_path / 'before'), '--no-overlays'])
    score_main([config, checkpoint, '--work-dir', str(tmp_path / 'after'), '--before', str(tmp_path / 'before'),
                '--no-overlays'])
    export_main([config, checkpoint, str(tmp_path / 'out'), '--test', str(tmp_path / 'after')])
    card = (tmp_path / 'out/MODEL_CARD.md').read_text(encoding='utf-8')
    tested = json.loads((tmp_path / 'after/metrics.json').read_text())['metrics']['dice']
    assert f'{tested["mean"]:.4f} ({tested["ci_low"]:.4f} to {tested["ci_high"]:.4f})' in card
    assert '| metric | before | after | change | p |' in card and '12 preference pairs of 6 images' in card
    assert str(run_dir.parent) not in card and str(tmp_path) not in card and 'case_0' not in card
    assert len(Predictor.from_pretrained(tmp_path / 'out').predict(draw_case(1)[0], 'Vessels?').masks) == 1
    wrong = cli('tools/export_hf.py', config, checkpoint, tmp_path / 'no', '--test', tmp_path / 'before', code=2)
    assert 'tested another checkpoint' in wrong.stderr and not (tmp_path / 'no').exists()


def test_a_checkpoint_of_another_config_is_refused(cli, run_dir, run_config, tmp_path):
    for options, words in ((['model.trainable.mask_decoder=frozen'], 'no place in this config'),
                           (['model.trainable.sam2_neck=frozen'], 'no place in this config'),
                           (['model.trainable.prompt_encoder=full'], 'missing')):
        run = cli(
            'tools/test.py',
            run_config,
            run_dir / 'iter_2.pth',
            '--work-dir',
            tmp_path,
            '--cfg-options',
            *options,
            code=2,
        )
        assert words in run.stderr and run.stderr.count('error: ') == 1


def test_code_in_a_checkpoint_is_never_run(cli, run_config, tmp_path):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/owned',)

    torch.save(dict(state_dict=Evil()), tmp_path / 'evil.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Evil()))
    for name in ('evil.pth', 'plain.pth'):
        run = cli('tools/test.py', run_config, tmp_path / name, '--work-dir', tmp_path / 'out', code=2)
        assert name in run.stderr and 'Traceback' not in run.stderr
    assert not (tmp_path / 'owned').exists()


def test_export_never_overwrites(cli, run_dir, tmp_path):
    run = cli('tools/export_hf.py', run_dir / 'config.py', run_dir / 'iter_2.pth', tmp_path, code=2)
    assert 'exists already' in run.stderr
