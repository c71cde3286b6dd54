"""Vessel images drawn from a seed, with exact ground truth: training data of the bundled checkpoint, and the demo."""
from .dataset import DrawnVesselDataset, write_dataset
from .demo import DemoShift
from .draw import STYLES, DrawnSample, draw

__all__ = ['STYLES', 'DemoShift', 'DrawnSample', 'DrawnVesselDataset', 'draw', 'write_dataset']
