"""Settings are refused before anything is read or written, in one line that names the flag."""
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.preferences.config import GenerateConfig

GOOD = dict(mode='generate', images_dir='i', gt_dir='g', output_dir='o', model_path='m')


@pytest.mark.parametrize('changes, message', [
    (dict(mode='guess'), '--mode'),
    (dict(model_path=None), '--model_path'),
    (dict(num_samples=1), '--num_samples 1'),
    (dict(num_samples=0), '--num_samples 0'),
    (dict(num_samples=True), '--num_samples True'),
    (dict(num_samples=2.5), '--num_samples 2.5'),
    (dict(min_iou_gap=-0.1), '--min_iou_gap -0.1'),
    (dict(min_iou_gap=1.0), '--min_iou_gap 1.0'),
    (dict(min_iou_gap=float('nan')), '--min_iou_gap nan'),
    (dict(max_pairs_per_image=0), '--max_pairs_per_image 0'),
    (dict(val_fraction=1.0), '--val_fraction 1.0'),
    (dict(val_fraction=-0.2), '--val_fraction -0.2'),
    (dict(val_fraction=float('inf')), '--val_fraction inf'),
    (dict(test_fraction=1.0), '--test_fraction 1.0'),
    (dict(test_fraction=float('nan')), '--test_fraction nan'),
    (dict(val_fraction=0.5, test_fraction=0.5), '--val_fraction 0.5 and --test_fraction 0.5'),
    (dict(gt_dir=None, judge=('Agreement',), test_fraction=0.2), '--test_fraction 0.2: without --gt_dir'),
    (dict(seed=-1), '--seed -1'),
    (dict(prompt='  '), '--prompt'),
    (dict(max_candidate_iou=0.0), '--max_candidate_iou'),
    (dict(sources=('Nonsense',)), '--sources Nonsense: unknown; choose from'),
    (dict(sources=('Views=heavy',)), '--sources Views=heavy'),
    (dict(sources=('Views=0',)), '--sources Views=0'),
    (dict(sources=(dict(type='Views', names=('upside',)),)), '--sources Views: unknown view upside'),
    (dict(sources=(dict(type='Thresholds', probabilities=(0, 1)),)), '--sources Thresholds'),
    (dict(sources=(dict(type='Views', colour=1),)), '--sources Views'),
    (dict(judge=('Taste',)), '--judge Taste'),
    (dict(judge=()), '--judge: name at least one'),
    (dict(pairing='Random'), '--pairing Random'),
    (dict(gt_dir=None), '--gt_dir: missing; --judge'),
    (dict(gt_dir=None, judge=('Agreement',), include_gt=True), '--gt_dir: missing; --include_gt'),
    (dict(gt_dir=None, judge=('Agreement',), sources=('GroundTruthCorruption',)), '--gt_dir: missing; --sources'),
    (dict(mode='from_predictions', sources=('Views',)), '--sources Views: needs a policy'),
    (dict(mode='from_predictions', gt_dir=None, judge=('Agreement',)), '--source_images_dir: missing'),
])
def test_refused(changes, message):
    with pytest.raises(InputError) as error:
        GenerateConfig(**{**GOOD, **changes})
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_fingerprint_is_that_of_what_is_written(tmp_path):
    def fingerprint(**changes):
        return GenerateConfig(**{**GOOD, 'model_path': str(tmp_path), **changes}).fingerprint(['a.png'])

    base = fingerprint()
    assert base == fingerprint(output_dir='elsewhere') == fingerprint(device='cpu') == fingerprint(link=True)
    assert len({base, fingerprint(seed=1), fingerprint(num_samples=6), fingerprint(sources=('Views',)),
                fingerprint(judge=('Dice',))}) == 5
    (tmp_path / 'model.safetensors').write_bytes(b'one')
    one = fingerprint()
    (tmp_path / 'model.safetensors').write_bytes(b'two')
    assert len({base, one, fingerprint()}) == 3


def test_fractions_by_default():
    config = GenerateConfig(**GOOD)
    assert (config.val_fraction, config.test_fraction) == (0.1, 0.2)
    config = GenerateConfig(**{**GOOD, 'gt_dir': None}, judge=('Agreement',))
    assert (config.val_fraction, config.test_fraction) == (0, 0)
    assert GenerateConfig(**GOOD).fingerprint([]) == GenerateConfig(
        **GOOD, val_fraction=0.1, test_fraction=0.2
    ).fingerprint([])


def test_weights():
    config = GenerateConfig(
        **GOOD, sources=('Views=2.5', 'Prompts', dict(type='Thresholds', weight=3, probabilities=(0.4,)))
    )
    assert [(w, type(s).__name__) for w, s in config.build_sources()] == [
        (2.5, 'Views'),
        (1, 'Prompts'),
        (3, 'Thresholds'),
    ]
    assert [w for w, _ in GenerateConfig(**GOOD, judge=('IoU=1', 'ClDice=3')).build_judge().judges] == [0.25, 0.75]
