"""`exo place` and `exo delete`: have a model placed, watch it load, take it away."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from exo.cli.client import NodeClient, RefusedError
from exo.cli.naming import find_device, find_instance, find_node, find_node_or_device
from exo.cli.output import answers, plain, print_json, remarks
from exo.shared.errors import ConfigurationError, ExoError, NotReadyError
from exo.shared.types.instances import Objective, Sharding

Json = dict[str, Any]

POLL_S = 0.1
_WISH_REFUSED = (409, 422)
"""Statuses of what cannot be had as it was asked for, now or ever."""


class InstanceFailedError(ExoError):
    """Raised when an instance that was waited for cannot become ready."""


def make_wish(
    client: NodeClient,
    *,
    model: str,
    min_nodes: int,
    sharding: str,
    engine: str,
    prefer_gpu: bool,
    nodes: Sequence[str],
    devices: Sequence[str],
    exclude: Sequence[str],
    context_length: int | None,
    concurrency: int,
    layers: str,
    objective: str = "auto",
    must_use: Sequence[str] = (),
    apart_from: Sequence[str] = (),
    zones: Sequence[str] = (),
    min_zones: int = 1,
) -> Json:
    """Return the body of `POST /instance`, without what was left at its default.

    Raises:
        ConfigurationError: A name fits no node, or several; the layers are no numbers; there is no such kind.
    """
    _check_kind("--objective", objective, get_args(Objective))
    _check_kind("--sharding", sharding, get_args(Sharding))
    wish: Json = {
        "model_id": model,
        "min_nodes": min_nodes,
        "concurrency": concurrency,
        "prefer_gpu": prefer_gpu,
    }
    wish |= {"sharding": sharding, "engine": engine}
    if context_length is not None:
        wish["context_length"] = context_length
    if layers:
        wish["layer_split"] = _numbers(layers)
    if objective != "auto":
        wish["objective"] = objective
    if apart_from:
        wish["apart_from"] = list(apart_from)
    if zones:
        wish["zones"] = list(zones)
    if min_zones > 1:
        wish["min_zones"] = min_zones
    if nodes or exclude or devices or must_use:
        known = client.get("/state")["topology"]["nodes"]
        wish["node_ids"] = [find_node(known, text) for text in nodes]
        wish["device_ids"] = [find_device(known, text) for text in devices]
        wish["exclude"] = [find_node_or_device(known, text) for text in exclude]
        wish["must_use"] = [find_node_or_device(known, text) for text in must_use]
    return wish


def place(client: NodeClient, wish: Json, *, is_waiting: bool, timeout_s: float, as_json: bool) -> None:
    """Place, then wait until the instance is ready.

    Raises:
        RefusedError: The master refuses.
        InstanceFailedError: It failed.
        NotReadyError: It is not ready in time.
    """
    try:
        placed = client.post("/instance", wish)
    except RefusedError as error:
        if error.status in _WISH_REFUSED:
            remarks().print("the same with --dry-run says what would help", style="dim")
        raise
    if is_waiting:
        placed = wait_until_ready(client, placed["instance_id"], timeout_s=timeout_s)
    if as_json:
        print_json(placed)
        return
    stages = len(placed["stages"])
    answers().print(
        f"{plain(placed['model_id'])} is {placed['status']} as {placed['instance_id']}, "
        f"in {stages} stage{'' if stages == 1 else 's'}"
    )
    for line in placed["plan"]["explanation"].splitlines()[1:]:
        answers().print(f"  {plain(line)}", style="dim", soft_wrap=True)
    if is_waiting:
        remarks().print(f"ask it something: exo chat {plain(placed['model_id'])}", style="dim")


def wait_until_ready(client: NodeClient, instance_id: str, *, timeout_s: float) -> Json:
    """Return the instance when it is ready; draws a bar of its layers on a terminal.

    Raises:
        InstanceFailedError: It failed.
        NotReadyError: It is not ready in time.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    deadline_s = time.monotonic() + timeout_s
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("layers"))
    console = remarks()
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("pending", total=None)
        while True:
            # The wait itself is the node's; asking often only moves the bar.
            instance = client.get(f"/instance/{instance_id}")
            progress.update(
                task,
                description=f"{plain(instance['model_id'])}: {instance['status']}",
                total=instance["layer_count"],
                completed=instance["loaded_layers"],
            )
            if instance["status"] == "ready":
                return instance
            lasting = _lasting_failure(client, instance_id) if instance["status"] == "failed" else None
            if lasting is not None:
                raise InstanceFailedError(
                    f"{lasting['model_id']} failed: {lasting['reason']}; "
                    f"mend that, then: exo delete {instance_id}, and place it again"
                )
            if time.monotonic() >= deadline_s:
                raise NotReadyError(
                    f"{instance['model_id']} is {instance['status']} after {timeout_s:g} s, with "
                    f"{instance['loaded_layers']} of {instance['layer_count']} layers; it goes on loading: exo status"
                )
            time.sleep(POLL_S)


def _lasting_failure(client: NodeClient, instance_id: str) -> Json | None:
    """Return the instance if it has failed in a way that the master will not mend by starting it again."""
    try:
        instance = client.get(f"/instance/{instance_id}/wait", {"timeout_s": 0})
    except RefusedError as error:
        if error.status == 504:
            return None
        raise
    return instance if instance["status"] == "failed" else None


def make_change(
    client: NodeClient, *, without: Sequence[str], with_files: Sequence[Path], instead: Sequence[str]
) -> Json:
    """Return what of the body of `POST /instance/plan` says how the cluster would be another one.

    Raises:
        ConfigurationError: A name fits nothing, or several; a file cannot be used.
    """
    change: Json = {}
    if with_files:
        from exo.cli.machine_file import read_machine

        change["machines"] = [read_machine(file) for file in with_files]
    if without:
        known = client.get("/state")["topology"]["nodes"]
        change["without"] = [find_node_or_device(known, text) for text in without]
    if instead:
        there = client.get("/instance")["instances"]
        change["instead"] = [find_instance(there, text)["instance_id"] for text in instead]
    return change


def delete(client: NodeClient, text: str) -> None:
    """Delete the instance that a person means.

    Raises:
        ConfigurationError: The text fits none, or several.
    """
    instance = find_instance(client.get("/instance")["instances"], text)
    client.delete(f"/instance/{instance['instance_id']}")
    answers().print(f"{instance['instance_id']} ({plain(instance['model_id'])}) is deleted")


def _check_kind(flag: str, given: str, kinds: Sequence[str]) -> None:
    if given not in kinds:
        raise ConfigurationError(f"{flag} {given!r}: expected one of {', '.join(kinds)}")


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"--layers {text!r}: expected numbers such as 4,8,12")
    return [int(part) for part in parts]
