"""Sa2VA-DPO: preference training of Sa2VA mask predictions under MMEngine."""
from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = '0.2.0'
__all__ = ['Predictor', 'Sa2VADPOModel', '__version__', 'generate_pairs', 'predict_folder']

# Public name -> module that has it, imported when the name is first used: ``import sa2va_dpo`` itself imports nothing.
_HOMES = dict(
    Predictor='sa2va_dpo.inference.predictor',
    Sa2VADPOModel='sa2va_dpo.models.sa2va_dpo_model',
    generate_pairs='sa2va_dpo.preferences.generate',
    predict_folder='sa2va_dpo.inference.prediction_folder',
)

if TYPE_CHECKING:
    from sa2va_dpo.inference.prediction_folder import predict_folder
    from sa2va_dpo.inference.predictor import Predictor
    from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
    from sa2va_dpo.preferences.generate import generate_pairs


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
