"""The process at the other end: takes hidden values, and answers with a token where one is wanted.

    python -m benchmarks.data_plane.answering HOME WAY

Says the port that it listens on, and serves until it is terminated.
"""

import sys
from pathlib import Path

from benchmarks.data_plane.ends import End, Way
from exo.dataplane.frames import Activation, Frame, Sampled
from exo.worker.runner.network import Connection


def _answer(connection: Connection, frame: Frame, payload: object) -> None:
    if isinstance(frame, Activation) and frame.wants_token:
        connection.send(Sampled(request_id=frame.request_id, token_id=1, is_finished=False))


def main(home: Path, way: Way) -> None:
    """Serve in one thread, as a stage does."""
    network = End(home, way).network
    network.on_frame = _answer
    print(network.address.port, flush=True)
    while True:
        network.poll(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Way(sys.argv[2]))
