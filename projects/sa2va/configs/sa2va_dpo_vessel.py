"""Preference training of a released Sa2VA on vessel masks (full size, GPU).

A setting of the first block is set here, or by its name on the command line (--cfg-options beta=0.2), and everything
that uses it follows (docs/training.md). Paths are relative to the repository root. Without a GPU the same config runs
in float32 under mmengine's plain strategies, which is only practical for small checkpoints.
"""
_base_ = ['./_base_/runtime.py', './_base_/pairs.py', './_base_/schedule.py']
from sa2va_dpo.engine.config import complete

checkpoint = 'models/sa2va_vessel_hf'  # released Hugging Face layout
data_root = 'data/dpo_vessel'          # output of scripts/generate_dpo_dataset.py
work_dir = 'work_dirs/dpo_vessel_training'
seed = 0

beta = 0.1             # small: pushes harder towards chosen; 0.2 if it does not learn, 0.05 if it collapses
label_smoothing = 0.0  # share of pairs assumed to be labelled the wrong way round (conservative DPO)
lr = 5e-6              # 1e-6 to start carefully, 1e-5 is large
max_epochs = 2         # 1 to 3 is enough; max_iters, where it is set, takes its place
min_iou_gap = 0.05     # too small: weak signal; too large: little data; more than 0.1 is recommended
batch_size = 1         # images a process and step; every pair of an image costs next to nothing more
score_size = 512       # side of the square on which masks are scored, pixels; 1024 costs memory, see docs/method.md

model = dict(
    type='Sa2VADPOModel',
    # Each part: 'frozen', 'full' or LoRA, and optionally its own learning rate through lr_mult.
    trainable=dict(
        llm=dict(mode='lora', r=64, alpha=128, dropout=0.05),
        sam2_encoder=dict(mode='lora', r=32, alpha=64),
        projector='full',
        mask_decoder='full'),
    # dict(type='guide') is the guide's objective as written; docs/method.md says what it does to masks.
    preference=dict(
        # The two regions of a disagreement averaged separately; the guide's mean over all pixels moves next to nothing.
        reduction='balanced', weight=1.0,
        # Supervised term: without it preference learning collapses masks; its clDice keeps thin vessels connected.
        supervised_weight=1.0, supervised_bce=2.0, supervised_dice=0.5, supervised_cldice=0.5),
    # 'initial' costs one more forward pass and no memory; 'none' is the guide's simplified form.
    reference='initial')
# activation_checkpointing is left out: where the GPU's memory does not suffice, which the first step measures, layers
# of a checkpoint of released size keep their inputs only, the memory of one in place of all, for about one more
# forward pass of what is trained (docs/speed.md). dict() is off, dict(llm=True) chooses.

complete(_base_, globals())
