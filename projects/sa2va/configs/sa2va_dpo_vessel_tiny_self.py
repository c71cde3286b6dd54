"""The tiny config for self candidates: pairs of the policy's own masks, without ground truth
(``--no-gt-candidate``)."""
_base_ = ['./sa2va_dpo_vessel_tiny.py']

# Averaged over the whole disagreement region and heavier: with self candidates this term adds most (docs/method.md).
model = dict(preference=dict(reduction='disagreement', weight=0.3))
