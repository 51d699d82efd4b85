"""Clusters of real coordinators under seeded faults. `EXO_TEST_SEEDS=1000` runs more than the usual few."""

import asyncio
import os

import pytest

from support.faulty_story import FaultyStory
from support.simulated_cluster import Simulation
from support.virtual_time import run

SEEDS = range(int(os.environ.get("EXO_TEST_SEEDS", "12")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", ["ab", "abc", "abcdefg"])
def test_nodes_that_start_at_once_become_one_cluster(seed: int, hosts: str) -> None:
    async def story() -> float:
        simulation = Simulation(seed, hosts, delay_s=0.03)
        await simulation.start_all()
        started_s = asyncio.get_running_loop().time()
        await simulation.until(simulation.is_one, timeout_s=8)
        took_s = asyncio.get_running_loop().time() - started_s
        await asyncio.sleep(3)
        assert simulation.is_one(), "and stay one"
        await simulation.stop_all()
        return took_s

    assert run(story()) < 8


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(seed: int) -> None:
    run(FaultyStory(seed).tell())
