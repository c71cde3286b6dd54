"""Rounds on the real runner: mined anew, killed and resumed in every phase, shared by processes, taken back."""
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sa2va_dpo.common.errors import WAITING
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

FAULTS = '''
"""Kills the process (SIGKILL) where the environment says: <phase>@<iteration>, mined:<images>@<iteration>."""
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from sa2va_dpo.common.journal import Journal

WHERE, _, WHEN = os.environ.get('KILL_AT', '').partition('@')

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register_module()
class KillHook(Hook):
    priority = 'LOWEST'

    def round_phase(self, runner, name):
        if name == WHERE and runner.iter == int(WHEN):
            kill()

    def between_steps(self, runner):
        if WHERE.startswith('mined:') and runner.iter == int(WHEN):
            kill()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if WHERE == 'step' and batch_idx + 1 == int(WHEN):
            kill()
        KillHook.iteration = batch_idx + 1

KillHook.iteration = 0
appended, append = [], Journal.append

def append_and_die(self, entry):
    append(self, entry)
    if WHERE.startswith('mined:') and KillHook.iteration == int(WHEN):
        appended.append(entry['image'])
        if len(appended) == int(WHERE.split(':')[1]):
            kill()

Journal.append = append_and_die
'''


@pytest.fixture(scope='module')
def unlabelled(tmp_path_factory, make_folders):
    """Five images without masks to the run; masks beside them for those who pick in an expert's place."""
    return make_folders(tmp_path_factory.mktemp('unlabelled'), range(20, 25))


@pytest.fixture(scope='module')
def rounds_config(tmp_path_factory, run_config, pair_root, unlabelled):
    """Two rounds of three steps; the pair set's six labelled images and five unlabelled ones."""
    root = tmp_path_factory.mktemp('rounds')
    shutil.copytree(pair_root, root / 'data')
    pairs = json.loads((root / 'data/dpo_annotations.json').read_text())
    for pair in pairs:
        pair['gt_mask'] = f'gt/{Path(pair["image"]).name}'
    (root / 'data/dpo_annotations.json').write_text(json.dumps(pairs))
    (root / 'kill_hook.py').write_text(FAULTS)
    path = root / 'micro_rounds.py'
    path.write_text(f'''
_base_ = [{str(run_config)!r}]
custom_imports = dict(imports=['sa2va_dpo.plugins', 'kill_hook'])
train_dataloader = dict(dataset=dict(data_root={str(root / 'data')!r}))
model = dict(trainable=dict(llm=dict(dropout=0.1)))
train_cfg = dict(max_iters=6, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='PairValidationHook'), dict(type='StartValidationHook'), dict(type='KillHook')]
rounds = dict(count=2, judge='iou', num_samples=4,
              unlabelled={str(unlabelled[0])!r}, unlabelled_gt={str(unlabelled[1])!r},
              min_iou_gap=0.0)
''')
    return path


@pytest.fixture()
def train(rounds_config, repo_root):
    """Train in a process of its own, which may be killed."""

    def run(work_dir, *more, options=(), kill_at='', code=0, processes=1):
        launcher = (
            ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
        )
        cache = [] if any(option.startswith('cache') for option in options) else ['cache=None']
        command = [sys.executable, *launcher, 'tools/train.py', str(rounds_config), '--work-dir', str(work_dir), *more,
                   *(['--launcher', 'pytorch'] if processes > 1 else []), '--cfg-options', *cache, *options]
        done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600, env={
            **os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'KILL_AT': kill_at,
            'PYTHONPATH': os.pathsep.join([str(rounds_config.parent), os.environ.get('PYTHONPATH', '')])})
        if code is not None:
            assert done.returncode == code, f'{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
        return done

    return run


def rounds_of(work_dir) -> list[dict]:
    return json.loads((work_dir / 'rounds.json').read_text())['rounds']


def without_times(rounds: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != 'seconds'} for record in rounds]


