"""`exo place --dry-run` and `exo why`: plans, what-if and past decisions for people to read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exo.cli.client import NodeClient, RefusedError
from exo.cli.output import answers, layer_range, layers, plain, print_json, remarks, size, table
from exo.shared.errors import ExoError
from exo.shared.near_matches import near_matches
from exo.shared.node_names import distinct_names

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

_SHARES = (
    ("memory_ms", "memory"),
    ("utilization_ms", "load"),
    ("thermal_ms", "heat"),
    ("overhead_ms", "overhead"),
    ("network_ms", "network"),
)
_SHARE_SHOWN_MS = 0.0005
_UNUSED_SHOWN_MAX = 12
_NOTHING_SPECIAL = "nothing special"


class NotPlaceableError(ExoError):
    """Raised when a dry run ends with a refusal."""


def dry_run(
    client: NodeClient, wish: Json, change: Json, *, is_explained: bool, as_json: bool, previews: bool = True
) -> None:
    """Print what a placement would be; nothing is decided.

    Args:
        client: The node to ask.
        wish: The body of `POST /instance`.
        change: `without`, `machines`, `instead`: how the cluster would be another one.
        is_explained: Print the whole explanation.
        as_json: Print JSON.
        previews: Show other ways as well, where the cluster is taken as it is.

    Raises:
        NotPlaceableError: It cannot be placed so.
        RefusedError: The question makes no sense.
    """
    found = client.post("/instance/plan", {**wish, **change})
    has_previews = previews and not any(change.values())
    if has_previews:
        found = {**found, "previews": client.get("/instance/previews", wish)["previews"]}
    if as_json:
        print_json(found)
        return
    names = node_names(client) | {one["node_id"]: f"{one['name']} (not there)" for one in found["added"]}
    out = answers()
    if found["verdict"] is not None:
        out.print(plain(found["verdict"]), style="bold", soft_wrap=True)
        for node in found["added"]:
            for device in node["devices"]:
                out.print(f"  {plain(_added(device))}", style="dim", soft_wrap=True)
        out.print()
    plan = found["answer"]["plan"]
    if plan is not None:
        print_plan(plan, wish["model_id"], names, is_explained=is_explained)
    if has_previews and len(found["previews"]) > 1:
        # What was asked for itself is told above, or in the error below.
        others = found["previews"] if plan is not None else found["previews"][1:]
        out.print()
        print_ways(others, names)
    remarks().print("nothing was decided", style="dim")
    if plan is None:
        remedy = found["answer"]["remedy"]
        helps = "" if remedy is None else f" What would help: {lowered(remedy['words'])}."
        raise NotPlaceableError(found["answer"]["refusal"]["message"] + helps)


def print_plan(plan: Json, model_id: str, names: Mapping[str, str], *, is_explained: bool) -> None:
    """Print a plan: how fast, on what, and what holds it back."""
    out = answers()
    out.print(plain(f"{model_id}: {headline(plan)}"), soft_wrap=True)
    out.print(_stages(plan, names))
    for line in _facts(plan, names):
        out.print(plain(line), soft_wrap=True)
    if is_explained:
        out.print()
        for line in plan["explanation"].splitlines():
            out.print(f"  {plain(line)}", style="dim", soft_wrap=True)
    else:
        _print_unused(plan, names)


def headline(plan: Json) -> str:
    """Return how fast a plan is thought to be, with the word that says what that rests on."""
    told = plan["prediction"]
    if told is None or told["tokens_per_s"] is None:
        return "its speed is not known"
    basis = "from measured tokens/s" if told["is_calibrated"] else "estimate"
    parts = [f"{figure(told['tokens_per_s'])} tokens/s", f"{figure(told['ms_per_token'])} ms per token"]
    if plan["concurrency"] > 1:
        parts.append(f"for {plan['concurrency']} requests at a time")
    return f"{', '.join(parts)} ({basis})"


def figure(value: float) -> str:
    """Return a number with three digits at least, and no exponent: `2,083`, `7.73`, `0.0362`."""
    return (
        f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.0001 or not value else "0"
    )


def show_why(client: NodeClient, text: str, *, decision: int | None, as_json: bool) -> None:
    """Print why an instance is where it is.

    Raises:
        ConfigurationError: The text may be several instances.
        RefusedError: Nothing is known of it, or the log no longer has that decision.
    """
    instance_id = _instance_id(client, text)
    params = {} if decision is None else {"decision": decision}
    found = client.get(f"/instance/{instance_id}/why", params)
    if as_json:
        print_json(found)
        return
    names = node_names(client)
    out = answers()
    out.print(plain(f"{found['model_id']}, instance {found['instance_id']}{_deleted(found)}"), style="bold")
    explained = found["explained"]
    recorded = explained["decision"]
    out.print(plain(_when(recorded)), soft_wrap=True)
    if recorded["reason"]:
        out.print(plain(f"because {recorded['reason']}"), soft_wrap=True)
    out.print(plain(asked_line(found["request"], explained["request"])), soft_wrap=True)
    out.print()
    print_plan(recorded["plan"], found["model_id"], names, is_explained=True)
    out.print()
    out.print(plain(_again(explained)), soft_wrap=True)
    for one in explained["differences"]:
        out.print(plain(f"  {one}"), soft_wrap=True)
    if explained["alternatives"]:
        out.print()
        out.print("other ways, on the same state:", style="bold")
        print_ways(explained["alternatives"], names)
    _print_since(found, names)
    if len(found["decisions"]) > 1:
        out.print()
        out.print(_decisions(found["decisions"], recorded["index"], names))
    for note in found["notes"]:
        out.print(plain(f"note: {note}"), style="dim", soft_wrap=True)


def print_ways(previews: Sequence[Json], names: Mapping[str, str]) -> None:
    """Print previews: a table of those that are open, and the others with their reasons, which are sentences."""
    out = answers()
    made = table("WAY", "STAGES", "MEMORY", "ESTIMATE", "FOUND BY", right=("MEMORY", "ESTIMATE"))
    for preview in previews:
        plan = preview["plan"]
        if plan is None:
            continue
        made.add_row(
            plain(preview["title"]),
            plain("; ".join(_stage(one, names) for one in plan["stages"])),
            size(sum(one["memory_bytes"] for one in plan["stages"])),
            _estimate(plan["prediction"]),
            plain(plan["method"]),
        )
    if made.row_count:
        out.print(made)
    for preview in previews:
        if preview["refusal"] is not None:
            words = plain(preview["refusal"]["message"])
            out.print(f"[bold]not open:[/bold] {plain(preview['title'])}: [red]{words}[/red]")


def lowered(words: str) -> str:
    """Return words that began a sentence as they stand within one."""
    return f"{words[:1].lower()}{words[1:]}"


def node_names(client: NodeClient) -> dict[str, str]:
    """Return the names of the members, and of their devices as `cuda:0 of oak`, by their ids."""
    nodes = client.get("/state")["topology"]["nodes"]
    shown = distinct_names({node["node_id"]: node["name"] for node in nodes})
    return shown | {
        device["device_id"]: f"{device['local_alias']} of {shown[node['node_id']]}"
        for node in nodes
        for device in node["devices"]
    }


def _stages(plan: Json, names: Mapping[str, str]) -> "Table":
    made = table("STAGE", "NODE", "DEVICE", "LAYERS", "MEMORY", "TIME", "OF IT", right=("MEMORY", "TIME"))
    for stage in plan["stages"]:
        where = "+".join(_device(one, names).partition(" of ")[0] for one in stage["device_ids"])
        offloaded = " (host memory beside a GPU)" if stage["is_offloaded"] else ""
        time = "-" if stage["time_ms"] is None else f"{figure(stage['time_ms'])} ms"
        made.add_row(
            str(stage["rank"]),
            plain(names.get(stage["node_id"], stage["node_id"])),
            plain(f"{where}{offloaded}"),
            layer_range(stage),
            size(stage["memory_bytes"]),
            time,
            plain(_shares(stage["shares"])),
        )
    return made


def _shares(shares: Json | None) -> str:
    if shares is None:
        return "-"
    told = [(label, shares[key]) for key, label in _SHARES if abs(shares[key]) >= _SHARE_SHOWN_MS]
    return ", ".join(f"{label} {figure(value)}" for label, value in told) or "-"


def _facts(plan: Json, names: Mapping[str, str]) -> list[str]:
    """Return certificate, baseline and binding memory in words."""
    found: list[str] = []
    certificate, told, simple = plan["certificate"], plan["prediction"], plan["baseline"]
    if certificate is not None and certificate["gap_percent"] is not None:
        gap = certificate["gap_percent"]
        found.append(
            "certificate: by these figures no plan is faster"
            if gap < 0.005
            else f"certificate: by these figures a faster plan saves {gap:.2g} % at most"
        )
    if plan["is_truncated"]:
        found.append("certificate: the deadline ended the search")
    if simple is not None and simple["ms_per_token"] and told is not None and told["ms_per_token"]:
        times = simple["ms_per_token"] / told["ms_per_token"]
        found.append(
            "baseline: a split by memory alone is as fast"
            if times < 1.005
            else f"baseline: a split by memory alone has {figure(simple['tokens_per_s'])} tokens/s; this is "
            f"{times:.3g} times as fast"
        )
    bound = plan["binding"]
    if bound is not None:
        where = ", ".join(_device(one, names) for one in bound["device_ids"])
        found.append(
            f"binding: {size(bound['more_bytes'])} more on {where} would save {figure(bound['saved_ms'])} ms per token"
        )
    return found


def _print_unused(plan: Json, names: Mapping[str, str]) -> None:
    if not plan["excluded"]:
        return
    out = answers()
    out.print()
    made = table("NOT USED", "REASON", "WITH IT", right=("WITH IT",))
    shown = plan["excluded"][:_UNUSED_SHOWN_MAX]
    for one in shown:
        forcing_ms = one["forcing_ms"]
        sign = "" if not forcing_ms or forcing_ms < 0 else "+"
        price = "-" if forcing_ms is None else f"{sign}{figure(forcing_ms)} ms per token"
        made.add_row(plain(_device(one["device_id"], names)), plain(one["reason"]), price)
    out.print(made)
    if len(plan["excluded"]) > len(shown):
        out.print(f"and {len(plan['excluded']) - len(shown)} more: --explain lists them", style="dim")


def _print_since(found: Json, names: Mapping[str, str]) -> None:
    out = answers()
    today = found["today"]
    if found["changes"]:
        out.print()
        out.print("since then:", style="bold")
        for one in found["changes"]:
            out.print(plain(f"  {one}"), soft_wrap=True)
    if today is None:
        return
    out.print()
    if today["plan"] is None:
        out.print(plain(f"placed now: {today['refusal']['message']}"), soft_wrap=True)
    else:
        stages = "; ".join(_stage(one, names) for one in today["plan"]["stages"])
        out.print(plain(f"placed now: {stages}: {headline(today['plan'])}"), soft_wrap=True)


def _decisions(decisions: Sequence[Json], shown: int | None, names: Mapping[str, str]) -> "Table":
    made = table("DECISION", "WHEN", "WHAT", "STAGES")
    for one in decisions:
        index = "-" if one["index"] is None else str(one["index"])
        made.add_row(
            f"{index}{' (above)' if one['index'] == shown else ''}",
            plain(one["at"] or "-"),
            plain(one["kind"] if one["reason"] is None else f"{one['kind']}: {one['reason']}"),
            plain("; ".join(_stage(stage, names) for stage in one["plan"]["stages"])),
        )
    return made


def _stage(stage: Json, names: Mapping[str, str]) -> str:
    name = names.get(stage["node_id"], stage["node_id"])
    return f"{name} {layers(stage)}"


def _device(device_id: str, names: Mapping[str, str]) -> str:
    """Return `cuda:0 of oak`; ids of devices that are not there any more begin with their node's."""
    if device_id in names:
        return names[device_id]
    node_id, _, own = device_id.partition("/")
    return f"{own} of {names[node_id]}" if own and node_id in names else device_id


