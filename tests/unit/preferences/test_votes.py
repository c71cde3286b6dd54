"""Judges that vote, by hand on a strip of pixels."""
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.preferences.candidates import Candidate, Context
from sa2va_dpo.preferences.config import GenerateConfig
from sa2va_dpo.preferences.judges import Evidence, Mixture
from sa2va_dpo.preferences.sampler import Policies, PolicySampler
from sa2va_dpo.preferences.votes import MIRRORED, Committee, Consensus, Pick


def span(start, stop):
    x = np.arange(20)[None]
    return Candidate((x >= start) & (x < stop), 'x')


def evidence(gt=None, stem='picture', seed=0, **sampler):
    return Evidence(gt, None, Context(stem, (1, 20), seed, gt, SimpleNamespace(**sampler)))


def test_consensus_is_the_mean_over_the_mirrored_views():
    """Four views believe 0.9, 0.9, 0.1, 0.3 in the first ten pixels (mean 0.55) and 0.4 in the next five."""
    believed = dict(zip(MIRRORED, (0.9, 0.9, 0.1, 0.3)))
    asked = []

    def probability(view):
        asked.append(view)
        return np.where(span(0, 10).mask, believed[view], np.where(span(10, 15).mask, 0.4, 0.0)).astype(np.float32)

    seen = evidence(probability=probability)
    candidates = [span(0, 10), span(0, 5), span(0, 20)]
    assert Consensus().scores(candidates, seen).tolist() == [1.0, 0.5, 0.5]
    assert asked == ['identity', 'hflip', 'vflip', 'rot180']
    # Expected: 10 x 0.55 + 5 x 0.4 = 7.5 vessel pixels believed in. All ten: 5.5 / (7.5 + 10 - 5.5).
    expected = Consensus(measure='expected').scores(candidates, seen)
    assert expected.tolist() == pytest.approx([5.5 / 12, 2.75 / 9.75, 7.5 / 20])
    assert not Consensus.needs_ground_truth


def test_consensus_of_a_policy_comes_back_to_the_image(policy, preprocessor, drawing):
    """The fake policy commutes with mirroring, so its consensus is its own answer."""
    image, _ = drawing
    sampler = PolicySampler(Policies(None, 'cpu', policy, preprocessor), image, 'x', 'q', 0)
    belief = Consensus().belief([], Evidence(None, None, Context('x', image.shape[:2], 0, None, sampler)))
    np.testing.assert_allclose(belief, sampler.probability(), atol=1e-5)
    assert belief.shape == image.shape[:2] and belief.dtype == np.float32


def write(folder, stem, candidate):
    folder.mkdir(exist_ok=True)
    Image.fromarray(candidate.mask.astype(np.uint8) * 255).save(folder / f'{stem}.png')


def test_the_majority_of_a_committee(tmp_path):
    """Members say 0-10, 0-6, 3-8: pixels 0-8 have two votes of three."""
    for name, member in (('a', span(0, 10)), ('b', span(0, 6)), ('c', span(3, 8))):
        write(tmp_path / name, 'picture', member)
    judge = Committee(folders=[str(tmp_path / name) for name in 'abc'])
    assert judge.scores([span(0, 8), span(0, 4), span(8, 20)], evidence()).tolist() == [1.0, 0.5, 0.0]
    # Believed: 1/3 or more; sum of p is (10 + 6 + 5) / 3 = 7.
    expected = Committee(folders=judge_folders(tmp_path), measure='expected').scores([span(0, 10)], evidence())
    assert expected.tolist() == pytest.approx([7 / 10])


def judge_folders(root):
    return [str(root / name) for name in 'abc']


def test_members_without_a_mask_do_not_vote(tmp_path):
    write(tmp_path / 'a', 'other', span(0, 10))
    judge = Committee(folders=[str(tmp_path / 'a')])
    assert np.isnan(judge.scores([span(0, 5)], evidence())).all()
    asked = []

    def masks(requests):
        asked.extend(request.checkpoint for request in requests)
        return [(span(0, 10).mask, 0.9)]

    mixed = Committee(checkpoints=['some/model'], folders=[str(tmp_path / 'a')])
    assert mixed.scores([span(0, 5)], evidence(masks=masks)).tolist() == [0.5] and 'some/model' in asked


@pytest.mark.parametrize('make, words', [
    (lambda: Committee(), 'at least one member'), (lambda: Consensus(measure='mean'), 'majority, expected'),
    (lambda: Consensus(views=()), 'at least one'), (lambda: Pick(wrong=1.5), 'between 0 and 1')])
def test_impossible_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_pick_is_the_best_and_says_nothing_about_the_others():
    gt = span(0, 10).mask
    assert Pick().scores([span(0, 4), span(0, 9), span(0, 8)], evidence(gt)).tolist() == [0, 1, 0]


def test_wrong_picks_are_as_frequent_as_said_and_always_the_same():
    gt, candidates = span(0, 10).mask, [span(0, 4), span(0, 9), span(0, 8)]
    picks = [int(np.argmax(Pick(0.3).scores(candidates, evidence(gt, f'i{k}')))) for k in range(600)]
    again = [int(np.argmax(Pick(0.3).scores(candidates, evidence(gt, f'i{k}')))) for k in range(600)]
    assert picks == again
    share = np.bincount(picks, minlength=3) / 600
    assert share[1] == pytest.approx(0.7, abs=0.06) and share[0] == pytest.approx(0.15, abs=0.05)
    other = [int(np.argmax(Pick(0.3).scores(candidates, evidence(gt, f'i{k}', seed=1)))) for k in range(600)]
    assert other != picks
    assert Mixture([(1, Pick(1.0))]).pick([0.1, 0.9], evidence(gt), 'cell 0 0') == 0, (
        'also where it decides cell by cell'
    )


def test_judges_that_ask_the_policy_need_one(folders):
    with pytest.raises(InputError, match='--judge Consensus: asks the policy'):
        GenerateConfig(mode='from_predictions', images_dir=folders.pred, gt_dir=folders.gt, output_dir=folders.out,
                       judge=('Consensus',))
