"""The rows of the label-scarce study: what the user has, who looks at the other images, and how often."""
from __future__ import annotations

from dataclasses import dataclass, field

from .table import BALANCED, NORMALISED, anchored

STEPS, BASE_STEPS = 200, 300


@dataclass(frozen=True)
class Regime:
    """One run from the base that supervised training on ``k`` labelled images gave (``k=0``: the bundled checkpoint).

    Attributes:
        unlabelled: what the other training images contribute: ``none``, ``masks`` (drawn after all), ``picks`` (the best
            candidate by true IoU stands in for a person's click), ``consensus`` (candidates ranked against the mean of four
            mirrored views), ``consensus_mask`` (that mean itself is the target), ``teacher`` (mean teacher: targets from an
            exponential moving average of the policy, Tarvainen and Valpola, arXiv 1703.01780).
        rounds: how often candidates are mined anew; the stretches between are equal.
        wrong: share of picks that fall on another candidate at random.
        cells: the pick is made in each of ``cells`` x ``cells`` squares (a composite), None: the whole mask.
        labelled_share: share of the draws that are labelled images.
        preference: fields of ``PreferenceConfig``; weight 0 is the supervised term alone.
        pairing: ``best`` (the pick against every other candidate) or ``components`` (each connected component of the
            disagreement with the greedy mask is a pair of its own).
        reference: ``initial`` or ``round``.
        guard: labelled validation takes a round back that lowers Dice; the second in a row ends the run.
        twin: the run that differs in the preference weight alone.
    """

    name: str
    unlabelled: str = 'none'
    rounds: int = 4
    wrong: float = 0.0
    cells: int | None = None
    labelled_share: float = 0.5
    preference: dict = field(default_factory=lambda: anchored(0.0), hash=False)
    pairing: str = 'best'
    reference: str = 'initial'
    guard: bool = False
    twin: str | None = None
    lr: float = 1e-4
    steps: int = STEPS
    num_samples: int = 6
    group: str = 'main'
    zero: bool = False  # for k = 0 only


SUPERVISED = anchored(0.0)


def regimes() -> list[Regime]:
    """Baselines first."""
    table = [
        Regime('labelled only'),
        Regime('all masks drawn', 'masks'),
        Regime('mean teacher', 'teacher'),
        Regime('picks, 1 round', 'picks', rounds=1),
        Regime('picks, 4 rounds', 'picks'),
        Regime('picks, 8 rounds', 'picks', rounds=8),
        Regime('picks, 4 rounds, normalised x 0.3', 'picks', preference=anchored(0.3, **NORMALISED), twin='picks, 4 rounds'),
        Regime('picks, 4 rounds, balanced x 0.2', 'picks', preference=anchored(0.2, **BALANCED), twin='picks, 4 rounds'),
        *(Regime(f'picks, 4 rounds, {wrong:.0%} wrong', 'picks', wrong=wrong) for wrong in (0.1, 0.2, 0.3)),
        Regime('region picks, 4 rounds', 'picks', cells=8),
        Regime('region picks, 4 rounds, normalised x 0.3', 'picks', cells=8, preference=anchored(0.3, **NORMALISED),
               twin='region picks, 4 rounds'),
        Regime('consensus, 4 rounds', 'consensus'),
        Regime('consensus, 4 rounds, guard', 'consensus', guard=True),
        Regime('consensus mask, 4 rounds', 'consensus_mask'),
        Regime('picks, 4 rounds, guard', 'picks', guard=True),
    ]
    return table
