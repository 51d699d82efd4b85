"""What instances were predicted to do and what they do, and how fast devices were measured to work, for Prometheus."""

from collections.abc import Sequence

from exo.api.exposition import Family, Row, labels
from exo.shared.serving import measured_tokens_per_s
from exo.shared.types.state import State


def families(state: State) -> Sequence[Family]:
    """Return predictions and measurements; what was not measured is left out."""
    predicted: list[Row] = []
    measured: list[Row] = []
    for instance_id, instance in sorted(state.instances.items()):
        where = {"instance": instance_id, "model": instance.model.model_id}
        told = instance.plan.prediction
        if told is not None:
            basis = "measured" if told.is_calibrated else "assumed"
            predicted.append((labels({**where, "basis": basis}), told.tokens_per_s))
        speed = measured_tokens_per_s(state, instance)
        if speed is not None:
            measured.append((labels(where), speed))
    bandwidths: list[Row] = []
    errors: list[Row] = []
    for node_id, live in sorted(state.live.items()):
        for _, pace in sorted(live.paces.items()):
            where = labels(
                {"node": node_id, "device": pace.device_id, "engine": pace.engine, "dtype": pace.dtype}
            )
            bandwidths.append((where, pace.bandwidth_bytes_per_s))
            errors.append((where, pace.error_percent))
    return [
        Family(
            "exo_instance_predicted_tokens_per_second",
            "gauge",
            "Tokens per second of an instance as predicted when it was placed, and what that rests on.",
            predicted,
        ),
        Family(
            "exo_instance_measured_tokens_per_second",
            "gauge",
            "Tokens per second that one request of an instance gets while it is the only one, as its first stage sees.",
            measured,
        ),
        Family(
            "exo_device_pace_bytes_per_second",
            "gauge",
            "What decoding steps on a device read per second, by engine and type of weights, overheads left aside.",
            bandwidths,
        ),
        Family(
            "exo_device_pace_error_percent",
            "gauge",
            "How far the pace of a device is from the times that it was made of.",
            errors,
        ),
    ]
