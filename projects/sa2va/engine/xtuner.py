"""XTuner, where it is installed: its registry gets our classes, too. Nothing here needs it."""
from __future__ import annotations

import warnings

from mmengine.registry import Registry


def xtuner_builder() -> Registry | None:
    """XTuner's own registry; None where XTuner is not installed, or has none (from 1.0 on).

    Warns where it is installed but cannot be imported.
    """
    try:
        from xtuner.registry import BUILDER
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name in ('xtuner', 'xtuner.registry')):
            warnings.warn(
                f'xtuner is installed but cannot be imported ({error}): its registry does not get our classes',
                stacklevel=2,
            )
        return None
    return BUILDER
