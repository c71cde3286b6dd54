"""Second stage of the bundled checkpoint: the first stage's weights at 640 px, on drawings it has not seen.

    python tools/set_sam_size.py work_dirs/tiny_stage1_512 work_dirs/tiny_stage1 --size 640
    python tools/train.py projects/sa2va/configs/sa2va_sft_tiny_640.py --work-dir work_dirs/sft_tiny_640
"""
_base_ = ['./sa2va_sft_tiny.py']
from sa2va_dpo.engine.config import complete

checkpoint = 'work_dirs/tiny_stage1'
work_dir = 'work_dirs/sft_tiny_640'
max_iters = 500
lr = 5e-4
score_size = 320  # half the input size, as in the first stage

train_dataloader = dict(dataset=dict(source=dict(seed=2, length=4000)))

complete(_base_, globals())