def _estimate(prediction: Json | None) -> str:
    told = None if prediction is None else prediction["tokens_per_s"]
    return "-" if told is None else f"{figure(told)} tokens/s"


def _added(device: Json) -> str:
    kind = "estimated: " if device["is_estimated"] else ""
    return (
        f"{device['name']}: {size(device['memory_free_bytes'])} of {size(device['memory_total_bytes'])} taken as free, "
        f"{device['memory_bandwidth_bytes_per_s'] / 1e9:.4g} GB/s ({kind}{device['source']})"
    )


def _instance_id(client: NodeClient, text: str) -> str:
    """Return the id of the instance that is meant; one that is gone is only known by its id."""
    from exo.cli.naming import find_instance
    from exo.shared.errors import ConfigurationError

    instances = client.get("/instance")["instances"]
    try:
        return str(find_instance(instances, text)["instance_id"])
    except ConfigurationError:
        if sum(one["model_id"] == text or one["instance_id"].startswith(text) for one in instances) > 1:
            raise
        # One that is gone is told of by the log alone, which knows whole ids; a misspelt model is not looked for there.
        if near_matches(text, [one["model_id"] for one in instances]):
            raise
        try:
            client.get(f"/instance/{text}/why")
        except RefusedError as error:
            if error.status == 404:
                raise
        return text


