"""Stops something at each of its operations on the disk, in turn."""

from collections.abc import Callable, Iterator
from random import Random

from support.power_loss import PowerLossFiles, PowerLost


def crashes(
    prepare: Callable[[PowerLossFiles], Callable[[], object]], seeds: int = 6
) -> Iterator[tuple[PowerLossFiles, bool]]:
    """Yield a disk for every place where an action may be interrupted, by a kill and by losing power.

    Args:
        prepare: Fills an empty disk and returns the action.
        seeds: How many different outcomes of a loss of power are tried for each place.

    Yields:
        The disk after the crash, and whether the action had come to its end before.
    """
    step, is_done = 0, False
    while not is_done:
        for seed in range(seeds + 1):
            files = PowerLossFiles()
            action = prepare(files)
            files.steps_left = step
            try:
                action()
                is_done = True
            except PowerLost:
                is_done = False
            if seed == 0:
                files.stop_process()
            else:
                files.lose_power(random=Random(seed * 1000 + step))
            yield files, is_done
        step += 1
        assert step < 500, "it never comes to an end"
