"""The embedded default: the bundled tiny checkpoint on the drawn demo set; two CPU cores are enough."""
_base_ = ['./sa2va_dpo_vessel.py']

checkpoint = 'projects/sa2va/assets/tiny_sa2va'
data_root = 'work_dirs/dpo_vessel_training/pairs'
max_iters = 80

model = dict(
    checkpoint=checkpoint,
    # A few million parameters and a new image style: the SAM2 encoder has to move (docs/method.md).
    trainable=dict(
        _delete_=True,
        llm=dict(mode='lora', r=8, alpha=16),
        sam2_encoder='full',
        sam2_neck='full',
        projector='full',
        mask_decoder='full'),
    # The study's choice with ground truth among the candidates; at beta 1 the push fades once the two regions are a few
    # logits apart.
    preference=dict(beta=1.0, reduction='balanced', weight=0.2),
    score_size=320)

train_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(preprocessor=checkpoint),
    dataset=dict(data_root=data_root, preprocessor=checkpoint, score_size=320))
val_dataloader = dict(
    batch_size=2, num_workers=0, collate_fn=dict(preprocessor=checkpoint),
    dataset=dict(preprocessor=checkpoint, source=dict(data_root=data_root)))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=None, max_iters=max_iters, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=40))
# 320 visits of 72 views: each view's tokens and reference logits are computed once, at its first visit (docs/speed.md).
cache = dict(dir='work_dirs/cache', lazy=True)
