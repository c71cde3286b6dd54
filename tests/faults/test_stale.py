"""A folder that holds another run than the one that is asked for: refused in one line, nothing touched."""
import shutil
from pathlib import Path

import cv2
import pytest

from .harness import TALLY, Bench, content

pytestmark = pytest.mark.integration


def replaced(path):
    """The same picture format and size, other pixels."""
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))


def flipped_byte(path):
    """One byte in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.fixture(scope='module')
def trained(zygote, quiet_config, pair_root, micro_checkpoint, tmp_path_factory):
    """A finished run whose data and checkpoint are its own, and a function that trains there."""
    root = tmp_path_factory.mktemp('stale')
    shutil.copytree(pair_root, root / 'pairs')
    shutil.copytree(micro_checkpoint, root / 'model')
    config = root / 'config.py'
    config.write_text(f'_base_ = [{str(quiet_config)!r}]\ncheckpoint = {str(root / "model")!r}\n'
                      f'data_root = {str(root / "pairs")!r}\n')

    def train(*options):
        return zygote.run(dict(command='train', argv=[config, '--work-dir', root / 'w', *options]))[0]

    ended = train()
    assert ended.code == 0, ended.text[-3000:]
    return root, config, train


CHANGES = dict(
    seed=['--seed', 5], batch=['--cfg-options', 'batch_size=3'], rate=['--cfg-options', 'lr=1e-5'],
    objective=['--cfg-options', 'beta=0.3'], image=lambda root: replaced(root / 'pairs/images/case_01.png'),
    mask=lambda root: replaced(root / 'pairs/masks/case_02_chosen.png'),
    validation=lambda root: replaced(root / 'pairs/gt/case_07.png'),
    annotations=lambda root: (root / 'pairs/dpo_annotations.json').write_text(
        (root / 'pairs/dpo_annotations.json').read_text().replace('blood vessels', 'vessels')),
    model=lambda root: flipped_byte(root / 'model/model.safetensors'),
    config=lambda root: (root / 'config.py').write_text((root / 'config.py').read_text() + 'lr = 3e-6\n'))


@pytest.mark.parametrize('change', list(CHANGES))
@pytest.mark.parametrize('resume', [[], ['--resume']], ids=['anew', 'resumed'])
def test_training_on_anything_else_is_refused(trained, change, resume, tmp_path):
    root, _, train = trained
    backup, what = tmp_path / 'backup', CHANGES[change]
    shutil.copytree(root, backup)
    before = content(root / 'w', lambda path: path.name == 'error.log')
    options = [] if callable(what) else what
    if callable(what):
        what(root)
    try:
        ended = train(*resume, *options)
        TALLY.done['stale states'] += 1
        lines = [line for line in ended.text.splitlines() if line.startswith('error: ')]
        assert ended.code == 2 and len(lines) == 1 and 'holds another run' in lines[0], ended.text[-3000:]
        assert content(root / 'w', lambda path: path.name == 'error.log') == before
    finally:
        for name in ('pairs', 'model'):
            shutil.rmtree(root / name)
            shutil.copytree(backup / name, root / name)
        shutil.copy(backup / 'config.py', root / 'config.py')


def test_a_generator_on_changed_files_is_refused_and_names_them(zygote, generating, pictures, tmp_path):
    bench = Bench(zygote, generating, tmp_path / 'case')
    for path in (pictures[0] / 'case_01.png', pictures[1] / 'case_03.png'):
        bench.fresh()
        assert bench._run().code == 0
        old = path.read_bytes()
        replaced(path)
        try:
            ended = bench._run()
            TALLY.done['stale states'] += 1
            assert ended.code == 2 and 'the content of an image, a mask or a prediction has changed' in ended.text
            assert generating.outcome(bench.folder) == bench.whole
        finally:
            path.write_bytes(old)


def test_a_finished_job_knows_changed_files(zygote, working, tmp_path):
    bench = Bench(zygote, working, tmp_path / 'case')
    argv = list(map(str, working.argv(bench.folder)))
    path = min(Path(argv[argv.index('--images') + 1]).iterdir())
    old = path.read_bytes()
    replaced(path)
    try:
        ended = bench._run()
        TALLY.done['stale states'] += 1
        assert ended.code == 2 and 'its content has changed' in ended.text, ended.text[-2000:]
        assert working.outcome(bench.folder) == bench.whole
    finally:
        path.write_bytes(old)
