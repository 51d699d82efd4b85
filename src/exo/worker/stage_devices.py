"""The devices of this node's stages: who holds which GPU while it runs, and what a stage's end says of its devices."""

from collections.abc import Callable, Mapping, Sequence

from exo.gpu import failures
from exo.gpu.allocation import Candidate, candidates_of
from exo.gpu.errors import GPUTakenError
from exo.gpu.failures import Failure
from exo.gpu.manager import GPUManager
from exo.gpu.numbering import with_numbers
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId
from exo.shared.types.instances import StagePlan
from exo.worker.runner.messages import RunnerFailed


class StageDevices:
    """Sees to it that stages keep to what was promised them of GPUs. The processor is held by nobody.

    Args:
        devices: Gives this node's devices as they are now.
        states: Gives their last telemetry.
        observe_failure: Takes what went wrong on a device (`HealthWatch.observe_failure`).
    """

    def __init__(
        self,
        *,
        devices: Callable[[], Sequence[GPUDevice]],
        states: Callable[[], Mapping[DeviceId, DeviceGPUState]],
        observe_failure: Callable[[DeviceId, Failure], None],
    ) -> None:
        self._devices = devices
        self._states = states
        self._observe_failure = observe_failure
        self._numbers: dict[DeviceId, int] = {}
        self.manager = GPUManager(self._candidates)
        """For engines that choose GPUs themselves. A GPU keeps its number here, even through an absence."""

    def take(self, owner: str, stage: StagePlan) -> None:
        """Have a stage hold the GPUs that its plan names.

        Args:
            owner: The stage, as people are to read it.
            stage: What it was promised.

        Raises:
            GPUTakenError: One of them is not there, has failed, or is promised to others.
        """
        there = {one.device_id: one for one in self._devices()}
        gone = [device_id for device_id in stage.device_ids if device_id not in there]
        if gone:
            raise GPUTakenError(
                f"{owner} cannot use {', '.join(gone)}: this node has no such device; place it again"
            )
        wanted = [device_id for device_id in stage.device_ids if there[device_id].backend != "cpu"]
        if not wanted:
            return
        self._candidates()  # So that each has its number.
        gpus = [self._numbers[device_id] for device_id in wanted]
        self.manager.take(gpus, owner=owner, memory_bytes=stage.memory_bytes // len(stage.device_ids))

    def release(self, owner: str) -> None:
        """Give back what a stage holds; one that holds nothing is no error."""
        self.manager.release(owner=owner)

    def stage_failed(self, stage: StagePlan, message: RunnerFailed) -> None:
        """Tell what a stage's end says of its devices."""
        failure = failure_of(message)
        if failure is not None:
            for device_id in stage.device_ids:
                self._observe_failure(device_id, failure)

    def _candidates(self) -> list[Candidate]:
        gpus = [(number, one) for number, one in with_numbers(self._devices()) if one.backend != "cpu"]
        self._numbers = {one.device_id: number for number, one in gpus}
        return candidates_of([one for _, one in gpus], self._states())


def failure_of(message: RunnerFailed) -> Failure | None:
    """Return what a stage's end says of its devices. Pure.

    A process that said itself why it ends is believed: only what is known as a device's failure counts as one.
    """
    if message.ending is None:
        return failures.of_text(message.reason)
    ending = message.ending
    return failures.of_exit(ending.exit_code, ending.last_words, is_hung=ending.is_hung)
