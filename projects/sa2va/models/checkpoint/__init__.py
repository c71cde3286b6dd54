"""Every format of weights on disk, behind one door: other rooms import from here and read no weight file themselves.

``layout`` (what a directory says about itself), ``reading``, ``exporting`` and ``new`` (the released Hugging Face
layout, exact both ways), ``adapter`` (what was trained, on a base), ``run`` (what a training run saved),
``upstream_pth`` (what upstream's trainer saved). Nothing from a checkpoint is ever executed: weights are safetensors
or ``weights_only`` pickles, configuration is JSON, and ``.py`` files are only copied along.
"""
from .adapter import base_hash, check_base, export_adapter, load_adapter
from .exporting import CARD_FILE, OF_THE_BASE, copy_with_sam_size, copy_with_view, export_checkpoint
from .initialise import initialise
from .layout import (
                     OWN_FILE,
                     SAM2_DIMS,
                     assign,
                     base_directory,
                     default_dtype,
                     empty_weights,
                     is_adapter,
                     is_released_size,
                     read_config,
                     read_sam2_dims,
                     read_view,
                     released_shapes,
                     write_view,
)
from .new import init_checkpoint, stream_checkpoint
from .reading import Source, load_checkpoint, read_again
from .run import check_names, load_trained_tensors, read_trained_tensors, weights_only_loads

__all__ = ['CARD_FILE', 'OF_THE_BASE', 'OWN_FILE', 'SAM2_DIMS', 'Source', 'assign', 'base_directory', 'base_hash',
           'check_base', 'check_names', 'copy_with_sam_size', 'copy_with_view', 'default_dtype', 'empty_weights',
           'export_adapter', 'export_checkpoint', 'init_checkpoint', 'initialise', 'is_adapter', 'is_released_size',
           'load_adapter', 'load_checkpoint', 'load_trained_tensors', 'read_again', 'read_config', 'read_sam2_dims',
           'read_trained_tensors', 'read_view', 'released_shapes', 'stream_checkpoint', 'weights_only_loads',
           'write_view']
