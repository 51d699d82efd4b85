"""What a decision was made on: of a state what placement reads, small enough for the log. Pure.

Telemetry is not in the log, so that without this nobody could say later what free memory, load and heat were.
"""

from collections.abc import Collection

import msgspec
import zstandard
from msgspec.structs import replace

from exo.master.errors import BasisUnreadableError
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.instances import Instance, PlacementRequest, StageState
from exo.shared.types.nodes import HostPort, Node
from exo.shared.types.state import NodeTelemetry, State

BASIS_BYTES_MAX = 384 * 1024
"""As packed. Of 3 nodes it is 2 KB, of 100 with telemetry and eight links each 26 KB, of 1,000 such 270 KB. Of more,
or of a full mesh of links between a thousand, it is not kept: decisions stay in the state of every node."""
_UNPACKED_BYTES_MAX = 512 * 1024 * 1024
_LEVEL = 3
_NOWHERE = HostPort("", 0)


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """One question to placement, whole: asked again it has the same answer, while the release is the same."""

    request: PlacementRequest
    """What was solved: of a move, something else than the person asked for."""
    has_constraint_layer: bool = True
    state: State | None = None
    """What placement reads of the state; None: it was too large to keep."""
    omitted: str | None = None
    """Why there is no state, for people."""


def pack(
    state: State,
    request: PlacementRequest,
    *,
    has_constraint_layer: bool = True,
    bytes_max: int = BASIS_BYTES_MAX,
) -> bytes:
    """Return what a placement of `request` on `state` depends on, or a statement why that is not kept."""
    packed = _compressed(
        Basis(request=request, has_constraint_layer=has_constraint_layer, state=reduced(state, request))
    )
    if len(packed) <= bytes_max:
        return packed
    told = (
        f"what this was decided on takes {len(packed):,} bytes packed, and no more than {bytes_max:,} are kept "
        "with a decision"
    )
    return _compressed(Basis(request=request, has_constraint_layer=has_constraint_layer, omitted=told))


def encode_reduced(state: State, request: PlacementRequest) -> msgspec.Raw:
    """Encode what placement reads of a state, node by node: for a thread, which then never holds the others up long."""
    model_ids = {request.model_id, *request.apart_from}
    encode = msgspec.msgpack.encode
    return msgspec.Raw(
        encode(
            {
                "index": state.index,
                "nodes": {
                    node_id: msgspec.Raw(encode(_node(state.nodes[node_id], model_ids)))
                    for node_id in sorted(state.nodes)
                },
                "instances": {
                    key: msgspec.Raw(encode(_instance(state.instances[key])))
                    for key in sorted(state.instances)
                },
                "live": {
                    node_id: msgspec.Raw(encode(_telemetry(state.live[node_id])))
                    for node_id in sorted(state.live)
                    if node_id in state.nodes
                },
            }
        )
    )


def unpack(packed: bytes) -> Basis:
    """Return what was packed.

    Raises:
        BasisUnreadableError: It is damaged, or a release wrote it whose facts this one cannot read.
    """
    try:
        size_bytes = zstandard.get_frame_parameters(packed).content_size
        # The size is compared first: it says how much memory decompressing takes.
        if size_bytes > _UNPACKED_BYTES_MAX:
            raise BasisUnreadableError(f"what it was decided on would take {size_bytes:,} bytes")
        return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(packed), type=Basis)
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise BasisUnreadableError(
            f"what it was decided on cannot be read by this release of exo ({error}); ask a node of the release "
            "that placed it"
        ) from error


def reduced(state: State, request: PlacementRequest) -> State:
    """Return the state without what has no say here; where the model is known, `place_instance` answers alike."""
    # Those to keep apart from have to be known, whether or not they run.
    model_ids = {request.model_id, *request.apart_from}
    return State(
        index=state.index,
        nodes={node_id: _node(state.nodes[node_id], model_ids) for node_id in sorted(state.nodes)},
        instances={key: _instance(state.instances[key]) for key in sorted(state.instances)},
        live={
            node_id: _telemetry(state.live[node_id])
            for node_id in sorted(state.live)
            if node_id in state.nodes
        },
    )


def _compressed(basis: Basis) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(basis))


def _node(node: Node, model_ids: Collection[str]) -> Node:
    identity = replace(
        node.identity,
        boot_id="",
        cluster_address=_NOWHERE,
        data_address=_NOWHERE,
        api_address=_NOWHERE,
        models=tuple(card for card in node.identity.models if card.model_id in model_ids),
    )
    return replace(node, identity=identity)


def _instance(instance: Instance) -> Instance:
    """Keep what it takes of the devices, its names, and what it is to be apart from."""
    return Instance(
        instance_id=instance.instance_id,
        model=replace(instance.model, layer_bytes=(), layer_active_bytes=(), description=""),
        plan=replace(
            instance.plan,
            stages=tuple(replace(one, shares=None) for one in instance.plan.stages),
            excluded=(),
            explanation="",
            binding=None,
        ),
        request=PlacementRequest(model_id=instance.request.model_id, apart_from=instance.request.apart_from),
        generation=instance.generation,
        stages=tuple(StageState(phase=one.phase) for one in instance.stages),
        created_by=instance.created_by,
    )


def _telemetry(live: NodeTelemetry) -> NodeTelemetry:
    """Keep readings and links. What is not named here is kept: what is added one day may count for placement."""
    return replace(
        live,
        boot_id="",
        seq=-1,
        profile=None,
        devices={key: _reading(live.devices[key]) for key in sorted(live.devices)},
        links={key: live.links[key] for key in sorted(live.links)},
        stages={},
        key_usage={},
    )


def _reading(reading: DeviceGPUState) -> DeviceGPUState:
    thermal = reading.thermal
    return replace(
        reading,
        last_update="",
        faults=(),
        processes=None,
        power_watts=None,
        power_limit_watts=None,
        energy_joules=None,
        clock_mhz=None,
        clock_max_mhz=None,
        battery_percent=None,
        ecc_corrected_count=None,
        ecc_uncorrected_count=None,
        thermal=None if thermal is None else replace(thermal, reason=""),
    )
