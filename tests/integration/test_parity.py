"""The public parity fixtures through the command users run, and proof that the comparison can fail."""
import copy
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.parity.compare import LOGIT_TOLERANCE, compare, recompute

pytestmark = pytest.mark.integration
FIXTURES = ('internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl')


def check(repo_root, *args):
    return subprocess.run([sys.executable, 'tools/check_parity.py', *map(str, args)], cwd=repo_root,
                          capture_output=True, text=True)


@pytest.mark.parametrize('name', FIXTURES)
def test_fixture_passes_and_every_target_is_compared(shared_dir, repo_root, tmp_path, name):
    done = check(repo_root, shared_dir / 'fixtures/sa2va_parity' / name, '--json', tmp_path / 'rows.json')
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row['name']: row for row in json.loads((tmp_path / 'rows.json').read_text())['tensors']}
    reference = load_file(shared_dir / 'fixtures/sa2va_parity' / name / 'reference.safetensors')
    assert rows.keys() == reference.keys()
    assert {n for n, row in rows.items() if row['passed'] is not True} == {n for n in rows if n.startswith('variant_')}
    for case in ('train', 'train2', 'infer_newline', 'infer_no_newline'):
        assert rows[f'{case}.mask.final_logits']['max_abs_diff'] <= LOGIT_TOLERANCE


@pytest.fixture(scope='module')
def qwen3(shared_dir):
    """The fixture's folder, its references and what we compute."""
    directory = shared_dir / 'fixtures/sa2va_parity/qwen3_vl'
    inputs = json.loads((directory / 'inputs.json').read_text())
    model = load_checkpoint(directory)
    pre = Sa2VAPreprocessor.from_pretrained(directory, min_pixels=inputs['min_pixels'], max_pixels=inputs['max_pixels'])
    image = Image.open(directory / inputs['image'])
    return model, load_file(directory / 'reference.safetensors'), lambda m=model: recompute(m, pre, image, inputs)


@pytest.mark.parametrize('damage, failing', [
    (lambda r: r['train.mask.final_logits'].add_(2e-3), {'train.mask.final_logits'}),
    (lambda r: r['train.input_ids'][0, 3].add_(1), {'train.input_ids'}),
    (lambda r: r['sam.image_embed'].mul_(float('nan')), {'sam.image_embed'}),
    (lambda r: r.update({'train.seg_hidden': r['train.seg_hidden'][:, :3].clone()}), {'train.seg_hidden'}),
])
def test_a_wrong_reference_fails_by_name(qwen3, damage, failing):
    _, reference, ours = qwen3
    reference = {k: v.clone() for k, v in reference.items()}
    damage(reference)
    assert {row.name for row in compare(reference, ours()) if row.passed is False} == failing


def test_wrong_weights_fail(qwen3):
    model, reference, ours = qwen3
    wrong = copy.deepcopy(model)
    wrong.text_hidden_fcs[2].bias.data += 0.05
    failing = {row.name for row in compare(reference, ours(wrong)) if row.passed is False}
    assert {'train.seg_embedding', 'train2.seg_embedding', 'infer_newline.seg_embedding'} <= failing
    assert not [name for name in failing if name.startswith(('sam.', 'vision.'))]


def test_a_failure_is_exit_code_1(shared_dir, repo_root, tmp_path):
    fixture = tmp_path / 'fixture'
    fixture.mkdir()
    for path in (shared_dir / 'fixtures/sa2va_parity/qwen3_vl').iterdir():
        (fixture / path.name).write_bytes(path.read_bytes())
    reference = load_file(fixture / 'reference.safetensors')
    reference['train2.mask.low_res'] += 2e-3
    save_file(reference, fixture / 'reference.safetensors')
    done = check(repo_root, fixture)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if 'FAIL' in line] == ['train2.mask.low_res']


def test_unusable_folder_is_one_line_and_exit_2(repo_root, tmp_path):
    done = check(repo_root, tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert len(done.stderr.strip().splitlines()) == 1 and 'inputs.json' in done.stderr


def test_binary_masks_may_differ_only_near_zero():
    logits = torch.tensor([[-1.0, 5e-4, 1.0]])
    reference = {'a.mask.final_logits': logits, 'a.mask.final_binary': (logits > 0).to(torch.uint8)}
    near, far = torch.tensor([[0, 0, 1]], dtype=torch.uint8), torch.tensor([[1, 1, 1]], dtype=torch.uint8)
    verdicts = [{r.name: r.passed for r in compare(reference, {'a.mask.final_logits': logits,
                                                               'a.mask.final_binary': b})}['a.mask.final_binary']
                for b in (near, far)]
    assert verdicts == [True, False]