def assert_same_end(one, other):
    a, b = read_trained_tensors(one / 'iter_6.pth'), read_trained_tensors(other / 'iter_6.pth')
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    assert without_times(rounds_of(one)) == without_times(rounds_of(other))
    # Means of distances come out of scipy with a last digit that depends on memory alignment; the masks are the same.
    for a, b in zip(*(json.loads((d / 'val_history.json').read_text()) for d in (one, other)), strict=True):
        assert a.pop('sha256', None) is None or b.pop('sha256')
        assert a.pop('checkpoint', None) == b.pop('checkpoint', None)
        assert a == pytest.approx(b, rel=1e-6)


@pytest.fixture(scope='module')
def whole(rounds_config, repo_root, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('whole')
    subprocess.run(
        [
            sys.executable,
            'tools/train.py',
            str(rounds_config),
            '--work-dir',
            str(work_dir),
            '--cfg-options',
            'cache=None',
        ],
        cwd=repo_root,
        check=True,
        capture_output=True,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '',
            'PYTHONPATH': os.pathsep.join([str(rounds_config.parent), os.environ.get('PYTHONPATH', '')]),
        },
    )
    return work_dir


def test_two_rounds_leave_what_they_were(whole):
    first, second = rounds_of(whole)
    assert (first['iteration'], second['iteration']) == (0, 3) and first['policy'] != second['policy']
    for record in (first, second):
        assert record['decision'] in ('kept', 'taken back') and record['metric'] is not None
        assert record['labelled']['images'] == 6 and record['labelled']['usable_share'] == 1, 'every mask is trained on'
        assert record['unlabelled']['images'] == 5 and 0 < record['unlabelled']['usable_share'] <= 1
        assert (
            record['unlabelled']['best_iou'] >= record['unlabelled']['greedy_iou']
            and record['unlabelled']['diversity'] > 0
        )
        assert record['labelled']['chosen_iou'] == 1
        assert {'Consensus', 'PredictedIoU', 'Agreement', 'ExpectedIoU'} == set(record['judge_agreement'])
        assert record['seconds'] > 0
    assert (whole / 'iter_3.pth').is_file() and (whole / 'iter_6.pth').is_file()
    assert not list((whole / 'rounds').glob('start_*')), 'states that nothing needs any more are gone'
    for record in (first, second):
        for root in record['data'].values():
            assert (whole / root / 'dpo_annotations.json').is_file()
    [log] = whole.glob('*/*.log')
    assert 'round 1: unlabelled: ' in log.read_text() and 'mined in' in log.read_text()


PHASES = (
    'step@2',
    'labelled mined@0',
    'mined:3@0',
    'committed@0',
    'step@3',
    'decided@3',
    'saved@3',
    'mined:2@3',
    'mined:9@3',
    'mined@3',
    'committed@3',
    'step@5',
    'decided@6',
    'saved@6',
)


@pytest.mark.parametrize('kill_at', PHASES if os.environ.get('SA2VA_DPO_LONG_TESTS') else PHASES[1::3])
def test_a_killed_run_ends_as_the_whole_one(train, whole, tmp_path, kill_at):
    train(tmp_path / 'run', kill_at=kill_at, code=-signal.SIGKILL)
    train(tmp_path / 'run', '--resume')
    assert_same_end(tmp_path / 'run', whole)


@pytest.fixture(scope='module')
def mined_root(micro_checkpoint, make_folders, tmp_path_factory):
    """A data root of six training images and three of validation, whose pairs are those that the first round mines."""
    from sa2va_dpo.engine.round_settings import RoundSettings
    from sa2va_dpo.preferences.generate import generate_pairs

    root = tmp_path_factory.mktemp('mined')
    images, gt = make_folders(root, range(9))
    config = RoundSettings(num_samples=4).labelled_config(
        images_dir=str(images), gt_dir=str(gt), output_dir=str(root / 'data'), model_path=str(micro_checkpoint),
        device='cpu', seed=0)
    generate_pairs(replace(config, val_fraction=0.3, split_seed=1, link=False))
    return root / 'data'


def of_first_round(root, iters=6):
    return [f'data_root={root}', 'rounds.count=1', f'train_cfg.max_iters={iters}']


