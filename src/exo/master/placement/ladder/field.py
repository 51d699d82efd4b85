"""A canonical problem as NumPy arrays: times, rooms, and how many layers each device can hold in which part."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT, CostProblem, Device

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Field:
    """Devices by index, in the order of their ids. For unequal layers the figures are those of an average one."""

    problem: CostProblem
    devices: tuple[Device, ...]
    layer_count: int
    layer_bytes: int
    layer_ns: Integers
    overhead_ns: Integers
    head_ns: Integers
    is_required: Flags
    pool: Integers
    """Index of each device's pool."""
    room_bytes: Integers
    """Room of each pool, by its index."""
    plain_layers: Integers
    """Layers that each device can hold as a stage in the middle; at least 0."""
    first_layers: Integers
    last_layers: Integers
    only_layers: Integers
    is_even: bool
    """Whether a stage's time and size grow evenly with its layers: all are alike."""
    limit_ns: int | None = None
    """No stage may take longer."""

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self.devices)

    @property
    def most_layers(self) -> Integers:
        """Layers that each device can hold in its best part of a plan of several stages."""
        return np.maximum(self.plain_layers, np.maximum(self.first_layers, self.last_layers))


def field_of(problem: CostProblem) -> Field:
    """Read a canonical problem into arrays."""
    model = problem.model
    count = len(model.layers)
    layer_bytes = max(1, -(-sum(layer.size_bytes for layer in model.layers) // count))
    weight = sum(layer.time_weight for layer in model.layers)
    raw = np.array(
        [(one.layer_ns, one.overhead_ns, one.head_ns, one.is_required) for one in problem.devices],
        dtype=np.int64,
    ).reshape(-1, 4)
    if model.is_uniform:
        layer_ns = raw[:, 0] * model.layers[0].time_weight // AVERAGE_TIME_WEIGHT
    else:
        layer_ns = (raw[:, 0] * (weight / (count * AVERAGE_TIME_WEIGHT))).astype(np.int64)
    index_of = {pool.pool_id: index for index, pool in enumerate(problem.pools)}
    field = Field(
        problem=problem,
        devices=problem.devices,
        layer_count=count,
        layer_bytes=layer_bytes,
        layer_ns=layer_ns,
        overhead_ns=raw[:, 1],
        head_ns=raw[:, 2],
        is_required=raw[:, 3].astype(np.bool_),
        pool=np.array([index_of[one.pool_id] for one in problem.devices], dtype=np.int64),
        room_bytes=np.array([pool.room_bytes for pool in problem.pools], dtype=np.int64),
        plain_layers=raw[:, 0],
        first_layers=raw[:, 0],
        last_layers=raw[:, 0],
        only_layers=raw[:, 0],
        is_even=model.is_uniform,
    )
    return limited(field, None)


def limited(field: Field, limit_ns: int | None) -> Field:
    """Return the field with layer counts so that no stage takes longer than `limit_ns`."""
    model = field.problem.model
    room = field.room_bytes[field.pool]

    def layers(held_bytes: int, ends_ns: Integers) -> Integers:
        fitting = np.minimum(np.maximum((room - held_bytes) // field.layer_bytes, 0), field.layer_count)
        if limit_ns is not None:
            fitting = np.minimum(fitting, np.maximum(0, limit_ns - ends_ns) // np.maximum(1, field.layer_ns))
            fitting = np.where(ends_ns + field.layer_ns > limit_ns, 0, fitting)
        return fitting

    plain_ns = field.overhead_ns
    last_ns = plain_ns + field.head_ns
    return replace(
        field,
        plain_layers=layers(model.stage_bytes, plain_ns),
        first_layers=layers(model.first_bytes, plain_ns),
        last_layers=layers(model.last_bytes, last_ns),
        only_layers=layers(model.only_bytes, last_ns),
        limit_ns=limit_ns,
    )


def narrowed(field: Field, kept: Integers) -> Field:
    """Return the field with only these devices (indices, ascending)."""
    indices: list[int] = kept.tolist()
    return replace(
        field,
        devices=tuple(field.devices[index] for index in indices),
        layer_ns=field.layer_ns[kept],
        overhead_ns=field.overhead_ns[kept],
        head_ns=field.head_ns[kept],
        is_required=field.is_required[kept],
        pool=field.pool[kept],
        plain_layers=field.plain_layers[kept],
        first_layers=field.first_layers[kept],
        last_layers=field.last_layers[kept],
        only_layers=field.only_layers[kept],
    )
