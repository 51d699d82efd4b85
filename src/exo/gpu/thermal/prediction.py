"""How far predictions were off: each is carried on with the power that really flowed, and judged when it is due."""

from math import sqrt

import msgspec

from exo.gpu.thermal.rc_model import RCModel

EVERY_S = 5.0
ROLLING_SHARE = 0.15
"""Weight of the newest error: a mean over about the last half minute of judgements."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """The body's temperature as a model that was current at `made_s` carries it on."""

    made_s: float
    body_c: float
    model: RCModel
    is_near_judged: bool = False


class HorizonError(msgspec.Struct, frozen=True, kw_only=True):
    """The rolling root mean square of the errors at one horizon, the sensor's own noise included."""

    count: int = 0
    mean_square: float = 0.0

    def with_error(self, error_c: float) -> "HorizonError":
        """Return it with one more judgement."""
        weight = max(1 / (self.count + 1), ROLLING_SHARE)
        mean_square = self.mean_square + weight * (error_c * error_c - self.mean_square)
        return HorizonError(count=self.count + 1, mean_square=mean_square)

    @property
    def rms_c(self) -> float | None:
        """None: nothing was judged yet."""
        return sqrt(self.mean_square) if self.count else None


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """Those that are under way, and what became of the others."""

    near_s: float
    """The controller's horizon."""
    far_s: float
    """What is shown to people."""
    pending: tuple[Prediction, ...] = ()
    near: HorizonError = HorizonError()
    far: HorizonError = HorizonError()

    def judged(
        self, t_s: float, measured_c: float, power_watts: float, lagged_watts: float, elapsed_s: float
    ) -> "Predictions":
        """Carry all on to a reading at `t_s`, and judge those that are due."""
        near, far = self.near, self.far
        pending: list[Prediction] = []
        for one in self.pending:
            body_c = one.model.body_after_c(one.body_c, power_watts, elapsed_s)
            error_c = body_c + one.model.die_c_per_w * lagged_watts - measured_c
            is_near_judged = one.is_near_judged
            if not is_near_judged and t_s >= one.made_s + self.near_s:
                near = near.with_error(error_c)
                is_near_judged = True
            if t_s >= one.made_s + self.far_s:
                far = far.with_error(error_c)
            else:
                pending.append(Prediction(one.made_s, body_c, one.model, is_near_judged))
        return msgspec.structs.replace(self, pending=tuple(pending), near=near, far=far)

    def with_new(self, t_s: float, body_c: float, model: RCModel) -> "Predictions":
        """Begin another one, where the last is long enough ago."""
        if self.pending and t_s < self.pending[-1].made_s + EVERY_S:
            return self
        return msgspec.structs.replace(self, pending=(*self.pending, Prediction(t_s, body_c, model)))

    def without_pending(self) -> "Predictions":
        """Drop those under way: nobody knows what happened meanwhile."""
        return msgspec.structs.replace(self, pending=())
