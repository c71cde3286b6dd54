"""Preference pairs for training, images with ground truth for validation and test, and what watches such a run."""
train_dataloader = dict(
    num_workers=2,
    sampler=dict(type='DrawSampler', shuffle=True),
    collate_fn=dict(type='dpo_collate'),
    dataset=dict(type='DPOVesselDataset', pairs_per_image=4, flip_prob=0.5))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='vessel_seg_collate'),
    dataset=dict(type='VesselSegDataset', source=dict(type='AnnotatedMasks', ann_file='val_annotations.json')))
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='vessel_seg_collate'),
    dataset=dict(type='VesselSegDataset', source=dict(type='AnnotatedMasks', ann_file='test_annotations.json')))

# Early stopping: add dict(type='EarlyStoppingHook', monitor='dice', rule='greater', min_delta=0.0, patience=5).
# mmengine's own min_delta is 0.1: it would stop a run that gains 0.015 Dice at every validation.
custom_hooks = [dict(type='PairValidationHook'), dict(type='StartValidationHook'),
                dict(type='PreferenceAlarmHook', min_drop=0.02, stop=False)]

# cache=dict(...) (docs/speed.md) and rounds=dict(...) are off where they are left out. They are not None here: mmengine
# does not merge a child's dict into None.
