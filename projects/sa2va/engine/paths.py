"""Point a config at another checkpoint or data root without naming every place that uses them."""
from __future__ import annotations

from mmengine.config import Config


def repoint(cfg: Config, checkpoint: str | None = None, data_root: str | None = None) -> None:
    """Replace ``cfg.checkpoint`` and ``cfg.data_root`` wherever their values stand in ``cfg``, in place.

    A config's variables are plain text to mmengine: overriding one alone would leave its uses as they were.

    Args:
        checkpoint: start checkpoint, a directory in the released layout.
        data_root: output of the pair generator.
    """
    for key, new in (('checkpoint', checkpoint), ('data_root', data_root)):
        if new is not None:
            _replace(cfg._cfg_dict, cfg[key], str(new))


def _replace(node, old: str, new: str) -> None:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if isinstance(value, (dict, list)):
            _replace(value, old, new)
        elif value == old:
            node[key] = new
