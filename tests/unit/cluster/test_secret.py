"""The host secret and the node's id: made once, kept from others, the same for all who ask."""

import subprocess
import sys
from pathlib import Path

import pytest

from exo.cluster.node_id import load_node_id
from exo.cluster.secret import SECRET_BYTES, load_host_secret
from exo.shared.errors import ConfigurationError


def test_the_first_node_makes_it_and_the_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "exo" / "host.secret"
    secret = load_host_secret(path)
    assert len(secret) == SECRET_BYTES
    assert load_host_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["host.secret"], "no draft is left"


def test_nodes_that_start_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "exo" / "host.secret"
    script = (
        "import sys, pathlib\n"
        "from exo.cluster.secret import load_host_secret\n"
        "print('up', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(load_host_secret(pathlib.Path(sys.argv[1])).hex(), flush=True)\n"
    )
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for node in nodes:
        assert node.stdout is not None
        assert node.stdout.readline() == "up\n"
    for node in nodes:
        assert node.stdin is not None
        node.stdin.write("\n")
        node.stdin.flush()
    answers = {node.communicate()[0].strip() for node in nodes}
    assert answers == {load_host_secret(path).hex()}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "host.secret"
    load_host_secret(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_host_secret(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"ab" * 31, b"zz" * 32])
def test_a_damaged_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="damaged"):
        load_host_secret(path)


def test_a_place_that_cannot_be_written_is_a_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="EXO_HOST_SECRET_FILE"):
        load_host_secret(tmp_path / "file" / "host.secret")


def test_the_node_id_stays(tmp_path: Path) -> None:
    node_id = load_node_id(tmp_path)
    assert load_node_id(tmp_path) == node_id
    assert load_node_id(tmp_path, new_id=lambda: "other") == node_id


@pytest.mark.parametrize("content", ["", "a/b", "a b", "x" * 65])
def test_a_damaged_node_id_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "node_id").write_text(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        load_node_id(tmp_path)