@pytest.fixture(scope='module')
def anew(mined_root, tmp_path_factory):
    """The same data root without a word of what its pairs were made from."""
    root = tmp_path_factory.mktemp('anew') / 'data'
    shutil.copytree(mined_root, root)
    (root / 'generation_entries.json').unlink()
    return root


def test_pairs_of_the_start_are_not_mined_again_and_change_nothing(train, mined_root, anew, tmp_path):
    train(tmp_path / 'taken', options=of_first_round(mined_root))
    train(tmp_path / 'mined', options=of_first_round(anew))
    [taken], [mined] = rounds_of(tmp_path / 'taken'), rounds_of(tmp_path / 'mined')
    assert (taken['labelled'].pop('taken_over'), mined['labelled'].pop('taken_over')) == (6, 0)
    assert without_times([taken]) == without_times([mined]) and taken['judge_agreement']
    a, b = (read_trained_tensors(tmp_path / run / 'iter_6.pth') for run in ('taken', 'mined'))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    logs = {run: next((tmp_path / run).glob('*/*.log')).read_text() for run in ('taken', 'mined')}
    assert f'round 0: pairs of 6 of 6 labelled images are those of {mined_root}' in logs['taken']
    assert 'are not taken over (what they were mined from was not written down): mined anew' in logs['mined']


@pytest.mark.parametrize('kill_at', ['mined:6@0', *(['mined:10@0', 'labelled mined@0', 'committed@0']
                                                    if os.environ.get('SA2VA_DPO_LONG_TESTS') else [])])
def test_a_run_killed_while_it_takes_pairs_over_ends_as_the_whole_one(train, mined_root, tmp_path, kill_at):
    """Three images of validation are mined first."""
    train(tmp_path / 'whole', options=of_first_round(mined_root))
    train(tmp_path / 'run', kill_at=kill_at, code=-signal.SIGKILL, options=of_first_round(mined_root))
    train(tmp_path / 'run', '--resume', options=of_first_round(mined_root))
    assert_same_end(tmp_path / 'run', tmp_path / 'whole')
    assert rounds_of(tmp_path / 'run')[0]['labelled']['taken_over'] == 6


def test_another_policy_mines_anew(train, mined_root, tmp_path):
    """Trained tensors that do not come from the checkpoint."""
    train(tmp_path / 'first', options=of_first_round(mined_root, 2))
    train(tmp_path / 'run', options=[*of_first_round(mined_root, 2), f'load_from={tmp_path / "first/iter_2.pth"}'])
    assert rounds_of(tmp_path / 'run')[0]['labelled']['taken_over'] == 0
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert 'mined from another state of the policy' in log.read_text()


def test_two_processes_share_the_mining_and_train_on_the_same_pairs(train, tmp_path):
    """Nothing is trained before the first round, so two processes mine what one mines, file by file."""
    train(tmp_path / 'two', options=['train_cfg.max_iters=2'], processes=2)
    train(tmp_path / 'one', options=['train_cfg.max_iters=2'])
    for name in ('labelled', 'unlabelled', 'check'):
        one, two = (tmp_path / run / 'rounds/round_0' / name for run in ('one', 'two'))
        files = sorted(path.relative_to(one) for path in one.rglob('*') if path.is_file())
        assert files == sorted(path.relative_to(two) for path in two.rglob('*') if path.is_file()) and len(files) > 10
        for file in files:
            if file.name != 'generation_report.json':
                assert (one / file).read_bytes() == (two / file).read_bytes(), file
    # One image a process and step: four draws of both runs at the same places of one order.
    assert (
        rounds_of(tmp_path / 'two')[0]['unlabelled']['pairs'] == rounds_of(tmp_path / 'one')[0]['unlabelled']['pairs']
    )


GENTLE = (
    'train_cfg.max_iters=24',
    'train_cfg.val_interval=24',
    'rounds.count=1',
    'default_hooks.checkpoint.interval=24',
)


