"""Everything is in pyproject.toml, except that the folder ``projects/sa2va`` is the package ``sa2va_dpo``."""
from setuptools import find_packages, setup

FOLDER = 'projects/sa2va'

setup(packages=['sa2va_dpo', *(f'sa2va_dpo.{name}' for name in find_packages(FOLDER))])
