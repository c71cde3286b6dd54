"""Losses on maps of logits: pure functions that read no file and know no model.

``preference`` (DPO between two masks), ``supervised`` (against one mask), ``kl`` (nearness to the reference) and
``objective`` (their weighted sum, as a config states it); shapes and checks are in ``tensors``.
"""
from .kl import kl_to_reference
from .objective import PreferenceConfig, combined_loss
from .preference import (
                         LOSS_TYPES,
                         REDUCTIONS,
                         PreferenceOutput,
                         check_combination,
                         log_ratio_margin,
                         mask_log_prob,
                         preference_loss,
)
from .supervised import soft_cldice, soft_skeleton, supervised_term
from .tensors import soft_dice

__all__ = ['LOSS_TYPES', 'REDUCTIONS', 'PreferenceConfig', 'PreferenceOutput', 'check_combination', 'combined_loss',
           'kl_to_reference', 'log_ratio_margin', 'mask_log_prob', 'preference_loss', 'soft_cldice', 'soft_dice',
           'soft_skeleton', 'supervised_term']