@pytest.mark.parametrize('strategy', [(), ('deepspeed_on_cpu=True',)], ids=['single', 'deepspeed'])
def test_the_guard_takes_a_harmful_round_back_exactly(train, tmp_path, strategy):
    """A learning rate of 10,000 destroys the masks that a first, gentle run has learnt."""
    train(tmp_path / 'gentle', options=[*GENTLE, *strategy])
    learnt = tmp_path / 'gentle/iter_24.pth'
    train(tmp_path / 'run', options=[f'load_from={learnt}', 'optim_wrapper.optimizer.lr=1e4', *strategy])
    rounds = rounds_of(tmp_path / 'run')
    assert [record['decision'] for record in rounds] == ['taken back', 'taken back']
    assert all(record['metric_after'] < record['metric'] for record in rounds)
    assert rounds[0]['metric'] == rounds[1]['metric'], 'the second round begins where the first began'
    start, half, end = (read_trained_tensors(path) for path in (
        learnt, tmp_path / 'run/iter_3.pth', tmp_path / 'run/iter_6.pth'))
    for name in start:
        assert torch.equal(end[name], half[name]), name
        # DeepSpeed computes with the rounded numbers, and begins with them where it is given trained tensors.
        assert torch.equal(*(t[name].bfloat16() if strategy else t[name] for t in (end, start))), name
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count(': taken back\n') == 4


def test_two_bad_rounds_in_a_row_end_the_run(train, tmp_path):
    train(tmp_path / 'gentle', options=GENTLE)
    options = [
        f'load_from={tmp_path / "gentle/best_dice_iter_24.pth"}',
        'optim_wrapper.optimizer.lr=1e6',
        'rounds.count=3',
    ]
    train(tmp_path / 'run', options=options)
    content = json.loads((tmp_path / 'run/rounds.json').read_text())
    assert len(content['rounds']) == 2 and 'the run ends at iteration 4' in content['ended']
    assert (tmp_path / 'run/iter_4.pth').is_file() and not (tmp_path / 'run/iter_6.pth').exists()
    [log] = (tmp_path / 'run').glob('*/*.log')
    assert 'the run ends at iteration 4' in log.read_text()
    before = (tmp_path / 'run/iter_4.pth').read_bytes()
    train(tmp_path / 'run', '--resume', options=options[1:])
    assert (tmp_path / 'run/iter_4.pth').read_bytes() == before, 'what has ended stays ended'


def test_a_judge_that_labels_contradict_is_refused(train, tmp_path):
    """A method that finds nothing anywhere: whoever goes by it holds all candidates for equally bad."""
    import cv2
    import numpy as np

    folder = tmp_path / 'methods' / 'blind'
    folder.mkdir(parents=True)
    for index in range(30):
        cv2.imwrite(str(folder / f'case_{index:02d}.png'), np.zeros((96, 128), np.uint8))
    options = ['rounds.judge=predictions', f'rounds.predictions={folder.parent}', 'rounds.unlabelled_gt=None']
    done = train(tmp_path / 'run', options=options, code=2)
    [line] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert 'rounds.judge="predictions": refused in round 0' in line and 'rounds.check_judge=False' in line
    report = json.loads((tmp_path / 'run/rounds/round_0/labelled/generation_report.json').read_text())
    found = report['judge_agreement']['Committee']
    assert found['images'] == 6 and found['tau'] <= 0 and not found['trusted']
    assert report['judge_agreement']['ExpectedIoU']['tau'] > found['tau']
    assert not (tmp_path / 'run/rounds/round_0/unlabelled').exists(), 'before it has decided anything'


