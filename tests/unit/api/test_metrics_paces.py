"""Predicted and measured tokens/s, and devices' paces, as Prometheus reads them."""

from msgspec.structs import replace

from exo.api import present
from exo.api.exposition import write
from exo.api.metrics_paces import families
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Prediction
from exo.shared.types.pace import DevicePace, InstancePace, pace_key
from exo.shared.types.state import NodeTelemetry, State
from support.states import GIB, card, cluster, identity, with_free_memory
from support.stories import placed


def two_nodes() -> State:
    return with_free_memory(
        cluster(identity("a", models=(card(),)), identity("b", models=(card(),))), {"a": GIB, "b": GIB}
    )


def lines(state: State) -> list[str]:
    return [line for line in write(families(state)).decode().splitlines() if not line.startswith("#")]


def with_paces(state: State, *, generation: int = 1, ms_per_token: float = 20.0) -> State:
    name = DeviceId("a/cpu:0")
    pace = DevicePace(
        device_id=name,
        engine="mlx",
        dtype="4-bit",
        step_overhead_s=0.0,
        layer_overhead_s=0.0,
        bandwidth_bytes_per_s=5e9,
        reads_min_bytes=1,
        reads_max_bytes=2,
        measurement_count=3,
        error_percent=1.5,
    )
    measured = InstancePace(
        instance_id=InstanceId("i"), generation=generation, ms_per_token=ms_per_token, measurement_count=9
    )
    live = replace(
        state.live.get(NodeId("a"), NodeTelemetry()),
        paces={pace_key(name, "mlx", "4-bit"): pace},
        instance_paces={InstanceId("i"): measured},
    )
    return replace(state, live={**state.live, NodeId("a"): live})


def predicted(state: State, prediction: Prediction | None) -> State:
    instance = state.instances[InstanceId("i")]
    changed = replace(instance, plan=replace(instance.plan, prediction=prediction))
    return replace(state, instances={InstanceId("i"): changed})


def test_what_is_not_known_is_left_out() -> None:
    assert lines(two_nodes()) == []
    assert lines(predicted(placed(two_nodes()), None)) == []


def test_predicted_and_measured_stand_side_by_side() -> None:
    state = with_paces(predicted(placed(two_nodes()), Prediction(tokens_per_s=40.0, is_calibrated=True)))
    where = 'instance="i",model="toy"'
    of_device = '{node="a",device="a/cpu:0",engine="mlx",dtype="4-bit"}'
    assert lines(state) == [
        f'exo_instance_predicted_tokens_per_second{{{where},basis="measured"}} 40.0',
        f"exo_instance_measured_tokens_per_second{{{where}}} 50.0",
        f"exo_device_pace_bytes_per_second{of_device} 5000000000.0",
        f"exo_device_pace_error_percent{of_device} 1.5",
    ]


def test_what_an_earlier_generation_did_says_nothing_of_this_one() -> None:
    state = predicted(placed(two_nodes()), Prediction(tokens_per_s=40.0))
    named = [one.split("{")[0] for one in lines(with_paces(state, generation=7))]
    assert "exo_instance_measured_tokens_per_second" not in named
    assert 'basis="assumed"' in lines(state)[0]
    assert "exo_instance_measured_tokens_per_second" not in "".join(
        lines(with_paces(state, ms_per_token=0.0))
    )


def test_an_instance_is_shown_with_the_speed_that_was_seen() -> None:
    state = placed(two_nodes())
    (instance,) = state.instances.values()
    assert present.instance(state, instance)["measured_tokens_per_s"] is None
    assert present.instance(with_paces(state), instance)["measured_tokens_per_s"] == 50.0
    earlier = with_paces(state, generation=instance.generation + 1)
    assert present.instance(earlier, instance)["measured_tokens_per_s"] is None
