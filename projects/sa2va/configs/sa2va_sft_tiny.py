"""Supervised training of the tiny Sa2VA on drawn vessels: the recipe of the bundled checkpoint.

    python tools/make_tiny_checkpoint.py work_dirs/tiny_init --seed 0
    python tools/train.py projects/sa2va/configs/sa2va_sft_tiny.py --work-dir work_dirs/sft_tiny

About ten minutes on one data-centre GPU. docs/tiny_checkpoint.md has the figures and how to export the result.
"""
_base_ = ['./_base_/runtime.py']
from sa2va_dpo.engine.config import complete

checkpoint = 'work_dirs/tiny_init'
work_dir = 'work_dirs/sft_tiny'
seed = 0
max_iters = 1700
batch_size = 48
score_size = 256  # half the SAM2 input size
lr = 1e-3
log_interval = 50

model = dict(
    type='Sa2VASegModel', trainable='all', hypotheses='all', bce_weight=2.0, dice_weight=0.5)

# Which drawings there are is data, not chance: their seeds stay apart, whatever the run's seed.
train_dataloader = dict(
    num_workers=14,
    persistent_workers=True,
    sampler=dict(type='DrawSampler', shuffle=True),
    collate_fn=dict(type='vessel_seg_collate'),
    dataset=dict(
        type='VesselSegDataset', training=True, flip_prob=0.5, brightness=0.25,
        source=dict(
            type='DrawnVesselDataset', styles=dict(fundus=0.6, angiogram=0.4), seed=0, length=6000, size=512,
            cache_dir='work_dirs/drawn_cache')))
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='vessel_seg_collate'),
    dataset=dict(
        type='VesselSegDataset',
        source=dict(
            type='DrawnVesselDataset', styles=dict(fundus=0.6, angiogram=0.4), seed=1, length=100, size=512,
            cache_dir='work_dirs/drawn_cache')))
test_dataloader = val_dataloader

strategy = dict(type='SingleDeviceStrategy')
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='bfloat16', constructor='PolicyOptimWrapperConstructor',
    optimizer=dict(type='AdamW', betas=(0.9, 0.98), weight_decay=0.02),
    clip_grad=dict(max_norm=1.0))
# Its peak is lr, its length that of the run.
param_scheduler = [dict(type='OneCycleLR', total_steps='auto', pct_start=0.1, by_epoch=False)]
# Validated and saved once: the last iteration always is.
train_cfg = dict(type='PreferenceTrainLoop', val_interval=10 ** 6)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
env_cfg = dict(cudnn_benchmark=True)

complete(_base_, globals())
