"""Slows a process down to a share of a processor core, as the kernel does it for containers."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results import CannotMeasureError

PERIOD_US = 5_000
"""Short against a decoding step, so that a step takes longer rather than some steps only."""
SHARES_MAX, WEIGHT_MAX = 262_144, 10_000
"""Of version 1 and 2: what a group may have it gets, whatever else this machine does."""
_V1 = Path("/sys/fs/cgroup/cpu")
_V2 = Path("/sys/fs/cgroup")


class Throttle:
    """A control group with a quota of processor time: all threads of its processes together.

    Args:
        path: Its directory.
        is_unified: Whether it is of version 2.
    """

    def __init__(self, path: Path, *, is_unified: bool) -> None:
        self._path = path
        self._is_unified = is_unified

    def set_share(self, share: float | None) -> None:
        """Allow so much of one core; None: all there is."""
        quota_us = None if share is None else max(1_000, int(share * PERIOD_US))
        if self._is_unified:
            (self._path / "cpu.max").write_text(f"{quota_us or 'max'} {PERIOD_US}")
        else:
            (self._path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self._path / "cpu.cfs_quota_us").write_text(str(quota_us or -1))

    def go_first(self) -> None:
        """Have the group's processes run before all others, as far as its quota goes."""
        if self._is_unified:
            (self._path / "cpu.weight").write_text(str(WEIGHT_MAX))
        else:
            (self._path / "cpu.shares").write_text(str(SHARES_MAX))

    def add(self, pids: Iterable[int]) -> None:
        """Take processes in, with all their threads."""
        for pid in pids:
            (self._path / "cgroup.procs").write_text(str(pid))


@contextmanager
def throttles(count: int) -> Iterator[list[Throttle]]:
    """Give so many groups; they are gone afterwards, and what is left in them runs on in the group above.

    Raises:
        CannotMeasureError: This user may not make control groups here.
    """
    is_unified = not (_V1 / "cpu.cfs_quota_us").exists()
    root = _V2 if is_unified else _V1
    paths = [root / f"exo-benchmark-{os.getpid()}-{number}" for number in range(count)]
    made: list[Path] = []
    try:
        try:
            if is_unified:
                (root / "cgroup.subtree_control").write_text("+cpu")
            for path in paths:
                path.mkdir()
                made.append(path)
        except OSError as error:
            raise CannotMeasureError(
                f"processes cannot be slowed down here, since {error.filename} cannot be written "
                f"({error.strerror}); run this as root on a machine with control groups"
            ) from error
        groups = [Throttle(path, is_unified=is_unified) for path in paths]
        for group in groups:
            group.go_first()
        yield groups
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                for pid in (path / "cgroup.procs").read_text().split():
                    (root / "cgroup.procs").write_text(pid)
            with contextlib.suppress(OSError):
                path.rmdir()
