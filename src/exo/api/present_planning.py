"""Answers to questions about placement as the outside sees them; see `present`."""

from exo.api.present import View, preview
from exo.shared.types.commands import Decided, Planned, Preview, Why


def planned(value: Planned) -> View:
    """Return the shape `PlannedView`."""
    return {
        "answer": preview(value.answer),
        "before": _optional(value.before),
        "added": value.added,
        "verdict": value.verdict,
    }


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
