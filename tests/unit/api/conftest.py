"""Worlds for the tests of the API."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.api_world import World, client_of, ready_state, unplaced_state


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A cluster on which `toy` is ready as the instance `i`."""
    return World(ready_state(), tmp_path)


@pytest.fixture
def unplaced(tmp_path: Path) -> World:
    """A cluster on which nothing is placed."""
    return World(unplaced_state(), tmp_path)


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `world`, without a network; answers arrive whole."""
    async with client_of(world.app()) as client:
        yield client
