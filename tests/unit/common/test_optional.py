"""A missing optional package is one line with its extra; another failure is not hidden."""
from __future__ import annotations

import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.optional import EXTRAS, extra


@pytest.mark.parametrize('name', EXTRAS)
def test_names_package_and_extra(name):
    with pytest.raises(InputError, match=rf"this needs the package {EXTRAS[name][0]}.*sa2va-dpo\[{name}\]"):
        with extra(name, 'this'):
            raise ModuleNotFoundError('no', name=f'{EXTRAS[name][0]}.inner')


def test_another_missing_module_is_passed_on():
    with pytest.raises(ModuleNotFoundError, match='inner part'):
        with extra('train', 'this'):
            raise ModuleNotFoundError('inner part', name='inner')


def test_a_present_package_changes_nothing():
    with extra('train', 'this'):
        value = 1
    assert value == 1


def test_extras_are_those_of_the_package_file(repo_root):
    import re

    text = (repo_root / 'pyproject.toml').read_text(encoding='utf-8')
    declared = text.split('[project.optional-dependencies]')[1].split('\n[')[0]
    for name, modules in EXTRAS.items():
        line, = re.findall(rf'^{name} = \[(.*)\]', declared, re.M)
        for module in modules:
            assert f'"{module}' in line, (name, module)
