"""The answer: what one device can do, and for each figure whether it was measured, specified or estimated."""

from typing import Literal

import msgspec

Basis = Literal["measured", "specified", "estimated"]
"""`measured`: on this very device; `specified`: its maker or its driver says so; `estimated`: from others like it."""
Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]

_INSTEAD: dict[Precision, tuple[Precision, ...]] = {
    "float32": ("float32",),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("int8", "float16", "bfloat16", "float32"),
    "int4": ("int4", "int8", "float16", "bfloat16", "float32"),
}
"""Numbers can be widened on the way: what a device has no arithmetic for, it computes in one of these."""


class Figure(msgspec.Struct, frozen=True, gc=False):
    """One number.

    Attributes:
        value: In the unit of the field that holds it.
        basis: How it came to be known.
        source: Who says so; of an estimate, from what it was made and why.
    """

    value: float
    basis: Basis
    source: str


class MeasuredFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on a device. It counts for more than what anybody says."""

    memory_bandwidth_bytes_per_s: float | None = None
    flops_per_s: dict[Precision, float] = {}


class DeviceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can do at most, with no other work on it."""

    known_as: str | None
    """Which device of the catalogue it is; None: it is not there."""
    memory_bandwidth_bytes_per_s: Figure
    flops_per_s: dict[Precision, Figure]
    """Without sparsity. `float32` is always there; another only where the device has arithmetic of its own for it."""
    pcie_generation: int | None = None

    @property
    def is_estimated(self) -> bool:
        """Whether one of the two figures that a placement needs most is an estimate."""
        return bool(self.estimates)

    @property
    def estimates(self) -> tuple[str, ...]:
        """For a person: which figures are estimates, and why."""
        figures = (
            ("memory bandwidth", self.memory_bandwidth_bytes_per_s),
            ("compute", self.compute_in("float16")),
        )
        return tuple(f"{name}: {one.source}" for name, one in figures if one.basis == "estimated")

    def compute_in(self, precision: Precision) -> Figure:
        """Return the FLOP/s for weights of a precision: the fastest way in which the device can compute with them.

        Of those that were measured, if any was: what is only said is no faster than what was seen.
        """
        found = [self.flops_per_s[one] for one in _INSTEAD[precision] if one in self.flops_per_s]
        seen = [one for one in found if one.basis == "measured"]
        return max(seen or found, key=lambda one: one.value)
