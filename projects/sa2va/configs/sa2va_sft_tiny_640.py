"""Second stage of the bundled checkpoint: the first stage's weights at 640 px, on drawings it has not seen.

    python tools/set_sam_size.py work_dirs/tiny_stage1_512 work_dirs/tiny_stage1 --size 640
    python tools/train.py projects/sa2va/configs/sa2va_sft_tiny_640.py --work-dir work_dirs/sft_tiny_640
"""
_base_ = ['./sa2va_sft_tiny.py']

checkpoint = 'work_dirs/tiny_stage1'
work_dir = 'work_dirs/sft_tiny_640'
max_iters = 500
lr = 5e-4

# Half the input size, as in the first stage.
model = dict(checkpoint=checkpoint, score_size=320)
train_dataloader = dict(
    collate_fn=dict(preprocessor=checkpoint),
    dataset=dict(preprocessor=checkpoint, score_size=320, source=dict(seed=2, length=4000)))
val_dataloader = dict(collate_fn=dict(preprocessor=checkpoint), dataset=dict(preprocessor=checkpoint))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [dict(type='OneCycleLR', eta_max=lr, total_steps=max_iters, pct_start=0.1, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
