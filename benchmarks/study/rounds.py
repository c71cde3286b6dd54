"""One regime on one split: rounds of mining from the current policy, training between them, the test half at the end.

No selection: figures are those of the last step (of the last kept round where the guard is on).
"""
from __future__ import annotations

import copy
import math
import time

import numpy as np
import torch
from scipy import ndimage

from sa2va_dpo.evaluation.counts import confusion_counts, dice, iou
from sa2va_dpo.evaluation.topology import cldice
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.preferences.candidates import Candidate, Context, pick_distinct
from sa2va_dpo.preferences.pairing import Scored, TopologyMatched, select_pairs
from sa2va_dpo.preferences.sources import DEFAULT_SOURCES, GREEDY, SOURCES

from .bank import Bank
from .regimes import Regime
from .run import learning_rate
from .step import optimizer_of, step
from .table import FULL

BATCH, PAIRS_PER_IMAGE, SCORE_SIZE = 4, 4, 320
MIRRORED = ('identity', 'hflip', 'vflip', 'rot180')
TEACHER_DECAY = 0.98
TOPOLOGY_GAP = 0.02


@torch.no_grad()
def score(policy, bank: Bank, stems: list[str], with_cldice: bool = True) -> dict[str, float]:
    """Means over images."""
    policy.eval()
    rows = []
    for stem in stems:
        batch = bank.inputs(stem, 'identity')
        logits = upsample_logits(policy(batch).low_res.float(), policy.sam_size, bank.truth[stem].shape)
        mask, truth = (logits[0] > 0).cpu().numpy(), bank.truth[stem]
        row = dict(dice=dice(confusion_counts(mask, truth)))
        if with_cldice:
            row['cldice'] = cldice(mask, truth)
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class Mining:
    """Candidates of one policy, the judge's word on them, and the pairs that follow."""

    def __init__(self, bank: Bank, regime: Regime) -> None:
        self.bank, self.regime = bank, regime
        self.sources = [(float(name.partition('=')[2] or 1), SOURCES.module_dict[name.partition('=')[0]]())
                        for name in DEFAULT_SOURCES]
        self.stats: dict[str, list[float]] = {}

    @torch.no_grad()
    def candidates(self, policy, stem: str, seed: int) -> tuple[list[Candidate], Context]:
        context = Context(
            stem=stem, size=self.bank.truth[stem].shape, seed=seed, sampler=self.bank.sampler(policy, stem, seed)
        )
        sources = [(weight, list(source.proposals(context))) for weight, source in self.sources]
        return pick_distinct([GREEDY], sources, self.regime.num_samples, 0.98, context)[0], context

    @torch.no_grad()
    def consensus(self, context: Context) -> np.ndarray:
        """Mean probability over the mirrored views, float32 [H, W]."""
        return np.mean([_probability(context.sampler, view) for view in MIRRORED], axis=0)

    def pairs(self, policy, stem: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(chosen, rejected) masks of an unlabelled image."""
        regime, truth = self.regime, self.bank.truth[stem]
        kept, context = self.candidates(policy, stem, seed)
        masks = [c.mask for c in kept]
        true_iou = [_iou(mask, truth) for mask in masks]
        self._note(greedy_iou=true_iou[0], best_iou=max(true_iou))
        if regime.pairing == 'topology':
            chosen_over = select_pairs(TopologyMatched(), Scored(true_iou, masks, truth), TOPOLOGY_GAP)[0]
            self._note(comparisons=len(chosen_over), **(
                dict(chosen_iou=float(np.mean([true_iou[i] for i, _ in chosen_over]))) if chosen_over else {}))
            return [(masks[i], masks[j]) for i, j in chosen_over]
        if regime.unlabelled == 'masks':
            chosen = truth
        elif regime.unlabelled == 'consensus_mask':
            chosen = self.consensus(context) > 0.5
        elif regime.unlabelled == 'consensus':
            voted = self.consensus(context) > 0.5
            chosen = masks[int(np.argmax([_iou(mask, voted) for mask in masks]))]
        else:
            rng = context.rng('pick')
            chosen = self._composite(masks, truth, rng) if regime.cells else masks[self._pick(true_iou, rng)]
        self._note(chosen_iou=_iou(chosen, truth))
        if regime.pairing == 'components':
            return _components(chosen, masks[0])
        return [(chosen, mask) for mask in masks if not np.array_equal(mask, chosen)]

    def labelled_pairs(self, policy, stem: str, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        kept, _ = self.candidates(policy, stem, seed)
        return [(self.bank.truth[stem], c.mask) for c in kept]

    def _pick(self, scores: list[float], rng: np.random.Generator) -> int:
        best = int(np.argmax(scores))
        if rng.random() < self.regime.wrong and len(scores) > 1:
            return int(rng.choice([i for i in range(len(scores)) if i != best]))
        return best

    def _composite(self, masks: list[np.ndarray], truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out, changed = np.zeros_like(truth), 0
        for rows in np.array_split(np.arange(truth.shape[0]), self.regime.cells):
            for columns in np.array_split(np.arange(truth.shape[1]), self.regime.cells):
                cell = np.ix_(rows, columns)
                right = [float((mask[cell] == truth[cell]).mean()) for mask in masks]
                out[cell] = masks[self._pick(right, rng)][cell]
                changed += not np.array_equal(out[cell], masks[0][cell])
        self._note(cells_changed=changed)
        return out

    def _note(self, **values: float) -> None:
        for name, value in values.items():
            self.stats.setdefault(name, []).append(value)


def _probability(sampler, view: str) -> np.ndarray:
    output = sampler._decode(None, view, sampler.prompt, [(0.0, 0.0, 0)])
    return sampler._restore(None, view, output, 0, 1, 0)[0].sigmoid().cpu().numpy()


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return iou(confusion_counts(a, b))


def _components(chosen: np.ndarray, greedy: np.ndarray, largest: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each of the largest connected components on which ``chosen`` and the greedy mask differ, as a pair of its own."""
    labels, count = ndimage.label(chosen != greedy, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    pairs = []
    for index in np.argsort(-sizes)[:largest]:
        region = labels == index + 1
        pairs.append((chosen, np.where(region, greedy, chosen)))
    return pairs


class Run:
    """Model, optimiser and schedule of one regime; the step is the runner's own (``tests/unit/benchmarks`` holds them
    equal)."""

    def __init__(self, base: str, bank: Bank, regime: Regime, steps: int, seed: int) -> None:
        self.bank, self.regime, self.steps = bank, regime, steps
        torch.manual_seed(seed)
        self.rng = np.random.default_rng([seed, 5])
        reference = 'stored' if regime.preference.get('weight') else 'none'
        self.model = Sa2VADPOModel(base, FULL, {**regime.preference, 'use_reference': reference == 'stored'},
                                   reference=reference, score_size=SCORE_SIZE).to(bank.device)
        self.optimizer, self.parameters = optimizer_of(self.model, regime.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: learning_rate(step, steps))
        self.references: dict[tuple[str, str], torch.Tensor] = {}
        self.reference_policy = None
        self.targets: dict[tuple[str, int, str], torch.Tensor] = {}
        self.teacher = copy.deepcopy(self.model.policy).eval() if regime.unlabelled == 'teacher' else None

    @torch.no_grad()
    def reference_low_res(self, stem: str, view: str) -> torch.Tensor:
        if (stem, view) not in self.references:
            self.references[stem, view] = self.reference_policy(self.bank.inputs(stem, view)).low_res.float()
        return self.references[stem, view]

    def set_reference(self) -> None:
        """The policy as it is now becomes the reference."""
        if self.model.preference.use_reference:
            self.references.clear()
            self.reference_policy = copy.deepcopy(self.model.policy).eval()

    def data(self, draws: list[tuple[str, list, bool, bool]]) -> dict:
        """The runner's batch for (image, pairs, horizontal, vertical) draws; a pair is two uint8 targets."""
        batch, chosen, rejected, index = [], [], [], []
        for row, (stem, group, horizontal, vertical) in enumerate(draws):
            view = {(0, 0): 'identity', (1, 0): 'hflip', (0, 1): 'vflip', (1, 1): 'rot180'}[
                int(horizontal), int(vertical)
            ]
            batch.append((self.bank.inputs(stem, view), stem, view))
            axes = [axis for axis, on in ((1, horizontal), (0, vertical)) if on]
            for pair in group:
                chosen.append(pair[0].flip(axes))
                rejected.append(pair[1].flip(axes))
                index.append(row)
        inputs = dict(sam_pixel_values=torch.cat([b['sam_pixel_values'] for b, _, _ in batch]),
                      seg_states=torch.cat([b['seg_states'] for b, _, _ in batch]),
                      seg_index=torch.tensor([(i, 0) for i in range(len(batch))], device=self.bank.device),
                      original_sizes=[b['original_sizes'][0] for b, _, _ in batch])
        if self.model.preference.use_reference:
            inputs['reference_low_res'] = torch.cat([self.reference_low_res(stem, view) for _, stem, view in batch])
        return dict(
            batch=inputs,
            chosen=torch.stack(chosen),
            rejected=torch.stack(rejected),
            image_index=torch.tensor(index, device=self.bank.device),
            gaps=torch.ones(len(index), device=self.bank.device),
        )

    def step(self, data: dict) -> dict:
        self.model.train()
        return step(self.model, self.optimizer, self.schedule, self.parameters, data)

    def draw(self, labelled: dict[str, list], unlabelled: dict[str, list]) -> list:
        draws = []
        for _ in range(BATCH):
            share = self.regime.labelled_share
            own = self.rng.random() < (len(labelled) / (len(labelled) + len(unlabelled)) if share is None else share)
            pool = labelled if labelled and (own or not unlabelled) else unlabelled
            stem = list(pool)[self.rng.integers(len(pool))]
            group = pool[stem]
            # Pairs of one image share the chosen mask: without a preference term one says what all say.
            count = min(PAIRS_PER_IMAGE if self.regime.preference.get('weight') else 1, len(group))
            picked = self.rng.choice(len(group), count, replace=False)
            draws.append((stem, [group[i] for i in picked], *(self.rng.random(2) < 0.5)))
        return draws

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.model.policy.parameters()):
            slow.lerp_(fast, 1 - TEACHER_DECAY)

    @torch.no_grad()
    def teach(self, stem: str) -> torch.Tensor:
        logits = upsample_logits(self.teacher(self.bank.inputs(stem, 'identity')).low_res.float(), SCORE_SIZE)
        return (logits[0] > 0).to(torch.uint8) * 255

    def state(self) -> tuple:
        return copy.deepcopy(self.model.policy.state_dict()), copy.deepcopy(self.optimizer.state_dict())

    def restore(self, state: tuple) -> None:
        rates = [g['lr'] for g in self.optimizer.param_groups]
        self.model.policy.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        for group, rate in zip(self.optimizer.param_groups, rates):
            group['lr'] = rate


def run_regime(base: str, bank: Bank, regime: Regime, k: int, seed: int, steps: int | None = None) -> dict:
    """Metrics of the trained policy on the test images, with what mining saw and what the guard did."""
    steps = steps or regime.steps
    run = Run(base, bank, regime, steps, seed)
    run.set_reference()
    labelled = bank.labelled(k)
    others = [] if regime.unlabelled == 'none' else [stem for stem in bank.train if stem not in labelled]
    mining, taken_back, in_a_row, seconds = Mining(bank, regime), 0, 0, 0.0
    kept, best = run.state() if regime.guard else None, score(run.model.policy, bank, bank.validation, False)['dice']
    done = 0
    for round_ in range(regime.rounds):
        started = time.time()
        run.model.eval()
        number = seed * 1000 + round_
        pools = dict(labelled={}, unlabelled={})
        wants_rejected = bool(regime.preference.get('weight'))
        for stem in labelled:
            truth = bank.target(bank.truth[stem], SCORE_SIZE)
            pools['labelled'][stem] = (
                [(truth, bank.target(r, SCORE_SIZE)) for _, r in mining.labelled_pairs(run.model.policy, stem, number)]
                if wants_rejected
                else [(truth, truth)]
            )
        for stem in others:
            if regime.unlabelled == 'teacher' or (regime.unlabelled == 'masks' and not wants_rejected):
                truth = bank.target(bank.truth[stem], SCORE_SIZE)
                pools['unlabelled'][stem] = [(truth, truth)]
                continue
            pairs = [(bank.target(c, SCORE_SIZE), bank.target(r, SCORE_SIZE))
                     for c, r in mining.pairs(run.model.policy, stem, number)]
            if pairs:
                pools['unlabelled'][stem] = pairs
        if round_ and regime.reference == 'round':
            run.set_reference()
        seconds += time.time() - started
        until = math.ceil(steps * (round_ + 1) / regime.rounds)
        while done < until:
            draws = run.draw(**pools)
            if run.teacher is not None:
                draws = [(stem, [(run.teach(stem),) * 2] if stem in pools['unlabelled'] else group, h, v)
                         for stem, group, h, v in draws]
            run.step(run.data(draws))
            if run.teacher is not None:
                run.follow()
            done += 1
        if regime.guard:
            now = score(run.model.policy, bank, bank.validation, False)['dice']
            if now < best:
                run.restore(kept)
                taken_back, in_a_row = taken_back + 1, in_a_row + 1
                if in_a_row == 2:
                    break
            else:
                kept, best, in_a_row = run.state(), now, 0
    return dict(score(run.model.policy, bank, bank.test), mining_seconds=round(seconds, 1), taken_back=taken_back,
                validation=score(run.model.policy, bank, bank.validation, False)['dice'],
                clicks=len(others) * regime.rounds if regime.unlabelled == 'picks' else 0,
                **{name: float(np.mean(values)) for name, values in mining.stats.items()})
