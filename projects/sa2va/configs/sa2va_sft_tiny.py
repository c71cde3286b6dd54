"""Supervised training of the tiny Sa2VA on drawn vessels: the recipe of the bundled checkpoint.

    python tools/make_tiny_checkpoint.py work_dirs/tiny_init --seed 0
    python tools/train.py projects/sa2va/configs/sa2va_sft_tiny.py --work-dir work_dirs/sft_tiny

About ten minutes on one data-centre GPU. docs/tiny_checkpoint.md has the figures and how to export the result.
"""
custom_imports = dict(imports=['sa2va_dpo.plugins'], allow_failed_imports=False)

checkpoint = 'work_dirs/tiny_init'
work_dir = 'work_dirs/sft_tiny'
seed = 0
max_iters = 1700
batch_size = 48
lr = 1e-3

model = dict(
    type='Sa2VASegModel', checkpoint=checkpoint, trainable='all', score_size=256, hypotheses='all',
    bce_weight=2.0, dice_weight=0.5)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=14,
    persistent_workers=True,
    sampler=dict(type='DrawSampler', shuffle=True),
    collate_fn=dict(type='vessel_seg_collate', preprocessor=checkpoint),
    dataset=dict(
        type='VesselSegDataset', preprocessor=checkpoint, training=True, score_size=256, flip_prob=0.5,
        brightness=0.25, seed=seed,
        source=dict(
            type='DrawnVesselDataset', styles=dict(fundus=0.6, angiogram=0.4), seed=seed, length=6000, size=512,
            cache_dir='work_dirs/drawn_cache')))
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='vessel_seg_collate', preprocessor=checkpoint),
    dataset=dict(
        type='VesselSegDataset', preprocessor=checkpoint,
        source=dict(
            type='DrawnVesselDataset', styles=dict(fundus=0.6, angiogram=0.4), seed=seed + 1, length=100, size=512,
            cache_dir='work_dirs/drawn_cache')))
test_dataloader = val_dataloader
val_evaluator = dict(type='VesselSegMetric')
test_evaluator = val_evaluator

runner_type = 'FlexibleRunner'
strategy = dict(type='SingleDeviceStrategy')
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='bfloat16', constructor='PolicyOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.98), weight_decay=0.02),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='OneCycleLR', eta_max=lr, total_steps=max_iters, pct_start=0.1, by_epoch=False)]
train_cfg = dict(type='PreferenceTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='ExactCheckpointHook', by_epoch=False, interval=max_iters, save_last=True, max_keep_ckpts=1,
                    save_best='dice', rule='greater'))
custom_hooks = []
log_processor = dict(by_epoch=False, window_size=50)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
randomness = dict(seed=seed)
env_cfg = dict(cudnn_benchmark=True)
default_scope = 'mmengine'
