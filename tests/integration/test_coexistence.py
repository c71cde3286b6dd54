"""Installed copies: what the wheel holds, and our commands inside a tree that looks like upstream Sa2VA's clone.

Upstream's clone has regular packages ``projects``, ``projects.sa2va``, ``projects.sa2va.models`` and a
``tools/train.py`` of its own. With it first on the path and as the current folder, ours must run and upstream's must
stay upstream's. Everything runs in its own process, against a copy of this repository that was installed once as
editable and once as a wheel; nothing is fetched.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

NO_NETWORK = ['--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check', '-q']
UPSTREAM = {
    'projects/__init__.py': '',
    'projects/sa2va/__init__.py': '',
    'projects/sa2va/models/__init__.py': 'from .sa2va import Sa2VAModel\n',
    'projects/sa2va/models/sa2va.py': 'class Sa2VAModel:\n    origin = "upstream"\n',
    'projects/sa2va/datasets/__init__.py': 'origin = "upstream"\n',
    'projects/sa2va/evaluation/__init__.py': 'origin = "upstream"\n',
    'projects/sa2va/configs/sa2va_4b.py': 'origin = "upstream"\n',
    'tools/__init__.py': '',
    'tools/train.py': 'from projects.sa2va.models import Sa2VAModel\nprint("upstream trains", Sa2VAModel.origin)\n',
    'tools/test.py': 'print("upstream tests")\n',
    'scripts/__init__.py': 'origin = "upstream"\n',
    'setup.py': 'raise SystemExit("upstream is not installed")\n',
}


@pytest.fixture(scope='module')
def source(repo_root, tmp_path_factory) -> Path:
    """What is needed to build this package, copied: a build writes beside its source."""
    target = tmp_path_factory.mktemp('source')
    shutil.copytree(repo_root / 'projects' / 'sa2va', target / 'projects' / 'sa2va',
                    ignore=shutil.ignore_patterns('__pycache__', '*.egg-info'))
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
        shutil.copy(repo_root / name, target)
    return target


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp('dist')
    run([sys.executable, '-m', 'pip', 'wheel', *NO_NETWORK, '-w', target, source], cwd=target)
    path, = target.glob('*.whl')
    return path


@pytest.fixture(scope='module', params=['editable', 'wheel'])
def installed(request, source, tmp_path_factory) -> Path:
    """Interpreter of an environment that has this package installed and borrows everything else from the running
    one."""
    root = tmp_path_factory.mktemp(request.param) / 'venv'
    venv.create(root, with_pip=False, symlinks=True)
    python = root / 'bin' / 'python'
    purelib = Path(sysconfig.get_path('purelib', vars=dict(base=str(root), platbase=str(root))))
    # A plain line is only a folder on the path: what is installed there as editable is not followed.
    (purelib / 'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n' + sysconfig.get_path('platlib') + '\n')
    what = ['-e', source] if request.param == 'editable' else [request.getfixturevalue('wheel')]
    run([python, '-m', 'pip', 'install', *NO_NETWORK, '--ignore-installed', *what], cwd=root)
    return python


@pytest.fixture()
def upstream(tmp_path) -> Path:
    tree = tmp_path / 'Sa2VA'
    for name, text in UPSTREAM.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


def run(command, cwd: Path, path: Path | None = None, code: int = 0) -> str:
    """Standard output of a command in ``cwd``, with ``path`` first on Python's path and nothing of this checkout on
    it."""
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    env.update(OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES='', **({'PYTHONPATH': str(path)} if path else {}))
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
    return done.stdout


def python_says(python: Path, code: str, cwd: Path, path: Path | None = None) -> dict:
    return json.loads(
        run([python, '-c', f'import json\n{code}\nprint(json.dumps(result))'], cwd, path).splitlines()[-1]
    )


def package_of(python: Path, cwd: Path) -> Path:
    return Path(python_says(python, 'import sa2va_dpo\nresult = dict(file=sa2va_dpo.__file__)', cwd)['file']).parent


# -- the wheel --------------------------------------------------------------------------------------------------------

def test_wheel_holds_configs_checkpoint_and_commands_and_no_tests(wheel, source):
    names = zipfile.ZipFile(wheel).namelist()
    package = source / 'projects' / 'sa2va'
    wanted = {path.relative_to(package).as_posix() for folder in ('configs', 'assets', 'commands')
              for path in (package / folder).rglob('*') if path.is_file()}
    assert {'assets/tiny_sa2va/model.safetensors', 'configs/sa2va_dpo_vessel.py', 'commands/cli.py'} <= wanted
    assert {f'sa2va_dpo/{name}' for name in wanted} <= set(names)
    modules = {path.relative_to(package).as_posix() for path in package.rglob('*.py')}
    assert {f'sa2va_dpo/{name}' for name in modules} <= set(names), 'a folder has no __init__.py'
    top = {name.partition('/')[0] for name in names}
    assert {name for name in top if not name.endswith('.dist-info')} == {'sa2va_dpo'}
    entry, = [name for name in names if name.endswith('entry_points.txt')]
    assert 'sa2va-dpo = sa2va_dpo.commands.cli:entry' in zipfile.ZipFile(wheel).read(entry).decode()


def test_wheel_says_what_it_needs_and_xtuner_is_not_among_it(wheel):
    from email import message_from_string

    import sa2va_dpo

    archive = zipfile.ZipFile(wheel)
    name, = [name for name in archive.namelist() if name.endswith('METADATA')]
    metadata = message_from_string(archive.read(name).decode())
    requires = metadata.get_all('Requires-Dist')
    assert metadata['Version'] == sa2va_dpo.__version__ and metadata['License-Expression'] == 'Apache-2.0'
    assert not [line for line in requires if 'xtuner' in line]
    assert [line for line in requires if line.startswith('deepspeed') and 'extra == "train"' in line]
    assert set(metadata.get_all('Provides-Extra')) == {
        'train', 'review', 'parquet', 'medical', 'trackers', 'demo', 'quantised', 'dev'}


# -- an installed copy, alone -----------------------------------------------------------------------------------------

def test_installed_command_and_bundled_checkpoint_from_an_empty_folder(installed, tmp_path, source, repo_root):
    assert 'commands:' in run([installed.parent / 'sa2va-dpo', '--help'], tmp_path)
    assert '--work-dir' in run([installed.parent / 'sa2va-dpo', 'job', '--help'], tmp_path)
    result = python_says(
        installed,
        '''
import sa2va_dpo
from sa2va_dpo import Predictor
from sa2va_dpo.common.bundled import bundled_checkpoint, config_path
from sa2va_dpo.drawn import draw
drawn = draw('fundus', index=0, seed=123, size=256)
predictor = Predictor.from_pretrained(bundled_checkpoint())
prediction = predictor.predict(drawn.image, '<image>Please segment the blood vessels.')
mask, truth = prediction.masks[0], drawn.mask > 0
result = dict(checkpoint=bundled_checkpoint(), config=config_path('projects/sa2va/configs/sa2va_dpo_vessel.py'),
              package=sa2va_dpo.__file__, dice=2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()))
''',
        tmp_path,
    )
    package = Path(result['package']).parent
    assert repo_root not in package.parents, 'the checkout was imported, not the installed copy'
    assert (package == source / 'projects' / 'sa2va') == ('editable' in str(installed))
    assert Path(result['checkpoint']) == package / 'assets' / 'tiny_sa2va'
    assert Path(result['config']) == package / 'configs' / 'sa2va_dpo_vessel.py'
    assert result['dice'] > 0.6, 'the bundled checkpoint was trained on such drawings'


# -- beside upstream --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('first', ['ours', 'upstream'])
def test_both_are_imported_in_one_process(installed, upstream, first):
    ours = 'import sa2va_dpo, sa2va_dpo.plugins, sa2va_dpo.models, sa2va_dpo.datasets\n'
    theirs = 'import projects, projects.sa2va.models, projects.sa2va.datasets, tools.train, scripts\n'
    found = python_says(installed, f'''
{ours + theirs if first == 'ours' else theirs + ours}
import sys
from mmengine.registry import MODELS
from projects.sa2va.models import Sa2VAModel
result = dict(
    ours=[m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'sa2va_dpo'],
    theirs=[m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] in ('projects', 'tools', 'scripts')],
    model=Sa2VAModel.origin, registered=MODELS.get('Sa2VADPOModel').__module__)
''', upstream, upstream)
    assert found['model'] == 'upstream' and found['registered'] == 'sa2va_dpo.models.sa2va_dpo_model'
    assert len(found['theirs']) >= 7 and all(Path(file).is_relative_to(upstream) for file in found['theirs'])
    assert len(found['ours']) > 20 and not [file for file in found['ours'] if Path(file).is_relative_to(upstream)]


def test_upstreams_commands_stay_upstreams(installed, upstream):
    assert run([installed, 'tools/train.py'], upstream, upstream).strip() == 'upstream trains upstream'
    assert run([installed, '-m', 'tools.test'], upstream, upstream).strip() == 'upstream tests'


def test_ours_mines_trains_and_tests_inside_upstreams_tree(
        installed, upstream, run_config, pair_root, micro_checkpoint, make_folders, repo_root):
    """The guide's steps by command; the config is a child of the one in the installed package, named in upstream's
    folder."""
    package = package_of(installed, upstream)
    text = run_config.read_text()
    here = str(repo_root / 'projects/sa2va')
    assert here in text
    cache = str(run_config.parent / 'cache')
    (upstream / 'ours.py').write_text(text.replace(here, str(package)).replace(cache, str(upstream / 'cache')))
    images, gt = make_folders(upstream / 'data', range(4))
    shutil.copytree(
        pair_root / 'masks',
        upstream / 'predictions' / 'thick',
        ignore=shutil.ignore_patterns('*_chosen.png', '*_1.png'),
    )
    shutil.copytree(gt, upstream / 'predictions' / 'exact')
    for path in (upstream / 'predictions' / 'thick').iterdir():
        path.rename(path.with_name(path.name.replace('_rejected_0', '')))
    for path in (upstream / 'predictions' / 'thick').iterdir():
        if not (gt / path.name).is_file():
            path.unlink()
    program = [installed, '-m', 'sa2va_dpo']
    run(
        [
            *program,
            'pairs',
            '--mode',
            'from_predictions',
            '--images-dir',
            'predictions',
            '--source_images_dir',
            images,
            '--gt_dir',
            gt,
            '--output-dir',
            'pairs',
            '--val-fraction',
            '0',
            *no_test(package),
        ],
        upstream,
        upstream,
    )
    pairs = json.loads((upstream / 'pairs' / 'dpo_annotations.json').read_text())
    assert len(pairs) == 4 and all(pair['chosen_iou'] > pair['rejected_iou'] for pair in pairs)

    run([*program, 'train', 'ours.py', '--work_dir', 'run'], upstream, upstream)
    assert (upstream / 'run' / 'iter_4.pth').is_file()
    saved = (upstream / 'run' / 'config.py').read_text()
    assert 'sa2va_dpo.plugins' in saved and 'projects.sa2va' not in saved

    run(
        [
            installed.parent / 'sa2va-dpo',
            'test',
            'run/config.py',
            'run/iter_4.pth',
            '--work-dir',
            'scores',
            '--images',
            images,
            '--gt',
            gt,
            '--no_overlays',
        ],
        upstream,
        upstream,
    )
    assert json.loads((upstream / 'scores' / 'metrics.json').read_text())
    run([*program, 'export', 'run/config.py', 'run/iter_4.pth', 'exported'], upstream, upstream)
    assert (upstream / 'exported' / 'model.safetensors').is_file()


def no_test(package: Path) -> list[str]:
    """Keeps every image for training, where the generator holds test patients out by default."""
    return ['--test-fraction', '0'] if '--test_fraction' in (package / 'commands' / 'pairs.py').read_text() else []


def test_a_config_of_the_package_is_found_by_name_and_by_the_guides_path(installed, upstream):
    """Upstream's clone has the folder ``projects/sa2va/configs``, too, without our file in it."""
    found = python_says(installed, '''
from sa2va_dpo.engine.config import read_config
cfgs = [read_config(name) for name in ('sa2va_dpo_vessel', 'projects/sa2va/configs/sa2va_dpo_vessel.py')]
result = [dict(type=cfg.model.type, imports=cfg.custom_imports['imports']) for cfg in cfgs]
''', upstream, upstream)
    assert found == [dict(type='Sa2VADPOModel', imports=['sa2va_dpo.plugins'])] * 2
