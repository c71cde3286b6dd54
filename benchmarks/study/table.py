"""The rows of the study: what is trained, on which pairs, with which objective."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

FULL = dict(sam2_encoder='full', sam2_neck='full', projector='full', mask_decoder='full')
LORA = dict(sam2_encoder=dict(mode='lora', r=32, alpha=64), sam2_neck='full', projector='full', mask_decoder='full')
DECODER = dict(projector='full', mask_decoder='full')
PARTS = dict(full=FULL, lora=LORA, decoder=DECODER)
BALANCED = dict(reduction='balanced', beta=1.0)
NORMALISED = dict(reduction='disagreement', beta=1.0)


@dataclass(frozen=True)
class Cell:
    """One recipe.

    Attributes:
        pairs: ``self`` (chosen is any better candidate of the policy), ``self_best`` (chosen is the best of them),
            ``self_hard`` (the hardest half of ``self``: smallest disagreement), ``self_topology`` (as ``self``, with
            clDice for the judge instead of IoU), ``gt`` (ground truth among the candidates), ``gt_only`` (chosen is the
            ground truth).
        preference: fields of ``PreferenceConfig``.
        twin: name of the run without the preference term that differs in the preference weight alone.
        score_size: side of the square on which masks are scored, pixels.
        refresh: mine the pairs again from the current policy after each of this many equal stretches of the run.
    """

    name: str
    pairs: str
    preference: dict = field(hash=False)
    parts: str = 'full'
    lr: float = 3e-4
    steps: int = 100
    reference: str = 'initial'
    twin: str | None = None
    refresh: int = 1
    score_size: int = 320
    group: str = 'main'


def supervised_and(weight: float, supervised: float = 1.0, supervised_cldice: float = 0.5, **preference) -> dict:
    """``supervised`` times (BCE x 2 + Dice x 0.5 + clDice x ``supervised_cldice``) beside the preference term."""
    return dict(weight=weight, supervised_weight=supervised, supervised_bce=2.0, supervised_dice=0.5,
                supervised_cldice=supervised_cldice, **preference)


def plain(weight: float, **preference) -> dict:
    """The supervised term without clDice: Sa2VA's own supervised loss."""
    return supervised_and(weight, supervised_cldice=0.0, **preference)


