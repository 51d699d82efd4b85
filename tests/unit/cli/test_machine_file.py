"""`--with FILE`: what a description of a machine becomes, and the line that is named where it is wrong."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo.api.schemas.planning import WishedMachineWish
from exo.cli.machine_file import read_machine
from exo.shared.errors import ConfigurationError
from support.placing import MACHINES

GIB = 2**30


def written(folder: Path, text: str, name: str = "used-pc.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ('gpu = "RTX 4090"', [("RTX 4090", "gpu", None)]),
        ('gpus = ["RTX 3090", "RTX 3090"]', [("RTX 3090", "gpu", None)] * 2),
        ('gpu = "Apple M2 Max"\nmemory_gib = 64', [("Apple M2 Max", "gpu", 64 * GIB)]),
        (
            'gpu = "RTX 4090"\nprocessor = "Ryzen 9 7950X"\nram_gib = 64',
            [("RTX 4090", "gpu", None), ("Ryzen 9 7950X", "processor", 64 * GIB)],
        ),
        ("ram_gib = 32", [("processor", "processor", 32 * GIB)]),
    ],
)
def test_a_few_words_are_enough(
    tmp_path: Path, text: str, devices: list[tuple[str, str, int | None]]
) -> None:
    found = read_machine(written(tmp_path, text))
    assert found["name"] == "used-pc"
    assert [(one["name"], one["kind"], one.get("memory_total_bytes")) for one in found["devices"]] == devices
    WishedMachineWish.model_validate(found)


def test_more_devices_than_a_machine_has_are_told_before_any_node_is_asked(tmp_path: Path) -> None:
    gpus = ", ".join(['"RTX 3090"'] * 65)
    with pytest.raises(ConfigurationError, match="it names 65 devices, and one machine has at most 64"):
        read_machine(written(tmp_path, f"gpus = [{gpus}]"))


def test_name_zone_and_cable_can_be_told(tmp_path: Path) -> None:
    text = 'name = "Upstairs"\ngpu = "RTX 3090"\nzone = "attic"\nlink_gbit_per_s = 2.5\nlink_latency_ms = 0.4'
    found = read_machine(written(tmp_path, text))
    assert (found["name"], found["zone"]) == ("Upstairs", "attic")
    assert (found["link_mbps"], found["link_latency_ms"]) == (2500.0, 0.4)


@pytest.mark.parametrize("file", MACHINES, ids=lambda one: one.stem)
def test_the_files_of_simulated_machines_are_taken_as_they_are(file: Path) -> None:
    found = read_machine(file)
    assert found["devices"]
    WishedMachineWish.model_validate(found)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('name = "x"\n\ngpu = "RTX 4095"', 3, "the catalogue has no 'RTX 4095'; did you mean GeForce RTX 40"),
        ('# a card\ngpus = ["RTX 3090",\n "RTX 3060"]', 2, "say how much memory 'RTX 3060' has"),
        ('name = "x"\ngpu = 4090', 2, "gpu: Expected a text in quotes, got a whole number"),
        ('name = "x"\ngpuu = "RTX 4090"', 2, "there is no `gpuu` here, but name, gpu, gpus, memory_gib"),
        ('gpu = "RTX 4090"\nram_gib = -1', 2, "ram_gib: Expected a number > 0"),
        ('gpu = "RTX 4090"\nprocessor = "Ryzen 9 7950X"', 2, "a processor needs ram_gib"),
        ('gpu = "RTX 4090"\nlink_gbit_per_s = inf_', 2, "it is no TOML"),
        ("gpus = 2", 1, 'gpus: Expected a list such as ["RTX 3090"], got a whole number'),
        (
            '[[devices]]\nname = "RTX 4090"\n\n[[devices]]\nname = "RTX 3090"\nmemory_gib = "24"',
            6,
            "devices[1].memory_gib",
        ),
        ('[[devices]]\nname = "RTX 4090"\n[[devices]]\nname = "Voodoo 2"', 4, "no 'Voodoo 2'"),
        ('[[devices]]\nvendor = "nvidia"', 1, "missing required field `name`"),
        (
            '[[devices]]\nname = "RTX 4090"\ncolour = "red"',
            3,
            "there is no `colour` here, but name, kind, vendor",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        read_machine(written(tmp_path, text))
    assert f"line {line}" in wrong.value.message, wrong.value.message
    assert words in wrong.value.message and "used-pc.toml" in wrong.value.message


def test_a_file_without_a_device_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='give at least: gpu = "RTX 4090"'):
        read_machine(written(tmp_path, 'name = "empty"'))
    with pytest.raises(ConfigurationError, match="No such file"):
        read_machine(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="directory"):
        read_machine(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b'name = "x"\n# \xff')
    with pytest.raises(ConfigurationError, match="line 2: it is no text"):
        read_machine(tmp_path / "bad.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigurationError, match="more than a mebibyte"):
        read_machine(tmp_path / "long.toml")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.tuples(
            st.sampled_from(("name", "gpu", "gpus", "memory_gib", "ram_gib", "processor", "zone", "devices")),
            st.sampled_from(
                ('"RTX 4090"', '["RTX 3090"]', "1", "-1", "nan", "inf", "1e400", "{}", "[]", '""')
            ),
        ),
        max_size=4,
    ).map(lambda rows: "\n".join(f"{key} = {value}" for key, value in rows))
)
def test_whatever_is_in_a_file_it_is_a_machine_or_a_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "any.toml"
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        found = read_machine(file)
    except ConfigurationError as error:
        assert str(file) in error.message
    else:
        WishedMachineWish.model_validate(found)
