"""Import this once and every class of the plugin is registered (configs do it through ``custom_imports``)."""
from mmengine.registry import DATASETS, MODELS

from sa2va_dpo.datasets import dpo_vessel_dataset, round_pairs, seg_dataset  # noqa: F401
from sa2va_dpo.drawn import dataset as drawn_dataset  # noqa: F401
from sa2va_dpo.engine import (  # noqa: F401
    checkpointing,
    hooks,
    hparams,
    log_processor,
    loops,
    optim,
    pair_validation,
    rounds,
    runner,
    sampling,
    trackers,
    validation_images,
)
from sa2va_dpo.engine.xtuner import xtuner_builder
from sa2va_dpo.evaluation import vessel_metric  # noqa: F401
from sa2va_dpo.models import run_model, sa2va_dpo_model, sa2va_seg_model  # noqa: F401

BUILDER = xtuner_builder()
# XTuner configs build through its own registry; the same classes answer there under the same names.
for _registry, _names in ((MODELS, ('Sa2VADPOModel', 'Sa2VASegModel', 'Sa2VARunModel')),
                          (DATASETS, ('DPOVesselDataset', 'VesselSegDataset'))):
    for _name in _names:
        if BUILDER is not None and BUILDER.get(_name) is None:
            BUILDER.register_module(name=_name, module=_registry.get(_name))
