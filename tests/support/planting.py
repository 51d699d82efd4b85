"""Plants bugs: a piece of a function's source is replaced. A piece that is no longer there is an error, not a miss."""

import inspect
import sys
import textwrap
from types import ModuleType

import pytest

_PLANTED = "planted_source"
"""A function that was changed before keeps its source here."""


class UnfitPlantError(Exception):
    """Raised when a bug cannot be planted because the code is not what it was: the plant has to be renewed."""


def plant(
    monkeypatch: pytest.MonkeyPatch,
    owner: type | ModuleType,
    name: str,
    old: str,
    new: str,
    *,
    everywhere: tuple[ModuleType, ...] = (),
) -> None:
    """Replace one piece of the source of a function or method.

    Args:
        monkeypatch: Undoes it.
        owner: The class or module that has the function.
        name: The function.
        old: What its source has exactly once; lines are compared without their common indentation.
        new: What it is to have instead.
        everywhere: Modules that have imported the function by its name.

    Raises:
        UnfitPlantError: The function has no such piece, or several.
    """
    function = inspect.getattr_static(owner, name, None)
    if not inspect.isfunction(function):
        raise UnfitPlantError(f"{owner.__name__} has no function {name}")
    source: str = getattr(function, _PLANTED, None) or textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise UnfitPlantError(f"{owner.__name__}.{name} has {source.count(old)} times: {old}")
    module = sys.modules[function.__module__]
    scope: dict[str, object] = {}
    # Its own source with one piece replaced: nothing from outside is run.
    exec(compile(source.replace(old, new), inspect.getfile(function), "exec"), module.__dict__, scope)  # noqa: S102
    setattr(scope[name], _PLANTED, source.replace(old, new))
    monkeypatch.setattr(owner, name, scope[name])
    for other in everywhere:
        monkeypatch.setattr(other, name, scope[name])
