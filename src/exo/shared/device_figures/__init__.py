"""What devices can do, as data: memory bandwidth and FLOP/s, each with where it is from."""

from exo.shared.device_figures.catalogue import KnownDevice, catalogue
from exo.shared.device_figures.figures import Basis, DeviceFigures, Figure, MeasuredFigures, Precision
from exo.shared.device_figures.lookup import figures_for

__all__ = [
    "Basis",
    "DeviceFigures",
    "Figure",
    "KnownDevice",
    "MeasuredFigures",
    "Precision",
    "catalogue",
    "figures_for",
]
