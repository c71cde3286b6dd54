"""The rows of the label-scarce study: what the user has, who looks at the other images, and how often."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

from .table import BALANCED, NORMALISED, supervised_and

STEPS, BASE_STEPS = 200, 300


@dataclass(frozen=True)
class Regime:
    """One run from the base that supervised training on ``k`` labelled images gave (``k=0``: the bundled checkpoint).

    Attributes:
        unlabelled: what the other training images contribute: ``none``, ``masks`` (drawn after all), ``picks`` (the
            best candidate by true IoU stands in for a person's click), ``consensus`` (candidates ranked against the
            mean of four mirrored views), ``consensus_mask`` (that mean itself is the target), ``teacher`` (mean
            teacher: targets from an exponential moving average of the policy, Tarvainen and Valpola, arXiv 1703.01780).
        rounds: how often candidates are mined anew; the stretches between are equal.
        wrong: share of picks that fall on another candidate at random.
        cells: the pick is made in each of ``cells`` x ``cells`` squares (a composite), None: the whole mask.
        labelled_share: share of the draws that are labelled images; None: their share of the training images.
        preference: fields of ``PreferenceConfig``; weight 0 is the supervised term alone.
        pairing: ``best`` (the pick against every other candidate), ``components`` (each connected component of the
            disagreement with the greedy mask is a pair of its own) or ``topology`` (candidates of equal Dice, the
            better clDice chosen: the product's ``TopologyMatched``; one comparison a pair instead of a pick).
        reference: ``initial`` or ``round``.
        guard: labelled validation takes a round back that lowers Dice; the second in a row ends the run.
        twin: the run that differs in the preference weight alone.
    """

    name: str
    unlabelled: str = 'none'
    rounds: int = 4
    wrong: float = 0.0
    cells: int | None = None
    labelled_share: float | None = None
    preference: dict = field(default_factory=lambda: supervised_and(0.0), hash=False)
    pairing: str = 'best'
    reference: str = 'initial'
    guard: bool = False
    twin: str | None = None
    lr: float = 1e-4
    steps: int = STEPS
    num_samples: int = 6
    group: str = 'main'
    zero: bool = False  # for k = 0 only


SUPERVISED = supervised_and(0.0)


def regimes() -> list[Regime]:
    """Baselines first."""
    table = [
        Regime('labelled only'),
        Regime('all masks drawn', 'masks'),
        Regime('mean teacher', 'teacher'),
        Regime('picks, 1 round', 'picks', rounds=1),
        Regime('picks, 4 rounds', 'picks'),
        Regime('picks, 8 rounds', 'picks', rounds=8),
        Regime(
            'picks, 4 rounds, normalised x 0.3',
            'picks',
            preference=supervised_and(0.3, **NORMALISED),
            twin='picks, 4 rounds',
        ),
        Regime(
            'picks, 4 rounds, balanced x 0.2',
            'picks',
            preference=supervised_and(0.2, **BALANCED),
            twin='picks, 4 rounds',
        ),
        *(Regime(f'picks, 4 rounds, {wrong:.0%} wrong', 'picks', wrong=wrong) for wrong in (0.1, 0.2, 0.3)),
        Regime('region picks, 4 rounds', 'picks', cells=8),
        Regime(
            'region picks, 4 rounds, normalised x 0.3',
            'picks',
            cells=8,
            preference=supervised_and(0.3, **NORMALISED),
            twin='region picks, 4 rounds',
        ),
        Regime('topology-matched, 4 rounds', 'picks', pairing='topology'),
        Regime(
            'topology-matched, 4 rounds, normalised x 0.3',
            'picks',
            pairing='topology',
            preference=supervised_and(0.3, **NORMALISED),
            twin='topology-matched, 4 rounds',
        ),
        Regime('consensus, 4 rounds', 'consensus'),
        Regime('consensus, 4 rounds, guard', 'consensus', guard=True),
        Regime('consensus mask, 4 rounds', 'consensus_mask'),
        Regime('picks, 4 rounds, guard', 'picks', guard=True),
    ]
    normalised = supervised_and(0.3, **NORMALISED)
    by = {regime.name: regime for regime in table}
    table += [
        replace(r, name=f'{r.name}, {label}', group='explore', twin=None, **change)
        for r, label, change in (
            (by['labelled only'], 'lr 3e-4', dict(lr=3e-4)),
            (by['all masks drawn'], 'lr 3e-4', dict(lr=3e-4)),
            (by['picks, 4 rounds'], 'lr 3e-4', dict(lr=3e-4)),
            (by['picks, 4 rounds'], 'a quarter labelled', dict(labelled_share=0.25)),
            (by['picks, 4 rounds'], '10 candidates', dict(num_samples=10)),
            (by['region picks, 4 rounds'], 'lr 3e-4', dict(lr=3e-4)),
            (by['consensus, 4 rounds'], 'lr 3e-4', dict(lr=3e-4)),
            (by['mean teacher'], 'lr 3e-4', dict(lr=3e-4)),
            (by['picks, 4 rounds, normalised x 0.3'], 'lr 3e-4', dict(lr=3e-4)),
            (by['picks, 4 rounds, normalised x 0.3'], 'reference reset', dict(reference='round')),
            (by['picks, 4 rounds, normalised x 0.3'], 'components', dict(pairing='components')),
            *(
                (by[name], 'half labelled', dict(labelled_share=0.5))
                for name in (
                    'labelled only',
                    'all masks drawn',
                    'picks, 4 rounds',
                    'picks, 4 rounds, normalised x 0.3',
                    'picks, 4 rounds, 20% wrong',
                    'region picks, 4 rounds',
                    'region picks, 4 rounds, normalised x 0.3',
                    'consensus, 4 rounds, guard',
                    'picks, 4 rounds, guard',
                )
            ),
        )
    ]
    table += [
        Regime('all masks drawn', 'masks', lr=3e-4, zero=True),
        Regime('picks, 4 rounds', 'picks', lr=3e-4, zero=True),
        Regime(
            'picks, 4 rounds, normalised x 0.3',
            'picks',
            lr=3e-4,
            zero=True,
            preference=normalised,
            twin='picks, 4 rounds',
        ),
        Regime('picks, 8 rounds', 'picks', rounds=8, lr=3e-4, zero=True),
        Regime(
            'picks, 8 rounds, normalised x 0.3',
            'picks',
            rounds=8,
            lr=3e-4,
            zero=True,
            preference=normalised,
            twin='picks, 8 rounds',
        ),
        Regime('region picks, 4 rounds', 'picks', cells=8, lr=3e-4, zero=True),
        Regime(
            'region picks, 4 rounds, normalised x 0.3',
            'picks',
            cells=8,
            lr=3e-4,
            zero=True,
            preference=normalised,
            twin='region picks, 4 rounds',
        ),
        Regime(
            'region picks, 8 rounds, normalised x 0.3',
            'picks',
            rounds=8,
            cells=8,
            lr=3e-4,
            zero=True,
            preference=normalised,
        ),
        Regime(
            'picks, 4 rounds, normalised x 0.3, 10 candidates',
            'picks',
            lr=3e-4,
            zero=True,
            preference=normalised,
            num_samples=10,
        ),
        Regime('topology-matched, 4 rounds', 'picks', pairing='topology', lr=3e-4, zero=True),
        Regime(
            'topology-matched, 4 rounds, normalised x 0.3',
            'picks',
            pairing='topology',
            lr=3e-4,
            zero=True,
            preference=normalised,
            twin='topology-matched, 4 rounds',
        ),
        Regime('consensus, 4 rounds, guard', 'consensus', guard=True, lr=3e-4, zero=True),
        Regime('picks, 1 round', 'picks', rounds=1, lr=3e-4, zero=True),
    ]
    return table
