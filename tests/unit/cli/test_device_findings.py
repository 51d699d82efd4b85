"""What `exo doctor` says of devices: those that are used, those that are not, and what installs each missing piece."""

from msgspec.structs import replace

from exo.cli.checks import check_devices, describe_devices
from exo.gpu.errors import BackendUnavailableError
from exo.gpu.inventory import Inventory, MissingBackend, RefusedDevice, UsedDevice
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import NodeId
from support.scripted_driver import GIB, ScriptedDriver
from support.states import gpu

WRONG_STEP = (
    "undo overclocking, update its driver, restart the machine; if it still computes wrongly, it is broken"
)


def test_each_piece_stands_with_what_installs_it() -> None:
    device = gpu("n", 8 * GIB)
    driver = ScriptedDriver()
    driver.why_not_computing = BackendUnavailableError(
        "CuPy is not installed", install_command="uv pip install cupy"
    )
    backend = ThreadedBackend(driver, NodeId("n"))
    wrong = replace(device, local_alias="cuda:2")
    inventory = Inventory(
        used=(UsedDevice(backend, device), UsedDevice(backend, replace(device, local_alias="cuda:1"))),
        refused=(
            RefusedDevice(wrong, "wrong", "its check failed: wrong sums"),
            RefusedDevice(replace(device, local_alias="cuda:3"), "unchecked", "its check has not ended yet"),
            RefusedDevice(replace(device, local_alias="cuda:4"), "duplicate", "another has it"),
        ),
        missing=(MissingBackend(name="rocm", reason="amdsmi is missing", install_command="apt install it"),),
    )
    assert [(one.status, one.text, one.next_step) for one in describe_devices(inventory)] == [
        ("ok", "cuda:0: Test GPU, 8.0 GiB", ""),
        ("ok", "cuda:1: Test GPU, 8.0 GiB", ""),
        ("broken", "cuda:2: Test GPU is not used: its check failed: wrong sums", WRONG_STEP),
        (
            "note",
            "cuda:3: Test GPU is not used: its check has not ended yet",
            "wait a moment; if it stays so, restart the machine",
        ),
        ("note", "simulated works in part: CuPy is not installed", "uv pip install cupy"),
        ("note", "no rocm: amdsmi is missing", "apt install it"),
    ]


def test_this_machine_has_its_processor_at_least() -> None:
    assert any(one.status == "ok" and one.text.startswith("cpu:0: ") for one in check_devices())
