"""Machines with GPUs for the page: eight with troubles, one that is played, one of unified memory, and two hundred."""

import copy
from typing import Any

from browser.scripted_node import Json, fixture

GIB = 1 << 30
FORGE = "8f4be1d2c06a4711"
DREAM = "d2ea3b5c91f04e88"
SPARK = "51ab77f0e3c24d90"
RACK = "77c02f1e5ad84b63"
HOT, FAILED, DEGRADED, BUSY, WARM = 2, 5, 6, 3, 7
"""Places of forge's GPUs that are not as the others."""

FACTS: Json = {
    "compute_units": None,
    "compute_capability": None,
    "clock_mhz": None,
    "memory_bandwidth_bytes_per_s": None,
    "flops_per_s": None,
    "driver_version": None,
    "uuid": None,
    "is_simulated": False,
    "pci_address": None,
    "support_level": "full",
    "measured_memory_bandwidth_bytes_per_s": None,
    "measured_flops_per_s": None,
    "number": None,
}
UNTOLD: Json = {
    "memory_used_bytes": None,
    "memory_total_bytes": None,
    "compute_utilization_percent": None,
    "thermal_temperature_c": None,
    "thermal_throttle_threshold_c": None,
    "is_thermal_throttling": None,
    "power_watts": None,
    "clock_mhz": None,
    "battery_percent": None,
    "is_plugged_in": None,
    "health": "healthy",
    "health_reason": None,
    "last_update": "2026-01-15T09:30:00Z",
    "throttle_reasons": None,
    "power_limit_watts": None,
    "clock_max_mhz": None,
    "ecc_corrected_count": None,
    "ecc_uncorrected_count": None,
    "faults": [],
    "processes": None,
    "is_memory_pressed": None,
    "thermal": None,
    "energy_joules": None,
}
GOVERNED: Json = {
    "state": "slowed",
    "reason": "Slowed to 71% at 75 C: 79 C predicted within 60 s, 78 C allowed (limit 83 C).",
    "work_fraction": 0.71,
    "limit_c": 83.0,
    "is_limit_assumed": False,
    "predicted_temperature_c": 77.4,
    "prediction_error_c": 0.62,
    "sustained_fraction": 0.66,
    "is_calibrated": True,
    "power_source": "measured",
}


def device(node_id: str, alias: str, name: str, memory: str, total_gib: int, **facts: Any) -> Json:
    """Return a device in the shape `DeviceView`."""
    return FACTS | {
        "device_id": f"{node_id}/{alias}",
        "local_alias": alias,
        "name": name,
        "vendor": facts.pop("vendor", "NVIDIA"),
        "backend": facts.pop("backend", alias.partition(":")[0]),
        "memory_kind": memory,
        "memory_total_bytes": total_gib * GIB,
        **facts,
    }


def told(of: Json, used_gib: float | None, load_percent: float | None, **fields: Any) -> Json:
    """Return what a device says in the shape `DeviceStateView`; all else is unknown."""
    return UNTOLD | {
        "device_id": of["device_id"],
        "node_id": of["device_id"].partition("/")[0],
        "memory_used_bytes": None if used_gib is None else int(used_gib * GIB),
        "memory_total_bytes": of["memory_total_bytes"],
        "compute_utilization_percent": load_percent,
        **fields,
    }


def machine(base: Json, node_id: str, name: str, devices: list[Json], states: list[Json]) -> Json:
    """Return a node in the shape `NodeView` whose profile is the sum of what its devices say."""
    own = [
        (one, state)
        for one, state in zip(devices, states, strict=True)
        if one["memory_kind"] == "vram" and one["backend"] != "cpu"
    ]
    gpus = [one for one in devices if one["backend"] != "cpu"]
    processor = states[0]
    total = sum(one["memory_total_bytes"] for one, _ in own)
    used = sum(state["memory_used_bytes"] or 0 for _, state in own)
    node = copy.deepcopy(base) | {"node_id": node_id, "name": name, "host_id": name, "devices": devices}
    node["node_profile"]["memory"] |= {
        "ram_total": devices[0]["memory_total_bytes"],
        "ram_available": devices[0]["memory_total_bytes"] - processor["memory_used_bytes"],
        "gpu_vram_total": total,
        "gpu_vram_used": used,
        "gpu_vram_available": total - used,
    }
    node["node_profile"]["system"] |= {"gpu_count": len(gpus), "gpu_names": [one["name"] for one in gpus]}
    return node


