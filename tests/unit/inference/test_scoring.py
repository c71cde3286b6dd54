"""The one loop that predicts and scores."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.datasets.seg_dataset import FolderMasks
from sa2va_dpo.inference.scoring import evaluate_model, images_of, load_for_inference, predict_and_score, some_of

TRUE = np.zeros((4, 6), bool)
TRUE[1:3] = True  # 12 pixels


class Rows(torch.nn.Module):
    """Predicts that the first ``image`` rows from row 1 on are vessel."""

    checkpoint = ''

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, bool, bool]] = []

    def test_step(self, data):
        self.seen.append((len(data), self.training, torch.is_grad_enabled()))
        for item in data:
            pred = np.zeros((4, 6), bool)
            pred[1:1 + item['rows']] = True
            yield dict(pred_mask=pred, gt_mask=item.get('gt', TRUE), image_id=item['id'])


ITEMS = [dict(id='none', rows=0), dict(id='half', rows=1), dict(id='all', rows=2), dict(id='more', rows=3)]


@pytest.mark.parametrize('batch_size, batches', [(1, [1, 1, 1, 1]), (3, [3, 1]), (8, [4])])
def test_every_image_is_scored_once_in_order(batch_size, batches):
    model = Rows()
    found = [(sample['image_id'], scores['dice'], scores['precision'], scores['recall'])
             for sample, scores in predict_and_score(model, ITEMS, batch_size, collate=list)]
    # By hand: the true mask has two rows; Dice is 2 * common / (predicted + 2).
    assert [name for name, *_ in found] == ['none', 'half', 'all', 'more']
    assert [numbers for _, *numbers in found[1:]] == [
        [pytest.approx(2 / 3), 1, .5], [1, 1, 1], [pytest.approx(.8), pytest.approx(2 / 3), 1]]
    assert found[0][1] == 0
    assert [count for count, *_ in model.seen] == batches


@pytest.mark.parametrize('count, most, kept', [
    (3, 8, [0, 1, 2]), (16, 8, list(range(0, 16, 2))), (17, 8, list(range(0, 17, 3))), (5, 1, [0])])
def test_some_are_evenly_spread_and_never_more(count, most, kept):
    some = some_of(list(range(count)), most)
    assert list(some) == kept and len(some) <= most


def test_the_model_is_in_eval_mode_without_gradients_and_then_as_it_was():
    for training in (True, False):
        model = Rows().train(training)
        loop = predict_and_score(model, ITEMS, collate=list)
        next(loop)
        assert torch.is_grad_enabled(), 'between two images the caller decides about gradients'
        list(loop)
        assert model.training is training
        assert all(seen[1:] == (False, False) for seen in model.seen)


def test_another_score_is_asked_for_and_a_misfit_names_the_image():
    scored = predict_and_score(
        Rows(), ITEMS, score=lambda predicted, true: dict(pixels=int(predicted.sum())), collate=list
    )
    assert [scores['pixels'] for _, scores in scored] == [0, 6, 12, 18]
    with pytest.raises(ValueError, match='^wide: '):
        list(predict_and_score(Rows(), [dict(id='wide', rows=1, gt=np.zeros((4, 7), bool))], collate=list))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three images of two sizes."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(1)
    for name in ('images', 'gt'):
        (root / name).mkdir()
    for index, size in enumerate(((40, 56), (40, 56), (64, 48))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(root / f'images/{index}.png')
        Image.fromarray(rng.integers(0, 2, size, np.uint8) * 255).save(root / f'gt/{index}.png')
    return root


def test_batches_of_images_of_different_sizes_score_as_single_ones(micro_checkpoint, folder, tmp_path):
    model = load_for_inference(micro_checkpoint, 'cpu')
    assert not model.training
    dataset = images_of(FolderMasks(str(folder / 'images'), str(folder / 'gt')), micro_checkpoint)
    single = [(sample['pred_mask'], scores) for sample, scores in predict_and_score(model, dataset)]
    batched = [(sample['pred_mask'], scores) for sample, scores in predict_and_score(model, dataset, batch_size=3)]
    assert [mask.shape for mask, _ in batched] == [(40, 56), (40, 56), (64, 48)]
    for (one, scores), (other, others) in zip(single, batched):
        assert (one != other).mean() < 0.002, 'only pixels at the threshold may differ'
        assert others['dice'] == pytest.approx(scores['dice'], abs=5e-3)
    means = evaluate_model(model, dataset, tmp_path / 'out', overlays=False)
    assert means['n_images'] == 3 and means['dice'] == pytest.approx(np.mean([s['dice'] for _, s in single]))
    written = json.loads((tmp_path / 'out/metrics.json').read_text())
    assert written['metrics']['dice']['mean'] == pytest.approx(means['dice'])
