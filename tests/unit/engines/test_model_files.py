"""Damaged model directories are refused with the file's or the tensor's name, for good."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.engines.base import StageSpec
from exo.engines.errors import EngineUnavailableError, ModelFilesError, PromptError
from exo.engines.model_files import check_weights
from exo.engines.registry import create_stage
from exo.shared.types.generation import ChatMessage
from support.models import write_random_model


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("whole") / "model", shard_count=3)


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """A copy to damage: three files, the first with the embedding and the first layers."""
    return Path(shutil.copytree(whole_model, tmp_path / "model"))


def load(model_dir: Path, start: int = 0, end: int = 6, device: str = "cpu:0") -> None:
    spec = StageSpec(model_dir=model_dir, start_layer=start, end_layer=end, device=device, context_length=64)
    create_stage("mlx", spec).load(lambda *_: None)


def truncate(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(size)


def weights(model_dir: Path, number: int) -> Path:
    return model_dir / f"model-{number:05d}-of-00003.safetensors"


def test_a_truncated_file_is_named_with_what_is_missing(model: Path) -> None:
    file = weights(model, 2)
    truncate(file, file.stat().st_size - 1000)
    with pytest.raises(
        ModelFilesError, match=r"00002-of-00003.safetensors is truncated.*\(1,000 are missing\)"
    ):
        load(model)


@pytest.mark.parametrize("size", [0, 4, 8, 100])
def test_a_file_cut_in_its_header_is_named(model: Path, size: int) -> None:
    truncate(weights(model, 2), size)
    with pytest.raises(
        ModelFilesError, match=r"00002-of-00003.safetensors is (truncated|no safetensors file)"
    ):
        load(model)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": {}}', b'{"a": {"data_offsets": 3}}', b"\xff\xff", b'{"a": 1}']
)
def test_a_damaged_header_is_named(model: Path, header: bytes) -> None:
    weights(model, 2).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelFilesError, match=r"00002-of-00003.safetensors is no safetensors file"):
        load(model)


def test_a_missing_file_is_named(model: Path) -> None:
    weights(model, 3).unlink()
    with pytest.raises(
        ModelFilesError, match=r"lacks model\..* and \d+ more: .*00003-of-00003.safetensors is missing"
    ):
        load(model)


def test_a_stage_does_without_the_files_of_other_layers(model: Path) -> None:
    present = check_weights(model).present
    last = max(
        int(name.split(".")[2])
        for name, file in present.items()
        if file == weights(model, 1) and "layers" in name
    )
    weights(model, 3).unlink()
    load(model, 0, last)


def test_a_missing_tensor_is_named(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    name = "model.layers.3.mlp.up_proj.weight"
    _without_tensor(model / index["weight_map"][name], name)
    with pytest.raises(ModelFilesError, match=r"lacks model\.layers\.3\.mlp\.up_proj\.weight"):
        load(model, 2, 5)
    load(model, 4, 6)


def _without_tensor(file: Path, name: str) -> None:
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["another"] = header.pop(name)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def test_a_tensor_of_another_shape_is_named(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(
        ModelFilesError, match=r"mlp\.\w+\.weight in .* has the shape \(.*\), but config.json asks for"
    ):
        load(model)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model: (model / "config.json").unlink(), r"config.json is missing"),
        (lambda model: (model / "config.json").write_text("{"), r"config.json is no JSON"),
        (lambda model: (model / "config.json").write_text("[]"), r"config.json holds no JSON object"),
        (lambda model: (model / "config.json").write_text("{}"), r"config.json names no model_type"),
        (
            lambda model: (model / "config.json").write_text('{"model_type": "qwen3"}'),
            r"cannot be read as a model of the family qwen3",
        ),
        (lambda model: (model / "tokenizer.json").write_text("{"), r"the tokenizer in .* cannot be read"),
        (lambda model: (model / "model.safetensors.index.json").write_text("{}"), r"has no weight_map"),
    ],
)
def test_other_damage_is_named(model: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(model)
    with pytest.raises(ModelFilesError, match=said):
        load(model)


def test_no_weights_at_all(model: Path) -> None:
    for number in (1, 2, 3):
        weights(model, number).unlink()
    with pytest.raises(ModelFilesError, match=r"has no model\*\.safetensors file"):
        load(model)


def test_code_from_a_model_directory_is_not_run(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelFilesError):
        load(model)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path, has_chat_template=False)
    spec = StageSpec(model_dir=directory, start_layer=0, end_layer=6, device="cpu:0", context_length=64)
    stage = create_stage("mlx", spec)
    stage.load(lambda *_: None)
    with pytest.raises(PromptError, match="no chat template"):
        stage.tokenizer.encode_chat([ChatMessage(role="user", content="x")])


def test_a_template_that_refuses_is_quoted(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('roles must alternate') }}"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    spec = StageSpec(model_dir=model, start_layer=0, end_layer=6, device="cpu:0", context_length=64)
    stage = create_stage("mlx", spec)
    stage.load(lambda *_: None)
    with pytest.raises(PromptError, match="roles must alternate"):
        stage.tokenizer.encode_chat([ChatMessage(role="user", content="x")])


def test_a_device_that_is_not_there(model: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="tpu:0"):
        load(model, device="tpu:0")


def test_an_engine_that_is_not_known(model: Path) -> None:
    spec = StageSpec(model_dir=model, start_layer=0, end_layer=6, device="cpu:0", context_length=64)
    with pytest.raises(EngineUnavailableError, match="'nonesuch'; there are: mlx"):
        create_stage("nonesuch", spec)
