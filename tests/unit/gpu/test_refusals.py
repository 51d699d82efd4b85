"""What is told of devices that are there and are not used."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from exo.gpu.backends.intel.watcher import IntelWatcher
from exo.gpu.backends.rocm.amdgpu import AmdgpuWatcher
from exo.gpu.backends.sysfs import has_pci_card
from exo.gpu.errors import BackendUnavailableError
from exo.gpu.inventory import Inventory, MissingBackend, RefusedDevice
from exo.gpu.refusals import TOLD_MAX, refusals
from support.states import GIB, gpu

DEVICE = gpu("n", 8 * GIB)


def named(alias: str) -> RefusedDevice:
    return RefusedDevice(replace(DEVICE, local_alias=alias), "wrong", "its check failed: wrong sums")


def test_each_says_what_it_is_why_it_is_not_used_and_what_can_be_done() -> None:
    inventory = Inventory(
        refused=(
            RefusedDevice(
                replace(DEVICE, local_alias="directml:0"), "duplicate", "cuda has it already, as cuda:0"
            ),
            RefusedDevice(replace(DEVICE, local_alias="cuda:1"), "unchecked", "its check has not ended yet"),
            named("cuda:2"),
        ),
        missing=(
            MissingBackend(name="rocm", reason="its driver did not answer within 2 s", is_late=True),
            MissingBackend(name="cuda", reason="the NVIDIA driver is 470.1, and exo needs 525 or later"),
            MissingBackend(name="intel", reason="a package is missing", install_command="apt install it"),
            MissingBackend(name="metal", reason="there is no such thing", is_absent=True),
        ),
    )
    told = refusals(inventory)
    assert [(one.kind, one.local_alias, one.name) for one in told] == [
        ("wrong", "cuda:2", "Test GPU"),
        ("hanging", None, "AMD GPUs"),
        ("unavailable", None, "NVIDIA GPUs"),
        ("unavailable", None, "Intel GPUs"),
        ("unchecked", "cuda:1", "Test GPU"),
        ("duplicate", "directml:0", "Test GPU"),
    ]
    assert all(one.reason and one.next_step for one in told)
    assert told[3].next_step == "install what is missing: apt install it"


def test_of_a_device_that_hung_in_its_check_nobody_says_that_it_computes_wrongly() -> None:
    hung = RefusedDevice(DEVICE, "hanging", "its check failed: it has not answered for 30.0 s")
    (told,) = refusals(Inventory(refused=(hung,)))
    assert told.kind == "hanging" and "restart the machine" in told.next_step
    assert "wrongly" not in told.next_step
    hung = RefusedDevice(DEVICE, "hanging", "its driver hangs; if it does not answer, restart the machine")
    assert refusals(Inventory(refused=(hung,)))[0].next_step == "", "it is told once"


def test_of_very_many_those_that_want_someone_to_look_are_told() -> None:
    many = tuple(
        RefusedDevice(replace(DEVICE, local_alias=f"cuda:{number}"), "unchecked", "not yet")
        for number in range(200)
    )
    told = refusals(Inventory(refused=(*many, named("cuda:200"))))
    assert len(told) == TOLD_MAX and told[0].local_alias == "cuda:200"
    assert refusals(Inventory()) == ()


@pytest.mark.parametrize(
    ("vendor", "kind", "is_one"),
    [
        ("0x10de", "0x030200", True),
        ("0x10de", "0x120000", True),
        ("0x10de", "0x040300", False),
        ("0x1002", "0x030000", False),
    ],
)
def test_a_card_on_the_bus_speaks_for_a_driver_that_is_missing(
    tmp_path: Path, vendor: str, kind: str, is_one: bool
) -> None:
    assert not has_pci_card("10de", tmp_path)
    folder = tmp_path / "bus" / "pci" / "devices" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")
    assert has_pci_card("10de", tmp_path) is is_one


@pytest.mark.parametrize(("kind", "vendor"), [(AmdgpuWatcher, "0x1002"), (IntelWatcher, "0x8086")])
def test_a_card_without_a_driver_is_there_and_none_is_absent(
    tmp_path: Path, kind: type[AmdgpuWatcher | IntelWatcher], vendor: str
) -> None:
    watcher = kind(sysfs=tmp_path)
    with pytest.raises(BackendUnavailableError, match="there is no") as none:
        watcher.open()
    assert none.value.is_absent
    folder = tmp_path / "bus" / "pci" / "devices" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text("0x030000\n")
    with pytest.raises(BackendUnavailableError, match="without the kernel's driver") as some:
        watcher.open()
    assert not some.value.is_absent
