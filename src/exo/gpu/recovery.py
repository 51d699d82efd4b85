"""What to do for a model whose GPUs failed: move to others, go on with fewer, go on without. Pure.

Every step is a value with its reason: it is told as an event, so that people see why a model has become slower.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from exo.gpu.allocation import (
    Allocation,
    Candidate,
    Parallelism,
    arranged,
    choose,
    obstacle_of,
    preference,
)

Rung = Literal["moved", "reduced", "cpu", "gave_up"]

_GIB = 1024**3


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What the model takes.

    Attributes:
        memory_bytes: Of all its devices together; 0: not known.
        is_mixed_allowed: Its engine runs stages on different kinds of devices.
        is_cpu_allowed: Its engine runs on the processor as well.
    """

    memory_bytes: int = 0
    is_mixed_allowed: bool = True
    is_cpu_allowed: bool = True


class RecoveryStep(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """One step down the ladder.

    Attributes:
        rung: Where the model goes on.
        parallelism: How; 1 and 1 on the processor.
        groups: The GPUs by stage; empty on the processor, or where it was given up.
        cause: What had failed.
        skipped: Why the rungs above this one were not possible.
    """

    rung: Rung
    parallelism: Parallelism
    groups: tuple[tuple[int, ...], ...]
    cause: str
    skipped: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return it as one sentence."""
        match self.rung:
            case "moved":
                how = f"it goes on with {self.parallelism} on other GPUs ({self._numbers()})"
            case "reduced":
                how = f"it goes on with {self.parallelism} ({self._numbers()})"
            case "cpu":
                how = "it goes on on the processor, much slower"
            case "gave_up":
                how = "it cannot go on here"
        why = f"; not possible before that: {'; '.join(self.skipped)}" if self.skipped else ""
        return f"{self.cause}: {how}{why}"

    def _numbers(self) -> str:
        return ", ".join("+".join(str(index) for index in group) for group in self.groups)


def recover(
    held: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    *,
    failed: Collection[int],
    cause: str,
    needs: Needs | None = None,
    host_free_bytes: int | None = None,
) -> RecoveryStep:
    """Return the highest rung on which the model can go on.

    Args:
        held: The GPUs that it had, by stage, those that failed among them.
        candidates: All GPUs of the node. Those that the model held itself are to have no obstacle but their own.
        failed: Numbers of those that failed; they are not taken again, whatever their candidate says.
        cause: What failed, for people.
        needs: What the model takes.
        host_free_bytes: The memory that is free for the processor; None: not known.

    Raises:
        ValueError: The model held no GPUs.
    """
    if not held or not held[0]:
        raise ValueError("a model without GPUs has nothing to recover")
    needs = needs or Needs()
    before = Parallelism(tensor=max(len(group) for group in held), pipeline=len(held))
    left = [one for one in candidates if one.index not in failed]
    skipped: list[str] = []

    moved = _move(held, left, before, needs)
    if moved is not None:
        return RecoveryStep(rung="moved", parallelism=before, groups=moved.groups, cause=cause)
    skipped.append(f"no other healthy GPUs for {before}")

    for fewer in _less(before):
        chosen = choose(
            left, fewer, memory_bytes=_share(needs, fewer), is_mixed_allowed=needs.is_mixed_allowed
        )
        if isinstance(chosen, Allocation):
            return RecoveryStep(
                rung="reduced", parallelism=fewer, groups=chosen.groups, cause=cause, skipped=tuple(skipped)
            )
    if before.device_count > 1:
        skipped.append("no GPUs with room for it with less parallelism")

    obstacle = _cpu_obstacle(needs, host_free_bytes)
    rung: Rung = "cpu" if obstacle is None else "gave_up"
    if obstacle is not None:
        skipped.append(obstacle)
    return RecoveryStep(rung=rung, parallelism=Parallelism(), groups=(), cause=cause, skipped=tuple(skipped))


def _move(
    held: Sequence[Sequence[int]], left: Sequence[Candidate], before: Parallelism, needs: Needs
) -> Allocation | None:
    """Replace only what is gone, since the other stages' devices have their layers already; else choose anew."""
    share = _share(needs, before)
    known = {one.index: one for one in left}
    own = {index for group in held for index in group}
    # What it held may be as full as it was: that memory is the model's own.
    kept = [[known[index] for index in group if _is_kept(known.get(index))] for group in held]
    spare = sorted(
        (
            one
            for one in left
            if one.index not in own and one.health == "healthy" and obstacle_of(one, share) is None
        ),
        key=preference,
    )
    if not needs.is_mixed_allowed and any(kept):
        kind = next(one.kind for group in kept for one in group)
        spare = [one for one in spare if one.kind == kind]
    for group in kept:
        missing = before.tensor - len(group)
        kinds = {one.kind for one in group} or {one.kind for one in spare}
        fitting = [
            found[:missing]
            for kind in sorted(kinds)
            if len(found := [one for one in spare if one.kind == kind]) >= missing
        ]
        if missing and not fitting:
            break
        if missing:
            substitutes = min(fitting, key=lambda found: [preference(one) for one in found])
            group.extend(substitutes)
            spare = [one for one in spare if one not in substitutes]
    else:
        if needs.is_mixed_allowed or len({one.kind for group in kept for one in group}) == 1:
            return arranged(kept)
    healthy = [one for one in left if one.health == "healthy"]
    chosen = choose(healthy, before, memory_bytes=share, is_mixed_allowed=needs.is_mixed_allowed)
    return chosen if isinstance(chosen, Allocation) else None


def _is_kept(one: Candidate | None) -> bool:
    return one is not None and one.obstacle is None and one.health != "failed"


def _less(before: Parallelism) -> list[Parallelism]:
    """Return what is less, most devices first, of equals the one with more tensor parallelism, which is faster.

    Tensor parallelism only goes down to its divisors: what was split evenly before still is.
    """
    smaller = [
        Parallelism(tensor=tensor, pipeline=pipeline)
        for tensor in range(1, before.tensor + 1)
        if before.tensor % tensor == 0
        for pipeline in range(1, before.pipeline + 1)
        if tensor * pipeline < before.device_count
    ]
    return sorted(smaller, key=lambda one: (-one.device_count, -one.tensor))


def _share(needs: Needs, parallelism: Parallelism) -> int:
    return -(-needs.memory_bytes // parallelism.device_count)


def _cpu_obstacle(needs: Needs, host_free_bytes: int | None) -> str | None:
    if not needs.is_cpu_allowed:
        return "its engine does not run on the processor"
    if host_free_bytes is not None and host_free_bytes < needs.memory_bytes:
        return (
            f"the processor has {host_free_bytes / _GIB:.1f} GiB free, "
            f"{needs.memory_bytes / _GIB:.1f} GiB are needed"
        )
    return None
