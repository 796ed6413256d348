"""Diagnostics of an objective: how smooth it is, and how noisy its gradients are."""

from jaxsgd.diagnostics.noise_scale import noise_scale
from jaxsgd.diagnostics.smoothness import Smoothness, estimate_smoothness

__all__ = ["Smoothness", "estimate_smoothness", "noise_scale"]
