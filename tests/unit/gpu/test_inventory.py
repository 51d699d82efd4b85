"""One device that two backends claim."""

from typing import Any

from msgspec.structs import replace

from exo.gpu.inventory import settle_claims
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import NodeId
from support.scripted_driver import ScriptedDriver
from support.states import gpu

FIRST = ThreadedBackend(ScriptedDriver(), NodeId("n"))
SECOND = ThreadedBackend(ScriptedDriver(), NodeId("n"))


def device(alias: str, **changes: Any) -> GPUDevice:
    return replace(gpu("n", 1000, alias=alias), **changes)


def settled(first: list[GPUDevice], second: list[GPUDevice]) -> tuple[list[str], dict[str, str]]:
    used, refused = settle_claims([(FIRST, first), (SECOND, second)])
    return [one.device.local_alias for one in used], {one.device.local_alias: one.reason for one in refused}


def test_the_first_backend_keeps_what_both_claim_by_address() -> None:
    used, refused = settled(
        [device("cuda:0", pci_address="00000000:01:00.0"), device("cuda:1", pci_address="00000000:02:00.0")],
        [device("directml:0", pci_address="0000:02:00.0"), device("directml:1", pci_address="03:00.0")],
    )
    assert used == ["cuda:0", "cuda:1", "directml:1"]
    assert refused == {"directml:0": "simulated has it already, as cuda:1"}


def test_the_first_backend_keeps_what_both_claim_by_uuid() -> None:
    used, refused = settled([device("a:0", uuid="GPU-AB12")], [device("b:0", uuid="ab12"), device("b:1")])
    assert used == ["a:0", "b:1"] and list(refused) == ["b:0"]


def test_parts_of_one_gpu_share_its_address_and_are_devices_all_the_same() -> None:
    parts = [device(f"cuda:{n}", pci_address="0000:01:00.0", uuid=f"MIG-{n}") for n in range(3)]
    used, refused = settled(parts, [device("directml:0", pci_address="0000:01:00.0")])
    assert used == ["cuda:0", "cuda:1", "cuda:2"] and list(refused) == ["directml:0"]


def test_devices_without_marks_are_all_different() -> None:
    used, refused = settled([device("a:0"), device("a:1")], [device("b:0")])
    assert len(used) == 3 and refused == {}
