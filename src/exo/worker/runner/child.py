"""The stage process: `python -m exo.worker.runner.child`. Loads its layers, says so, serves until told to stop."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from loguru import logger

from exo.engines.base import Stage, StageSpec
from exo.engines.errors import EngineError
from exo.engines.registry import create_stage
from exo.shared.errors import ConfigurationError
from exo.worker.runner.control import Control
from exo.worker.runner.messages import LoadProgressed, RunnerFailed, RunnerLoaded, RunnerSpec, StopRunner
from exo.worker.runner.network import Network
from exo.worker.runner.pipes import MESSAGE_BYTES_MAX, MessageDecoder, PipeError
from exo.worker.runner.role import StageBrokenError
from exo.worker.runner.serve import StageServer

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run until stopped; the exit code is 0 when that was asked for, else 1."""
    parent_pid = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    _die_with_parent(parent_pid)
    reports_fd = _keep_stdout_clean()
    spec = _first_order()
    logger.remove()
    logger.add(sys.stderr, level="DEBUG" if spec.verbosity > 0 else "INFO", format="{level} {message}")
    control = Control(0, reports_fd, heartbeat_interval_s=spec.heartbeat_interval_s)
    control.take_signals()
    control.start()
    code = _work(spec, control)
    # Without the interpreter's own end: the engine's threads need not agree to it, and nothing is left to save.
    sys.stderr.flush()
    os._exit(code)


def _work(spec: RunnerSpec, control: Control) -> int:
    try:
        network = Network(
            spec.data_host,
            secret=spec.secret,
            sender=f"stage {spec.rank} of {spec.instance_id} on {spec.node_id}",
            node_id=spec.node_id,
            trust=spec.trust,
            advertised_host=spec.advertised_host,
            ports=spec.data_ports,
        )
    except ConfigurationError as error:
        control.say(RunnerFailed(reason=error.message))
        return 1
    except OSError as error:
        reason = f"cannot listen on {spec.data_host}: {error.strerror or error}"
        control.say(RunnerFailed(reason=reason))
        return 1
    try:
        stage = _load(spec, control)
        if any(isinstance(order, StopRunner) for order in control.orders):
            return 0
        description = stage.stats().device_description
        control.say(RunnerLoaded(address=network.address, device_description=description))
        StageServer(spec, stage, network, control).run()
    except EngineError as error:
        control.say(RunnerFailed(reason=error.message, is_permanent=error.is_permanent))
        return 1
    except StageBrokenError as error:
        control.say(RunnerFailed(reason=error.message))
        return 1
    except Exception as error:
        logger.exception("the stage failed")
        control.say(RunnerFailed(reason=f"the stage failed: {type(error).__name__}: {error}"))
        return 1
    finally:
        network.close()
    return 0


def _load(spec: RunnerSpec, control: Control) -> Stage:
    stage_spec = StageSpec(
        model_dir=Path(spec.model_dir),
        start_layer=spec.start_layer,
        end_layer=spec.end_layer,
        device=spec.device,
        context_length=spec.context_length,
    )
    total = spec.end_layer - spec.start_layer
    control.say(
        LoadProgressed(loaded_layers=0, total_layers=total, detail=f"starting the engine {spec.engine}")
    )
    stage = create_stage(spec.engine, stage_spec)

    def on_progress(loaded_layers: int, total_layers: int, detail: str) -> None:
        # That nothing is loaded yet was said above; the cluster writes it down once.
        if loaded_layers > 0:
            control.say(LoadProgressed(loaded_layers=loaded_layers, total_layers=total_layers, detail=detail))

    stage.load(on_progress)
    expected_last = spec.rank == spec.stage_count - 1
    if stage.is_last != expected_last or stage.is_first != (spec.rank == 0):
        raise EngineError(
            f"layers {spec.start_layer} to {spec.end_layer - 1} of {stage.layer_count} do not belong to stage "
            f"{spec.rank} of {spec.stage_count}; place the model again"
        )
    return stage


def _first_order() -> RunnerSpec:
    """Read the first message, and not one byte of the next: that is for the control thread."""
    decoder = MessageDecoder.of_parent()
    try:
        size = _read_exactly(4)
        messages = decoder.feed(size + _read_exactly(min(int.from_bytes(size), MESSAGE_BYTES_MAX)))
    except (PipeError, EOFError) as error:
        sys.exit(f"no orders came: {error}")
    if len(messages) != 1 or not isinstance(messages[0], RunnerSpec):
        sys.exit("the first order was not what to run; this program is started by an exo node")
    return messages[0]


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise EOFError("the pipe was closed")
        data += part
    return data


def _keep_stdout_clean() -> int:
    """Return a descriptor for messages; whatever a library prints goes where errors go."""
    sys.stdout.flush()
    reports_fd = os.dup(1)
    os.dup2(2, 1)
    return reports_fd


def _die_with_parent(parent_pid: int) -> None:
    """Have the system end this process with its parent. Elsewhere than on Linux the closed pipe does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)  # It died before that was arranged.


if __name__ == "__main__":
    main()
