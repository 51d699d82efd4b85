"""What is assumed of a device before anything was measured: the constants of its class.

Chosen so that the temperatures are right for the class (how far full load ends above the room, and how fast);
nobody is ever told them as measured. They start the calibration, bound it, and bound how boldly it is trusted.
"""

from typing import Literal

import msgspec

from exo.gpu.thermal.rc_model import RCModel

DeviceClass = Literal["datacenter", "desktop", "laptop", "embedded", "phone"]


class ThermalPrior(msgspec.Struct, frozen=True, kw_only=True):
    """The middle of a class."""

    full_watts: float
    """What full load draws: the scale of all powers."""
    limit_c: float
    """Assumed where the device does not tell its own."""
    model: RCModel

    def scaled_to(self, full_watts: float) -> "ThermalPrior":
        """Return the prior of a larger or smaller device of this class: the same temperatures at full load."""
        ratio = full_watts / self.full_watts
        model = msgspec.structs.replace(
            self.model,
            heat_capacity_j_per_c=self.model.heat_capacity_j_per_c * ratio,
            heat_loss_w_per_c=self.model.heat_loss_w_per_c * ratio,
            die_c_per_w=self.model.die_c_per_w / ratio,
        )
        return msgspec.structs.replace(self, full_watts=full_watts, model=model)


def _prior(full_watts: float, capacity: float, loss: float, die_c: float, limit_c: float) -> ThermalPrior:
    return ThermalPrior(
        full_watts=full_watts,
        limit_c=limit_c,
        model=RCModel(
            heat_capacity_j_per_c=capacity,
            heat_loss_w_per_c=loss,
            ambient_c=27.0,
            die_c_per_w=die_c / full_watts,
        ),
    )


PRIORS: dict[DeviceClass, ThermalPrior] = {
    "datacenter": _prior(700.0, 1500.0, 13.0, die_c=23.0, limit_c=85.0),
    "desktop": _prior(450.0, 900.0, 8.0, die_c=20.0, limit_c=83.0),
    "laptop": _prior(90.0, 260.0, 1.5, die_c=20.0, limit_c=87.0),
    "embedded": _prior(40.0, 300.0, 0.6, die_c=16.0, limit_c=85.0),
    "phone": _prior(9.0, 70.0, 0.16, die_c=18.0, limit_c=70.0),
}


def class_of(*, full_watts: float | None, has_battery: bool, is_embedded: bool = False) -> DeviceClass:
    """Guess a class from what is known: the power limit, whether there is a battery, whether it is a small board."""
    if has_battery:
        return "phone" if full_watts is not None and full_watts <= 15 else "laptop"
    if is_embedded or (full_watts is not None and full_watts <= 75):
        return "embedded"
    return "datacenter" if full_watts is not None and full_watts > 575 else "desktop"
