"""What the main job decides before it starts and at its end."""
import pytest

from projects.sa2va.engine import main_job


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch, repo_root):
    """The guide's default paths are relative; only the bundled checkpoint is there."""
    assets = tmp_path / main_job.TINY_CHECKPOINT
    assets.parent.mkdir(parents=True)
    assets.symlink_to(repo_root / main_job.TINY_CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*options):
    return main_job.choose_inputs(main_job.parse_args(list(options))).config.rpartition('/')[2]


def test_the_config_follows_the_model_and_the_candidates(in_an_empty_folder):
    assert config_of() == 'sa2va_dpo_vessel_tiny.py'
    assert config_of('--no-gt-candidate') == 'sa2va_dpo_vessel_tiny_own.py'
    (in_an_empty_folder / 'models/sa2va_vessel_hf').mkdir(parents=True)
    assert config_of() == config_of('--no-gt-candidate') == 'sa2va_dpo_vessel.py'
    (in_an_empty_folder / 'mine.py').touch()
    assert config_of('--no-gt-candidate', '--config', 'mine.py') == 'mine.py'


@pytest.mark.parametrize('trained, start, handed_in, choice', [
    (.7, .6, .6, 'trained'), (.6, .6, .6, 'handed_in'), (None, .6, .6, 'handed_in'),
    (None, .7, .6, 'start'), (None, .6, .7, 'handed_in'), (.65, .6, .7, 'handed_in'), (.8, .6, .7, 'trained')])
def test_what_is_handed_back(trained, start, handed_in, choice):
    assert main_job.choose_export(trained, start, handed_in) == choice
