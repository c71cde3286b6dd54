"""Files of the package by the guide's path, from any folder."""
from __future__ import annotations

from pathlib import Path

import pytest

from sa2va_dpo.common import bundled as module
from sa2va_dpo.common.bundled import bundled, bundled_checkpoint, config_names, config_path
from sa2va_dpo.common.errors import InputError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_checkpoint_is_found_from_any_folder():
    assert (Path(bundled_checkpoint()) / 'model.safetensors').is_file()


@pytest.mark.parametrize(
    'name', ['sa2va_dpo_vessel', 'sa2va_dpo_vessel.py', 'projects/sa2va/configs/sa2va_dpo_vessel.py']
)
def test_config_by_name_and_by_the_guides_path(name):
    assert Path(config_path(name)) == module.PACKAGE / 'configs' / 'sa2va_dpo_vessel.py'


def test_what_lies_in_the_current_folder_wins(tmp_path):
    own = tmp_path / 'projects/sa2va/configs/sa2va_dpo_vessel.py'
    own.parent.mkdir(parents=True)
    own.write_text('')
    assert config_path('projects/sa2va/configs/sa2va_dpo_vessel.py') == 'projects/sa2va/configs/sa2va_dpo_vessel.py'
    (tmp_path / 'sa2va_dpo_vessel.py').write_text('')
    assert config_path('sa2va_dpo_vessel.py') == 'sa2va_dpo_vessel.py'


@pytest.mark.parametrize(
    'name', ['nothing', 'nothing.py', 'projects/sa2va/configs/nothing.py', 'other/sa2va_dpo_vessel.py']
)
def test_what_is_not_there_comes_back_as_it_was(name):
    assert config_path(name) == name
    assert bundled(name) == name


@pytest.mark.parametrize('name', ['sa2va_dpo_vessel_tiny_own', 'projects/sa2va/configs/sa2va_dpo_vessel_tiny_own.py'])
def test_a_config_of_another_name_now_is_refused_by_its_new_one(name, tmp_path):
    with pytest.raises(InputError, match=r'is called sa2va_dpo_vessel_tiny_self(\.py)? now'):
        config_path(name)
    (tmp_path / 'sa2va_dpo_vessel_tiny_own').write_text('')
    assert config_path('sa2va_dpo_vessel_tiny_own') == 'sa2va_dpo_vessel_tiny_own', "a file of the user's is his"


def test_names_are_those_of_the_folder():
    assert 'sa2va_dpo_vessel' in config_names() and 'sa2va_dpo_vessel_tiny' in config_names()
