"""Preference training of a released Sa2VA on vessel masks (full size, GPU).

Paths are relative to the repository root. Without a GPU the same config runs in float32 under mmengine's plain
strategies, which is only practical for small checkpoints.
"""
custom_imports = dict(imports=['sa2va_dpo.plugins'], allow_failed_imports=False)

# ---- what a run is about -------------------------------------------------------------------------------------------
checkpoint = 'models/sa2va_vessel_hf'  # released Hugging Face layout
data_root = 'data/dpo_vessel'          # output of scripts/generate_dpo_dataset.py
work_dir = 'work_dirs/dpo_vessel_training'
seed = 0

beta = 0.1             # small: pushes harder towards chosen; 0.2 if it does not learn, 0.05 if it collapses
label_smoothing = 0.0  # share of pairs assumed to be labelled the wrong way round (conservative DPO)
lr = 5e-6              # 1e-6 to start carefully, 1e-5 is large
max_epochs = 2         # 1 to 3 is enough
min_iou_gap = 0.05     # too small: weak signal; too large: little data; more than 0.1 is recommended

# ---- model ---------------------------------------------------------------------------------------------------------
model = dict(
    type='Sa2VADPOModel',
    checkpoint=checkpoint,
    # Each part: 'frozen', 'full' or LoRA, and optionally its own learning rate through lr_mult.
    trainable=dict(
        llm=dict(mode='lora', r=64, alpha=128, dropout=0.05),
        sam2_encoder=dict(mode='lora', r=32, alpha=64),
        projector='full',
        mask_decoder='full'),
    # dict(type='guide') is the guide's objective as written; docs/method.md says what it does to masks.
    preference=dict(
        # The two regions of a disagreement averaged separately; the guide's mean over all pixels moves next to nothing.
        beta=beta, label_smoothing=label_smoothing, reduction='balanced', weight=1.0,
        # The anchor: without it preference learning collapses masks; its clDice keeps thin vessels connected.
        sft_weight=1.0, sft_bce=2.0, sft_dice=0.5, sft_cldice=0.5),
    # 'initial' costs one more forward pass and no memory; 'none' is the guide's simplified form.
    reference='initial',
    score_size=512)  # side of the square on which masks are scored, pixels; 1024 costs memory, see docs/method.md

# ---- data ----------------------------------------------------------------------------------------------------------
train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DrawSampler', shuffle=True),
    collate_fn=dict(type='dpo_collate', preprocessor=checkpoint),
    dataset=dict(
        type='DPOVesselDataset', data_root=data_root, preprocessor=checkpoint, score_size=512,
        pairs_per_image=4, min_iou_gap=min_iou_gap, flip_prob=0.5, seed=seed))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='vessel_seg_collate', preprocessor=checkpoint),
    dataset=dict(
        type='VesselSegDataset', preprocessor=checkpoint,
        source=dict(type='AnnotatedMasks', data_root=data_root, ann_file='val_annotations.json')))
test_dataloader = val_dataloader
val_evaluator = dict(type='VesselSegMetric')
test_evaluator = val_evaluator

# ---- optimisation --------------------------------------------------------------------------------------------------
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2, offload_optimizer=dict(device='cpu')),
    bf16=dict(enabled=True),
    gradient_clipping=1.0,
    train_micro_batch_size_per_gpu=1,
    exclude_frozen_parameters=True,
    # torch's AdamW steps the offloaded states, so no kernel has to be compiled.
    config=dict(zero_force_ds_cpu_optimizer=False, zero_allow_untested_optimizer=True))
optim_wrapper = dict(
    type='DeepSpeedOptimWrapper',
    constructor='PolicyOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.1, by_epoch=False, begin=10),
]
train_cfg = dict(type='PreferenceTrainLoop', max_epochs=max_epochs, val_interval=200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# ---- logs and checkpoints ------------------------------------------------------------------------------------------
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    checkpoint=dict(type='ExactCheckpointHook', by_epoch=False, interval=200, save_last=True,
                    save_best='dice', rule='greater'))
# Early stopping: add dict(type='EarlyStoppingHook', monitor='dice', rule='greater', patience=5).
custom_hooks = [dict(type='PairValidationHook'), dict(type='StartValidationHook'),
                dict(type='PreferenceAlarmHook', min_drop=0.02, stop=False)]
log_processor = dict(by_epoch=False, window_size=10)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
randomness = dict(seed=seed)
env_cfg = dict(dist_cfg=dict(backend='nccl'))
default_scope = 'mmengine'
