"""Which backends work, and what is missing for the others."""

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.factory import GPUBackendFactory, devices_of
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import NodeId
from support.gpu_drivers import BrokenDriver

NODE = NodeId("n")


async def test_a_backend_that_is_missing_something_never_stops_the_others() -> None:
    factory = GPUBackendFactory(
        [
            lambda: ThreadedBackend(BrokenDriver("the driver is missing; install it"), NODE),
            lambda: ThreadedBackend(CPUDriver(), NODE),
        ]
    )
    working = await factory.create_all()
    assert [device.device_id for _, device in await devices_of(working)] == ["n/cpu:0"]
    assert [one.reason for one in factory.missing] == ["the driver is missing; install it"]
    for backend in working:
        await backend.shutdown()
