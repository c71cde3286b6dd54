"""Optimiser construction: one parameter group per part of the policy."""
from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PolicyOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Groups by part (own learning rate through ``lr_mult``), weight decay on matrices only.

    mmengine's default constructor matches parameters by substrings of their names and hands frozen parameters to
    the optimiser too, for which DeepSpeed would then hold states.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        cfg = dict(self.optimizer_cfg)
        lr, decay = cfg['lr'], cfg.get('weight_decay', 0.0)
        groups = []
        for part in model.parameter_groups():
            for is_matrix in (True, False):
                params = [p for _, p in part['params'] if (p.ndim >= 2) == is_matrix]
                if params:
                    groups.append(dict(params=params, lr=lr * part['lr_mult'],
                                       weight_decay=decay if is_matrix else 0.0))
        cfg['params'] = groups
        wrapper = dict(self.optim_wrapper_cfg)
        wrapper.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=OPTIMIZERS.build(cfg)))
