"""Answers to questions about placement as the outside sees them; see `present`."""

from collections.abc import Iterable

from exo.api.present import View, preview
from exo.shared.device_figures import KnownDevice
from exo.shared.types.commands import Decided, Planned, Preview, Why


def planned(value: Planned) -> View:
    """Return the shape `PlannedView`."""
    return {
        "answer": preview(value.answer),
        "before": _optional(value.before),
        "added": value.added,
        "verdict": value.verdict,
    }


def known_devices(devices: Iterable[KnownDevice]) -> list[View]:
    """Return the shapes `KnownDeviceView`."""
    ordered = sorted(devices, key=lambda one: (one.kind != "gpu", one.name))
    return [
        {
            "name": one.name,
            "vendor": one.vendor,
            "kind": one.kind,
            "memory_kind": one.memory_kind,
            "memory_gib": one.memory.gib,
            "memory_bandwidth_bytes_per_s": None
            if one.memory.bandwidth_gb_per_s is None
            else one.memory.bandwidth_gb_per_s * 1e9,
        }
        for one in ordered
    ]


def why(value: Why) -> View:
    """Return the shape `WhyView`."""
    explained = value.explained
    return {
        "instance_id": value.instance_id,
        "model_id": value.request.model_id,
        "request": value.request,
        "decisions": [_decision(one) for one in value.decisions],
        "explained": {
            "decision": _decision(explained.decision),
            "request": explained.request,
            "omitted": explained.omitted,
            "again": _optional(explained.again),
            "is_identical": None if explained.again is None else not explained.differences,
            "differences": explained.differences,
            "alternatives": [preview(one) for one in explained.alternatives],
        },
        "changes": value.changes,
        "today": _optional(value.today),
        "deleted_at": value.deleted_at,
        "notes": value.notes,
    }


def _decision(value: Decided) -> View:
    return {
        "kind": value.kind,
        "index": value.index,
        "at": value.at,
        "reason": value.reason,
        "plan": value.plan,
    }


def _optional(value: Preview | None) -> View | None:
    return None if value is None else preview(value)
