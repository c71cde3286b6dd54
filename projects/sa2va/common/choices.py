"""Values that the command line offers before anything heavy is imported."""
from __future__ import annotations

# Who judges the candidates of images without masks, as ``rounds.judge`` and ``--judge`` name them (docs/rounds.md).
JUDGES = ('iou', 'expert', 'consensus', 'committee', 'predictions')