def cells() -> list[Cell]:
    """The table, baselines first."""
    table = [
        Cell('supervised on ground truth', 'gt_only', plain(0.0)),
        Cell('gt_only: supervised only', 'gt_only', supervised_and(0.0)),
        Cell('guide as written', 'self', dict(type='guide')),
        Cell('guide as written, no reference', 'self', dict(type='guide'), reference='none'),
        Cell('guide as written, with ground truth', 'gt', dict(type='guide')),
    ]
    for pairs in ('self_best', 'self', 'gt', 'gt_only'):
        twin = f'{pairs}: supervised only'
        if pairs != 'gt_only':
            table.append(Cell(twin, pairs, supervised_and(0.0)))
        for weight in (0.2, 1.0, 3.0):
            table.append(Cell(f'{pairs}: supervised + balanced x {weight:g}', pairs,
                              supervised_and(weight, **BALANCED), twin=twin))
        table.append(Cell(f'{pairs}: supervised + normalised x 1', pairs, supervised_and(1.0, **NORMALISED), twin=twin))
        table.append(Cell(f'{pairs}: supervised + guide x 1', pairs, supervised_and(1.0), twin=twin))
    bounded = (('normalised x 0.3', supervised_and(0.3, **NORMALISED)),
               ('normalised, beta 3, x 0.3', supervised_and(0.3, reduction='disagreement', beta=3.0)),
               ('normalised, IPO to 1 logit, x 0.3',
                supervised_and(0.3, reduction='disagreement', beta=0.5, loss_type='ipo')))
    for pairs in ('self', 'self_best', 'gt'):
        table += [Cell(f'{pairs}: supervised + {name}', pairs, preference, twin=f'{pairs}: supervised only',
                       group='bounded') for name, preference in bounded]
    table.append(Cell('gt: supervised + balanced, beta 0.1, x 1', 'gt',
                      supervised_and(1.0, reduction='balanced', beta=0.1),
                      twin='gt: supervised only', group='bounded'))
    for name, preference in (('balanced', dict(**BALANCED)), ('balanced, clip 3', dict(**BALANCED, clip=3.0)),
                             ('balanced, clip 3, KL', dict(**BALANCED, clip=3.0, kl_weight=1.0)),
                             ('normalised, clip 3', dict(**NORMALISED, clip=3.0))):
        table.append(Cell(f'self: {name}, no supervised term', 'self', preference, lr=1e-4))
    table += [
        Cell('self_hard: supervised only', 'self_hard', supervised_and(0.0), group='attempts'),
        Cell('self_hard: supervised + balanced x 1', 'self_hard', supervised_and(1.0, **BALANCED),
             twin='self_hard: supervised only', group='attempts'),
        Cell('self_best, refreshed 2 x: supervised only', 'self_best', supervised_and(0.0), refresh=2,
             group='attempts'),
        Cell('self_best, refreshed 2 x: supervised + balanced x 1', 'self_best', supervised_and(1.0, **BALANCED),
             refresh=2, twin='self_best, refreshed 2 x: supervised only', group='attempts'),
        Cell('self_best: supervised x 0.3 only', 'self_best', supervised_and(0.0, 0.3), group='attempts'),
        Cell('self_best: supervised x 0.3 + balanced x 1', 'self_best', supervised_and(1.0, 0.3, **BALANCED),
             twin='self_best: supervised x 0.3 only', group='attempts'),
        Cell('self_best, refreshed 4 x: supervised only', 'self_best', supervised_and(0.0), refresh=4,
             group='attempts'),
        *(Cell(f'self_best, refreshed 4 x: supervised + normalised x {weight:g}', 'self_best',
               supervised_and(weight, **NORMALISED), refresh=4, twin='self_best, refreshed 4 x: supervised only',
               group='attempts') for weight in (0.3, 1.0)),
        Cell('self_topology: supervised only', 'self_topology', supervised_and(0.0), group='attempts'),
        Cell('self_topology: supervised + normalised x 0.3', 'self_topology', supervised_and(0.3, **NORMALISED),
             twin='self_topology: supervised only', group='attempts'),
    ]
    for name, preference in (('plain supervised', plain),
                             ('supervised with clDice x 1', partial(supervised_and, supervised_cldice=1.0))):
        twin = f'gt: {name} only'
        table += [Cell(twin, 'gt', preference(0.0), group='attempts'),
                  Cell(f'gt: {name} + balanced x 0.2', 'gt', preference(0.2, **BALANCED), twin=twin, group='attempts')]
    for parts, lr in (
        ('full', 1e-4),
        ('full', 5e-4),
        ('full', 1e-3),
        ('lora', 3e-4),
        ('lora', 1e-3),
        ('decoder', 1e-3),
    ):
        label = f'{parts} lr {lr:g}'
        table += [
            Cell(f'supervised on ground truth, {label}', 'gt_only', plain(0.0), parts=parts, lr=lr, group='rates'),
            Cell(
                f'gt: supervised + balanced x 0.2, {label}',
                'gt',
                supervised_and(0.2, **BALANCED),
                parts=parts,
                lr=lr,
                group='rates',
            ),
            Cell(
                f'self_best: supervised only, {label}',
                'self_best',
                supervised_and(0.0),
                parts=parts,
                lr=lr,
                group='rates',
            ),
            Cell(
                f'self_best: supervised + balanced x 1, {label}',
                'self_best',
                supervised_and(1.0, **BALANCED),
                parts=parts,
                lr=lr,
                twin=f'self_best: supervised only, {label}',
                group='rates',
            ),
        ]
    return table