def test_people_pick_and_the_run_goes_on(train, tmp_path):
    """Exit code 4 with the candidates on the disk; picks; the same command with --resume; the next round waits
    again."""
    from sa2va_dpo.review.candidates import read_candidates

    options = ['rounds.judge=expert', 'rounds.unlabelled_gt=None', 'rounds.clicks=3']

    def pick(number: int, count: int) -> None:
        root = tmp_path / f'run/rounds/round_{number}/unlabelled'
        candidates = read_candidates(root)
        journal = candidates.journal('Ada')
        journal.parent.mkdir(exist_ok=True)
        lines = [dict(fingerprint=candidates.fingerprint, reviewer='Ada')]
        lines += [dict(image=image, pick=1, seconds=2.0) for image in list(candidates.images)[:count]]
        journal.write_text(''.join(json.dumps(line) + '\n' for line in lines))

    done = train(tmp_path / 'run', options=options, code=WAITING)
    assert '0 of 3 images are decided' in done.stdout + done.stderr
    waiting = json.loads((tmp_path / 'run/rounds/waiting.json').read_text())
    assert (waiting['round'], waiting['decided'], waiting['wanted']) == (0, 0, 3)
    pick(0, 2)
    train(tmp_path / 'run', options=options, code=WAITING)
    pick(0, 3)
    train(tmp_path / 'run', options=options, code=WAITING)
    assert rounds_of(tmp_path / 'run')[0]['unlabelled']['picks']['decided'] == 3
    assert json.loads((tmp_path / 'run/rounds/waiting.json').read_text())['round'] == 1
    pick(1, 5)
    train(tmp_path / 'run', '--resume', options=options)
    second = rounds_of(tmp_path / 'run')[1]
    assert second['unlabelled']['picks']['decided'] == 5 and second['unlabelled']['usable_share'] == 1
    assert (tmp_path / 'run/iter_6.pth').is_file() and not (tmp_path / 'run/rounds/waiting.json').exists()


def test_labelled_images_alone_come_first(train, tmp_path):
    train(tmp_path / 'run', options=['rounds.labelled_first=1'])
    first, second = rounds_of(tmp_path / 'run')
    assert first['labelled']['images'] == 6 and first['data']['unlabelled'] is None
    assert 'unlabelled' not in first and 'judge' not in first
    assert not (tmp_path / 'run/rounds/round_0/unlabelled').exists()
    assert not (tmp_path / 'run/rounds/round_0/check').exists(), 'nobody has to be held against labels yet'
    assert second['unlabelled']['images'] == 5 and second['judge'] == 'iou' and second['labelled']['images'] == 6


def test_the_reference_of_a_round_survives_a_kill(train, tmp_path):
    options = ['rounds.reference=round']
    train(tmp_path / 'whole', options=options)
    train(tmp_path / 'run', options=options, kill_at='step@5', code=-signal.SIGKILL)
    train(tmp_path / 'run', '--resume', options=options)
    assert_same_end(tmp_path / 'run', tmp_path / 'whole')
    [log] = (tmp_path / 'whole').glob('*/*.log')
    nll = {line.split('Iter(train)')[1].split('/')[0].strip(' ['): line.split('preference_nll: ')[1][:6]
           for line in log.read_text().splitlines() if 'Iter(train)' in line}
    # Dropout alone tells the policy from its reference as a round begins.
    assert float(nll['1']) == pytest.approx(0.6931, abs=1e-3) and float(nll['4']) == pytest.approx(0.6931, abs=1e-3)
    assert abs(float(nll['3']) - 0.6931) > 0.01


def test_mining_from_caches_is_mining_without(train, tmp_path):
    frozen = ['model.trainable.llm=frozen', 'model.trainable.sam2_encoder=frozen', 'model.trainable.sam2_neck=frozen']
    train(tmp_path / 'plain', options=frozen)
    train(
        tmp_path / 'cached',
        options=[*frozen, f'cache.dir={tmp_path / "cache"}', 'cache.items=[seg_states,sam2_levels]'],
    )
    for one, other in zip(rounds_of(tmp_path / 'plain'), rounds_of(tmp_path / 'cached'), strict=True):
        assert one['unlabelled']['pairs'] == other['unlabelled']['pairs']
        assert one['unlabelled']['best_iou'] == pytest.approx(other['unlabelled']['best_iou'], abs=5e-3)


def test_settings_are_refused_before_anything_is_mined(train, tmp_path):
    done = train(tmp_path / 'run', options=['rounds.count=7'], code=2)
    assert 'rounds.count: 7 rounds of 6 iterations' in done.stderr and not (tmp_path / 'run/rounds').exists()
