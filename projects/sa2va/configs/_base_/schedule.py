"""AdamW under DeepSpeed ZeRO-2 in bf16, warm-up and cosine decay, counted in iterations."""
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2, offload_optimizer=dict(device='cpu')),
    bf16=dict(enabled=True),
    gradient_clipping=1.0,
    exclude_frozen_parameters=True,
    # torch's AdamW steps the offloaded states, so no kernel has to be compiled.
    config=dict(zero_force_ds_cpu_optimizer=False, zero_allow_untested_optimizer=True))
optim_wrapper = dict(
    type='DeepSpeedOptimWrapper',
    constructor='PolicyOptimWrapperConstructor',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.1, by_epoch=False, begin=10),
]
# 'auto': every 200 iterations, more often where that would be fewer than five validations a run.
train_cfg = dict(type='PreferenceTrainLoop', val_interval='auto')