def _deleted(found: Json) -> str:
    return "" if found["deleted_at"] is None else f", deleted {found['deleted_at']}"


def _when(recorded: Json) -> str:
    plan = recorded["plan"]
    index = "" if recorded["index"] is None else f" by decision {recorded['index']}"
    at = "at a time that the log no longer tells" if recorded["at"] is None else recorded["at"]
    took = "" if plan["solve_ms"] is None else f" in {plan['solve_ms']:.3g} ms"
    return f"{recorded['kind']} {at}{index}, on state {plan['state_index']}, found by {plan['method']}{took}"


def _again(explained: Json) -> str:
    if explained["omitted"] is not None:
        return f"it cannot be made again: {explained['omitted']}"
    if explained["is_identical"] and explained["again"]["title"] == "Weighed again":
        return (
            "of plans nearly as fast it took the one that moves the fewest weights; weighed again on what it was "
            "made on: the same figures"
        )
    if explained["is_identical"]:
        return "made again on what it was made on: the same answer, to the last figure"
    return "made again on what it was made on, the answer differs (another release, or another time limit):"


def asked_line(wanted: Json, request: Json) -> str:
    """Return what a person asked for and, where that could not be had when it moved, what took its place."""
    asked, granted = _asked(wanted), _asked(request)
    if asked == granted:
        return f"asked for: {asked}"
    made = "without that" if granted == _NOTHING_SPECIAL else f"for: {granted}"
    return f"asked for: {asked}; this decision was made {made}"


def _asked(request: Json) -> str:
    """Return what of a request is not as usual."""
    usual = {
        "sharding": "auto",
        "engine": "auto",
        "min_nodes": 1,
        "prefer_gpu": True,
        "context_length": None,
        "concurrency": 1,
        "objective": "auto",
        "min_zones": 1,
    }
    told = [
        f"{key.replace('_', ' ')} {_listed(value)}"
        for key, value in request.items()
        if key != "model_id" and value != usual.get(key, []) and value != []
    ]
    return "; ".join(told) or _NOTHING_SPECIAL


def _listed(value: Any) -> str:
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
