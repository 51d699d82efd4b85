"""Who holds which of this node's GPUs: a guard, so that no two owners ever get the same one.

Which devices a model is placed on is the cluster's decision, and so is where it goes on when some fail
(`master.recovery_ladder`); this guard sees to it that the node keeps to it, and serves engines that choose GPUs
themselves. Its methods do not wait for anything and may be called from any thread.
"""

import itertools
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from exo.gpu.allocation import Allocation, Candidate, Needs, Parallelism, choose, obstacle_of
from exo.gpu.errors import GPUTakenError, NotEnoughGPUsError

_GIB = 1024**3


class _Holding(msgspec.Struct, frozen=True, kw_only=True):
    groups: tuple[tuple[int, ...], ...]
    part_bytes: int | None = None
    """The owner was promised so much of each, and others may take the rest; None: it has them for itself."""

    @property
    def indices(self) -> set[int]:
        return {index for group in self.groups for index in group}


class GPUManager:
    """Hands a node's GPUs out. Devices go by their number within the node.

    Args:
        candidates: Gives the GPUs as they are now, whoever holds them; see `allocation.candidates_of`.
    """

    def __init__(self, candidates: Callable[[], Sequence[Candidate]]) -> None:
        self._candidates = candidates
        self._lock = threading.Lock()
        self._holdings: dict[str, _Holding] = {}
        self._numbers = itertools.count(1)

    def allocate(
        self, tensor: int = 1, pipeline: int = 1, *, owner: str | None = None, needs: Needs | None = None
    ) -> list[list[int]]:
        """Take GPUs: a list for each stage of the pipeline, with the devices that share the stage.

        `allocate(tensor=2, pipeline=2)` gives `[[0, 1], [2, 3]]` where all are alike and free.

        Args:
            tensor: Devices that share every layer of a stage.
            pipeline: Stages.
            owner: Who holds them until it releases them, or is found to be gone; None: a name of their own.
            needs: What the model takes.

        Raises:
            NotEnoughGPUsError: Too few can be used; the message says which there are, and why not the others.
            ValueError: `tensor` or `pipeline` is less than 1, or the owner holds GPUs already.
        """
        wanted = Parallelism(tensor=tensor, pipeline=pipeline)
        needs = needs or Needs()
        with self._lock:
            if owner is None:
                owner = f"allocation {next(self._numbers)}"
            elif owner in self._holdings:
                raise ValueError(f"{owner} holds GPUs already; release them first")
            share = -(-needs.memory_bytes // max(1, wanted.device_count))
            candidates = self._free(self._candidates())
            found = choose(candidates, wanted, memory_bytes=share, is_mixed_allowed=needs.is_mixed_allowed)
            if not isinstance(found, Allocation):
                raise NotEnoughGPUsError(found.message)
            self._holdings[owner] = _Holding(groups=found.groups)
            return _lists(found.groups)

    def take(self, gpus: Sequence[int], *, owner: str, memory_bytes: int) -> None:
        """Take a part of GPUs that somebody else has chosen, as a cluster's plan does.

        Others may take parts as well, as long as all that is promised fits; `allocate` passes over such GPUs.

        Args:
            gpus: Their numbers.
            owner: Who holds them until it releases them, or is found to be gone.
            memory_bytes: What the owner may take of each.

        Raises:
            GPUTakenError: One is not there, has failed, is somebody's own, or has too little left.
            ValueError: The owner holds GPUs already.
        """
        with self._lock:
            if owner in self._holdings:
                raise ValueError(f"{owner} holds GPUs already; release them first")
            candidates = {one.index: one for one in self._candidates()}
            for gpu in gpus:
                obstacle = self._obstacle(gpu, candidates.get(gpu), memory_bytes)
                if obstacle is not None:
                    raise GPUTakenError(f"{owner} cannot use {obstacle}; place it again, or on other devices")
            self._holdings[owner] = _Holding(groups=(tuple(gpus),), part_bytes=memory_bytes)

    def _obstacle(self, gpu: int, one: Candidate | None, memory_bytes: int) -> str | None:
        """Return why no part of a GPU can be taken; None: it can."""
        if one is None:
            return f"GPU {gpu}: it is not there"
        reason = obstacle_of(one, 0)
        if reason is not None:
            return f"{one.name}: {reason}"
        others = {owner: held for owner, held in self._holdings.items() if gpu in held.indices}
        alone = next((owner for owner, held in others.items() if held.part_bytes is None), None)
        if alone is not None:
            return f"{one.name}: {alone} has it for itself"
        promised_bytes = sum(held.part_bytes or 0 for held in others.values())
        if one.memory_total_bytes is None or promised_bytes + memory_bytes <= one.memory_total_bytes:
            return None
        held_by = f", of which {', '.join(others)} may take {_gib(promised_bytes)}" if others else ""
        return (
            f"{one.name}: it has {_gib(one.memory_total_bytes)}{held_by}, and {_gib(memory_bytes)} are needed"
        )

    @contextmanager
    def lease(
        self, tensor: int = 1, pipeline: int = 1, *, owner: str | None = None, needs: Needs | None = None
    ) -> Generator[list[list[int]]]:
        """Hold GPUs for the length of a `with`, however it ends: by itself, by an error or by being cancelled.

        Raises:
            NotEnoughGPUsError: As `allocate`.
            ValueError: As `allocate`.
        """
        if owner is None:
            with self._lock:
                owner = f"lease {next(self._numbers)}"
        groups = self.allocate(tensor, pipeline, owner=owner, needs=needs)
        try:
            yield groups
        finally:
            self.release(owner=owner)

    def get_allocated_gpus(self) -> list[int]:
        """Return the numbers of all GPUs that somebody holds."""
        with self._lock:
            return sorted(index for holding in self._holdings.values() for index in holding.indices)

    def get_pipeline_allocation(self, owner: str | None = None) -> list[list[int]]:
        """Return the stages of one owner, or of all in the order in which they took them; empty: it holds none."""
        with self._lock:
            if owner is not None:
                holding = self._holdings.get(owner)
                return [] if holding is None else _lists(holding.groups)
            return [group for holding in self._holdings.values() for group in _lists(holding.groups)]

    def owners(self) -> dict[str, list[int]]:
        """Return who holds which."""
        with self._lock:
            return {owner: sorted(holding.indices) for owner, holding in self._holdings.items()}

    def release(self, gpus: Iterable[int] | None = None, *, owner: str | None = None) -> list[int]:
        """Give GPUs back: these, or all of an owner, or all there are. What nobody holds is no error.

        Returns:
            Those that were given back.
        """
        wanted = None if gpus is None else set(gpus)
        released: list[int] = []
        with self._lock:
            for name, holding in list(self._holdings.items()):
                if owner is not None and name != owner:
                    continue
                gone = holding.indices if wanted is None else holding.indices & wanted
                released += gone
                groups = tuple(
                    kept
                    for group in holding.groups
                    if (kept := tuple(one for one in group if one not in gone))
                )
                if groups:
                    self._holdings[name] = replace(holding, groups=groups)
                else:
                    del self._holdings[name]
        return sorted(released)

    def release_all_but(self, alive: Collection[str]) -> list[int]:
        """Give back what owners hold that are not there any more, such as stages whose process is gone."""
        with self._lock:
            gone = [owner for owner in self._holdings if owner not in alive]
        return sorted(index for owner in gone for index in self.release(owner=owner))

    def _free(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        held = {index: owner for owner, holding in self._holdings.items() for index in holding.indices}
        return [
            replace(one, obstacle=f"{held[one.index]} uses it") if one.index in held else one
            for one in candidates
        ]


def _lists(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(group) for group in groups]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
