"""What ``from sa2va_dpo import ...`` offers, and that it costs nothing until it is used."""
from __future__ import annotations

import subprocess
import sys

import pytest

import sa2va_dpo


def test_public_names_are_the_real_ones():
    from sa2va_dpo import Predictor, Sa2VADPOModel, generate_pairs, predict_folder
    from sa2va_dpo.inference import prediction_folder, predictor
    from sa2va_dpo.models import sa2va_dpo_model
    from sa2va_dpo.preferences import generate

    assert Predictor is predictor.Predictor
    assert Sa2VADPOModel is sa2va_dpo_model.Sa2VADPOModel
    assert generate_pairs is generate.generate_pairs
    assert predict_folder is prediction_folder.predict_folder
    assert set(sa2va_dpo.__all__) <= set(dir(sa2va_dpo))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match='no_such_name'):
        sa2va_dpo.no_such_name


def test_import_is_light(repo_root):
    code = ('import sys; before = set(sys.modules); import sa2va_dpo; '
            'print(sorted(m for m in set(sys.modules) - before if not m.startswith("sa2va_dpo")))')
    done = subprocess.run([sys.executable, '-c', code], cwd=repo_root, capture_output=True, text=True, check=True)
    loaded = done.stdout
    assert not any(name in loaded for name in ("'torch'", "'numpy'", "'mmengine'", "'transformers'")), loaded
