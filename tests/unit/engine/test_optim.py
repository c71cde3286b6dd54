"""Every open parameter is in the optimiser once, with its part's learning rate."""
import torch
from torch import nn

from sa2va_dpo.engine.optim import PolicyOptimWrapperConstructor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def parameter_groups(self):
        return [dict(part='a', lr_mult=0.5, params=list(self.a.named_parameters())),
                dict(part='b', lr_mult=1.0, params=list(self.b.named_parameters()))]


def test_groups():
    model = Model()
    wrapper = PolicyOptimWrapperConstructor(dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1)))(model)
    groups = wrapper.optimizer.param_groups
    seen = {id(p): group for group in groups for p in group['params']}
    assert len(seen) == 4
    assert seen[id(model.a.weight)]['lr'] == 5e-3 and seen[id(model.b.weight)]['lr'] == 1e-2
    assert seen[id(model.a.weight)]['weight_decay'] == 0.1 and seen[id(model.a.bias)]['weight_decay'] == 0.0
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
