"""What may be cached under which training."""
import pytest

from sa2va_dpo.caching.kinds import choose
from sa2va_dpo.common.errors import InputError

DECODER = dict(projector=dict(mode='full'), mask_decoder=dict(mode='full'))
LORA = dict(mode='lora')


def names(items='auto', trainable=DECODER, has_reference=True, brightness=0.0):
    return [kind.name for kind in choose(items, trainable, has_reference, brightness)]


@pytest.mark.parametrize('trainable, expected', [
    # A frozen language model: its state replaces its tokens; conv_s0 and conv_s1 move with the decoder.
    (DECODER, ['seg_states', 'sam2_levels', 'reference_low_res']),
    (dict(projector=dict(mode='full')), ['seg_states', 'sam2_features', 'reference_low_res']),
    (dict(DECODER, llm=LORA), ['vision_tokens', 'sam2_levels', 'reference_low_res']),
    (dict(DECODER, llm=LORA, sam2_encoder=LORA), ['vision_tokens', 'reference_low_res']),
    (dict(DECODER, vision=LORA), ['sam2_levels', 'reference_low_res']),
    (dict(vision_projector=dict(mode='full'), sam2_neck=dict(mode='full')), ['reference_low_res']),
    ('all', ['reference_low_res'])])
def test_auto_takes_what_depends_on_nothing_that_moves(trainable, expected):
    assert names(trainable=trainable) == expected


def test_nothing_is_cached_of_images_drawn_anew_and_no_reference_where_there_is_none():
    assert names(brightness=0.1) == []
    assert 'reference_low_res' not in names(has_reference=False)


def test_named_kinds():
    assert names(['vision_tokens', 'reference_low_res']) == ['vision_tokens', 'reference_low_res']
    assert names([]) == []


@pytest.mark.parametrize('items, settings, message', [
    (['seg_state'], {}, "unknown 'seg_state'; the kinds are seg_states"),
    ('all', {}, '"auto" or a list'),
    (['seg_states'], dict(trainable=dict(llm=LORA)), 'seg_states cannot be cached: it depends on llm'),
    (['sam2_features'], {}, 'it depends on mask_decoder'),
    (['sam2_levels'], dict(brightness=0.1), 'drawn anew'),
    (['reference_low_res'], dict(has_reference=False), 'no reference')])
def test_impossible_wishes_are_refused(items, settings, message):
    with pytest.raises(InputError, match=message):
        names(items, **settings)
