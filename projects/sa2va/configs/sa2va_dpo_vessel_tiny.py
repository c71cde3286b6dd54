"""The embedded default: the bundled tiny checkpoint on the drawn demo set; two CPU cores are enough."""
_base_ = ['./sa2va_dpo_vessel.py']
from sa2va_dpo.engine.config import complete

checkpoint = 'projects/sa2va/assets/tiny_sa2va'
data_root = 'work_dirs/dpo_vessel_training/pairs'
lr = 3e-4
max_iters = 80
batch_size = 4
score_size = 320
# The study's choice with ground truth among the candidates (with weight below); at beta 1 the push fades once the two
# regions are a few logits apart.
beta = 1.0

model = dict(
    # A few million parameters and a new image style: the SAM2 encoder has to move (docs/method.md).
    trainable=dict(
        _delete_=True,
        llm=dict(mode='lora', r=8, alpha=16),
        sam2_encoder='full',
        sam2_neck='full',
        projector='full',
        mask_decoder='full'),
    preference=dict(weight=0.2))

train_dataloader = dict(num_workers=0)
val_dataloader = dict(batch_size=2, num_workers=0)
test_dataloader = dict(batch_size=2, num_workers=0)

# Four validations and two checkpoints: a validation takes as long as several of these steps.
train_cfg = dict(val_interval=20)
default_hooks = dict(checkpoint=dict(interval=40))
# 320 visits of 72 views: each view's tokens and reference logits are computed once, at its first visit (docs/speed.md).
cache = dict(dir='work_dirs/cache', lazy=True)

complete(_base_, globals())