def forge(base: Json) -> tuple[Json, list[Json]]:
    """Return a server with eight GPUs: one is hot, one failed, one is degraded, one is at its power limit."""
    name = "NVIDIA H100 80GB HBM3"
    gpus = [
        device(FORGE, f"cuda:{place}", name, "vram", 80, driver_version="550.54.15") for place in range(8)
    ]
    cpu = device(FORGE, "cpu:0", "AMD EPYC 9654 96-Core Processor", "ram", 1536, vendor="AMD")
    clocks: Json = {"clock_mhz": 1755.0, "clock_max_mhz": 1980.0}
    heat: Json = {
        "thermal_throttle_threshold_c": 87.0,
        "is_thermal_throttling": False,
        "throttle_reasons": [],
    }
    power: Json = {"power_limit_watts": 700.0, "ecc_corrected_count": 0, "ecc_uncorrected_count": 0}
    states = [
        told(
            gpu,
            61.5 + place,
            88.0 + place,
            **clocks
            | heat
            | power
            | {"thermal_temperature_c": 58.0 + place, "power_watts": 540.0 + 11 * place},
        )
        for place, gpu in enumerate(gpus)
    ]
    states[HOT] |= {
        "thermal_temperature_c": 88.0,
        "is_thermal_throttling": True,
        "throttle_reasons": ["thermal", "power"],
        "clock_mhz": 1290.0,
    }
    states[BUSY] |= {"throttle_reasons": ["power"], "power_watts": 699.6}
    lost = "GPU has fallen off the bus"
    states[FAILED] = told(
        gpus[FAILED],
        None,
        None,
        health="failed",
        health_reason=f"{lost}; kept out for 120 s, for the second time, then tried again",
        faults=[{"kind": "xid", "code": 79, "message": f"Xid 79: {lost}", "is_fatal": True}],
    )
    states[DEGRADED] |= {
        "health": "degraded",
        "health_reason": "1 memory error that could not be corrected",
        "ecc_uncorrected_count": 1,
    }
    states[WARM] |= {"thermal_temperature_c": 84.4}
    states[0] |= {"processes": [{"pid": 4711, "used_bytes": 60 * GIB}, {"pid": 4712, "used_bytes": None}]}
    states.insert(0, told(cpu, 210, 6.0, power_watts=141.0, is_memory_pressed=False))
    return machine(base, FORGE, "forge", [cpu, *gpus], states), states


def dream(base: Json) -> tuple[Json, list[Json]]:
    """Return a machine whose GPU is played."""
    cpu = device(DREAM, "cpu:0", "Intel Core i7-1260P", "ram", 16, vendor="Intel")
    gpu = device(DREAM, "simulated:0", "NVIDIA GeForce RTX 4090 (simulated)", "vram", 24, is_simulated=True)
    states = [
        told(cpu, 9.5, 21.0, thermal_temperature_c=64.0, battery_percent=81.0, is_plugged_in=False),
        told(gpu, 20.25, 97.0, thermal_temperature_c=75.0, power_watts=412.0, power_limit_watts=450.0)
        | {"thermal_throttle_threshold_c": 83.0, "thermal": GOVERNED},
    ]
    return machine(base, DREAM, "dream", [cpu, gpu], states), states


def spark(base: Json) -> tuple[Json, list[Json]]:
    """Return a machine whose GPU has no memory of its own."""
    cpu = device(SPARK, "cpu:0", "Cortex-X925", "ram", 128, vendor="ARM")
    gpu = device(SPARK, "cuda:0", "NVIDIA GB10", "unified", 128, driver_version="580.95")
    states = [
        told(cpu, 44, 12.0),
        told(gpu, 44, 55.0, thermal_temperature_c=61.0, power_watts=38.0, is_thermal_throttling=False),
    ]
    return machine(base, SPARK, "spark", [cpu, gpu], states), states


def rack(base: Json) -> tuple[Json, list[Json]]:
    """Return a machine with two hundred GPUs of a very long name, of which the 151st failed."""
    name = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition (MIG 1g.24gb, engineering sample)"
    cpu = device(RACK, "cpu:0", "AMD EPYC 9965 192-Core Processor", "ram", 3072, vendor="AMD")
    gpus = [device(RACK, f"cuda:{place}", name, "vram", 24) for place in range(200)]
    states = [
        told(gpu, 3.5, float(place % 101), thermal_temperature_c=45.0) for place, gpu in enumerate(gpus)
    ]
    states[150] |= {"health": "failed", "health_reason": "it computes wrong products"}
    states.insert(0, told(cpu, 800, 31.0))
    return machine(base, RACK, "rack", [cpu, *gpus], states), states


def state_with_gpus() -> Json:
    """Return the recorded state with the first three machines added."""
    state = fixture("state")
    base = state["topology"]["nodes"][0]
    add(state, forge(base), dream(base), spark(base))
    return state


def state_with_rack() -> Json:
    """Return the recorded state with the two hundred added."""
    state = fixture("state")
    add(state, rack(state["topology"]["nodes"][0]))
    return state


def add(state: Json, *machines: tuple[Json, list[Json]]) -> None:
    """Add machines to a state."""
    for node, states in machines:
        state["topology"]["nodes"].append(node)
        metrics = state["topology"]["metrics"]
        metrics["device_count"] += len(node["devices"])
        metrics["memory_total_bytes"] += sum(one["memory_total_bytes"] for one in node["devices"])
        state["gpu_device_state"] |= {one["device_id"]: one for one in states}
