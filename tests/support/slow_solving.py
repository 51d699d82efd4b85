"""Solves that take their whole deadline: run in the solver process in the place of `solve_job`."""

import time

import msgspec

from exo.master.solver_jobs import Imagining, Placing, Previewing, solve_job

_Kind = Placing | Previewing | Imagining


class _Glance(msgspec.Struct):
    task: msgspec.Raw
    deadline_s: float


def _spin(packed: bytes, kind: type) -> None:
    glance = msgspec.msgpack.decode(packed, type=_Glance)
    if msgspec.msgpack.decode(glance.task)["type"] == kind.__name__:
        end_s = time.monotonic() + glance.deadline_s
        while time.monotonic() < end_s:
            sum(range(1000))


def place_slowly(packed: bytes) -> bytes:
    """Keep a core busy for the whole deadline before a placement is solved; questions are solved as always."""
    _spin(packed, Placing)
    return solve_job(packed)


def preview_slowly(packed: bytes) -> bytes:
    """The same for previews, and for them only."""
    _spin(packed, Previewing)
    return solve_job(packed)
