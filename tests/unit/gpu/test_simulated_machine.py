"""Files of simulated machines: those that come along can be played, and others say what is wrong with them."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from exo.gpu.backends.simulated.machine import Lost, load_machine
from exo.shared.errors import ConfigurationError

HARDWARE = Path(__file__).parents[2] / "hardware"
FILES = sorted(HARDWARE.glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_machine_that_comes_along_can_be_played_and_names_its_sources(file: Path) -> None:
    machine = load_machine(file)
    assert machine.devices
    assert any("assumed" in source for source in machine.sources)
    assert any("assumed" not in source for source in machine.sources)
    uuids = [one.uuid for one in machine.devices if one.uuid is not None]
    assert len(set(uuids)) == len(uuids)


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    file = HARDWARE / "pc-mixed-failing.toml"
    copy = tmp_path / "machine.json"
    copy.write_text(json.dumps(tomllib.loads(file.read_text(encoding="utf-8"))))
    assert load_machine(copy) == load_machine(file)
    assert isinstance(load_machine(copy).devices[1].faults[1], Lost)


def device(**changes: Any) -> dict[str, Any]:
    return {
        "name": "GPU",
        "vendor": "nvidia",
        "memory_kind": "vram",
        "memory_total_bytes": 1000,
        "power": {"idle_watts": 1, "limit_watts": 100},
        **changes,
    }


HEAT = {"capacity_joules_per_c": 1, "conductance_watts_per_c": 1, "throttle_c": 90}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"memory_total_bytes": "much"}, "devices[0].memory_total_bytes"),
        ({"memory_total_bytes": 0}, "devices[0].memory_total_bytes"),
        ({"memory_kind": "hbm"}, "devices[0].memory_kind"),
        ({"colour": "red"}, "devices[0]"),
        ({"name": ""}, "devices[0].name"),
        ({"power": {"idle_watts": 5, "limit_watts": 4}}, "devices[0].power.limit_watts"),
        ({"heat": HEAT, "power": None}, "devices[0].power"),
        ({"heat": {**HEAT, "throttle_c": 20}}, "devices[0].heat.throttle_c"),
        ({"battery": {"capacity_watt_hours": 1}, "power": None}, "devices[0].power"),
        ({"load": [{"at_s": 5, "utilization_percent": 1}] * 2}, "devices[0].load"),
        ({"load": [{"at_s": 0, "utilization_percent": 101}]}, "devices[0].load[0].utilization_percent"),
        (
            {"load": [{"at_s": 0, "utilization_percent": 1, "memory_used_bytes": 1001}]},
            "devices[0].load[0].memory_used_bytes",
        ),
        (
            {"load": [{"at_s": 9, "utilization_percent": 1}], "load_period_s": 9},
            "devices[0].load_period_s",
        ),
        ({"faults": [{"kind": "melted", "at_s": 1}]}, "devices[0].faults[0].kind"),
        ({"faults": [{"kind": "lost", "at_s": 1, "until_s": 1}]}, "devices[0].faults[0].until_s"),
        ({"faults": [{"kind": "xid", "at_s": 1}]}, "devices[0].faults[0]"),
        (
            {"faults": [{"kind": "nonsense", "at_s": 1, "values": {"mood": 3}}]},
            "devices[0].faults[0].values.mood",
        ),
    ],
)
def test_a_bad_file_is_named_with_the_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"name": "m", "sources": ["none"], "devices": [device(**changes)]}))
    with pytest.raises(ConfigurationError) as caught:
        load_machine(file)
    assert str(file) in caught.value.message and f"{field}: " in caught.value.message
    assert "unset EXO_GPU_BACKEND" in caught.value.message


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_what_is_no_such_file_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"machine.{suffix}"
    with pytest.raises(ConfigurationError, match=r"cannot read the simulated machine .*machine"):
        load_machine(file)
    for content in (b"= nonsense", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match="the file: "):
            load_machine(file)
    file.write_text('{"name": "m", "devices": []}' if suffix == "json" else 'name = "m"\ndevices = []')
    with pytest.raises(ConfigurationError, match="sources"):
        load_machine(file)
