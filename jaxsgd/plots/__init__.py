"""Plots of runs: each function draws on matplotlib axes (extra `plots`) and returns them."""

from jaxsgd.plots.curves import fitted_line, learning_curve, learning_curves
from jaxsgd.plots.surfaces import basins, surface
from jaxsgd.plots.sweeps import sweep

__all__ = ["basins", "fitted_line", "learning_curve", "learning_curves", "surface", "sweep"]
