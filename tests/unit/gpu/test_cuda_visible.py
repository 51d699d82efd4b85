"""Which devices CUDA_VISIBLE_DEVICES leaves, and which of them CUDA means by a number."""

import pytest

from exo.gpu.backends.cuda.cupy import CuPyDevice
from exo.gpu.backends.cuda.nvml import pci_address
from exo.gpu.backends.cuda.visible import matched, visible_devices
from exo.gpu.driver import FoundDevice


def found(index: int, uuid: str, pci: str) -> FoundDevice:
    return FoundDevice(
        index=index,
        name="NVIDIA",
        vendor="nvidia",
        memory_kind="vram",
        memory_total_bytes=1,
        uuid=uuid,
        pci_address=pci,
    )


def counted(ordinal: int, pci: str | None, uuid: str | None = None) -> CuPyDevice:
    return CuPyDevice(
        ordinal=ordinal,
        name="NVIDIA",
        pci_address=pci,
        uuid=uuid,
        memory_total_bytes=1,
        is_integrated=False,
        compute_units=1,
        compute_capability="9.0",
    )


THREE = (
    found(0, "GPU-aaaa1111", "0000:01:00.0"),
    found(1, "GPU-bbbb2222", "0000:02:00.0"),
    found(2, "GPU-cccc3333", "0000:03:00.0"),
)
DIVIDED = (
    found(0, "MIG-1111", "0000:01:00.0"),
    found(1, "MIG-2222", "0000:01:00.0"),
    found(2, "GPU-3333", "0000:02:00.0"),
)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("0,-1,2", [0]),
        ("0,7,2", [0]),
        ("-1", []),
        ("1,1", []),
        ("GPU-bb", [1]),
        ("GPU-cccc3333,0", [2, 0]),
        ("GPU-", []),
        ("nonsense", []),
    ],
)
def test_what_is_left(text: str | None, indices: list[int]) -> None:
    assert [one.index for one in visible_devices(THREE, text)] == indices


@pytest.mark.parametrize(("text", "indices"), [("0", [0]), ("1", [2]), ("MIG-2222", [1]), ("2", [])])
def test_numbers_count_chips(text: str, indices: list[int]) -> None:
    assert [one.index for one in visible_devices(DIVIDED, text)] == indices


def test_cudas_own_order() -> None:
    """CUDA counts the fastest first, NVML by address."""
    cuda = [counted(0, "0000:03:00.0"), counted(1, "0000:01:00.0")]
    assert {ordinal: one.index for ordinal, one in matched(THREE, cuda, THREE).items()} == {0: 2, 1: 0}


def test_a_device_that_nvml_does_not_know() -> None:
    assert matched(THREE, [counted(0, "0000:0f:00.0")], THREE) == {}


def test_parts_of_one_chip() -> None:
    cuda = [counted(0, "0000:01:00.0")]
    assert matched(DIVIDED, cuda, DIVIDED)[0].index == 0
    assert matched(DIVIDED, cuda, [DIVIDED[1]])[0].index == 1
    assert matched(DIVIDED, [counted(0, "0000:01:00.0", "2222")], DIVIDED)[0].index == 1


def test_by_uuid_where_there_is_no_address() -> None:
    assert matched(THREE, [counted(0, None, "bbbb2222")], THREE)[0].index == 1
    assert matched(THREE, [counted(0, None)], THREE) == {}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:0A:00.0", "0000:0a:00.0"),
        ("00010000:01:00.0", "0000:01:00.0"),
        ("0002:01:00.0", "0002:01:00.0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert pci_address(text) == address
