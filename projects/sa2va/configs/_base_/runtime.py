"""How a run is executed, logged and saved, whatever it trains."""
custom_imports = dict(imports=['sa2va_dpo.plugins'], allow_failed_imports=False)
default_scope = 'mmengine'
# mmengine's FlexibleRunner, which settles the config, fits it to the machine and fills the caches first.
runner_type = 'Sa2VARunner'

log_interval = 10  # iterations; every logged value is the mean over them and over all processes

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='VesselSegMetric')
test_evaluator = dict(type='VesselSegMetric')

default_hooks = dict(
    logger=dict(type='LoggerHook', log_metric_by_epoch=False),
    # 'auto': whenever there is a validation.
    checkpoint=dict(type='ExactCheckpointHook', by_epoch=False, interval='auto', save_last=True, save_best='dice',
                    rule='greater'),
    # Pictures of a few validation images, of at most 20 validations; count=0 shows none.
    validation_images=dict(type='ValidationImagesHook', count=4),
    # What a run was trained with and what came of it, in TensorBoard's tab HPARAMS.
    hparams=dict(type='HParamsHook'))
log_processor = dict(type='RunLogProcessor', by_epoch=False)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
# trackers='wandb', 'mlflow' or 'swanlab' reports there, too (docs/training.md).
randomness = dict()  # its seed is the run's
env_cfg = dict(dist_cfg=dict(backend='nccl'))
