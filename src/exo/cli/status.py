"""`exo status` and `exo models`: the cluster in tables."""

from typing import Any

from exo.cli.client import NodeClient
from exo.cli.output import answers, layers, plain, print_json, size, table
from exo.cli.peers import OLD_S

Json = dict[str, Any]

_NARROW_BELOW = 110
"""Columns of a terminal: in fewer, devices are told below the table of nodes rather than in it."""
_COLOURS = {"ready": "green", "failed": "red", "loading": "yellow", "pending": "yellow"}


def show_status(client: NodeClient, *, as_json: bool) -> None:
    """Print the state."""
    state = client.get("/state")
    if as_json:
        print_json(state)
        return
    console = answers()
    names = {node["node_id"]: node["name"] for node in state["topology"]["nodes"]}
    master = state["master_node_id"]
    leader = f"{names.get(master, '?')} ({short(master)})" if master else "none"
    console.print(
        f"namespace {plain(state['namespace'])}, master {plain(leader)}, term {state['term']}, "
        f"index {state['index']}"
    )
    peers = client.get("/peers")["peers"]
    # What the node itself heard of its removal says why; what others say of it when asked comes before that.
    removal = next((peer["detail"] for peer in reversed(peers) if peer["status"] == "removed"), None)
    # Who was put out waits for nobody: a master would not let it in.
    console.print(plain(removal if removal and not master else agreement(state, names)))
    console.print(plain(state["topology"]["metrics"]["summary"]))
    console.print()
    is_narrow = console.width < _NARROW_BELOW
    console.print(_nodes(state, has_devices=not is_narrow))
    if is_narrow:
        console.print()
        for node in state["topology"]["nodes"]:
            for line in _device_lines(state, node):
                console.print(f"{plain(node['name'])} {line}")
    for node in state["topology"]["nodes"]:
        for refused in node.get("refused_devices", ()):
            console.print(f"[yellow]not used on {plain(node['name'])}:[/yellow] {refusal_line(refused)}")
    console.print()
    if state["instances"]:
        console.print(_instances(state, names))
    else:
        console.print("nothing is placed; place a model with: exo place MODEL (exo models lists them)")
    if removal and master:
        console.print(f"[yellow]{plain(removal)}[/yellow]")
    for peer in peers:
        if peer["status"] not in ("member", "joining", "removed"):
            name = peer["name"] or (
                f"{peer['address']['host']}:{peer['address']['port']}" if peer["address"] else "?"
            )
            old = f" (last noticed {peer['age_s']:.0f} s ago)" if peer["age_s"] > OLD_S else ""
            console.print(
                f"[yellow]not in this cluster:[/yellow] {plain(name)}: {plain(peer['detail'])}{old}"
            )


def agreement(state: Json, names: dict[str, str]) -> str:
    """Return who has to agree to decisions and, without a master, what is needed to have one."""
    voters, replicas = state["voters"]["voters"], state["voters"]["replicas"]
    listed = ", ".join(f"{names.get(one, '?')} ({short(one)})" for one in voters)
    is_led = state["master_node_id"] is not None
    if not voters:
        return "no master is reached yet; who decides is not known here"
    if len(voters) == 1:
        copies = ", ".join(names.get(one, short(one)) for one in replicas)
        held = f"; {copies} holds a copy in sync" if replicas else ""
        return (
            f"{listed} decides{held}"
            if is_led
            else f"decisions wait for {listed}: start it; if it is lost for good: exo node forget {voters[0]}"
        )
    needed = len(voters) // 2 + 1
    if is_led:
        return f"{needed} of {len(voters)} voters decide: {listed}"
    return (
        f"no master: {needed} of {len(voters)} voters have to reach each other, {listed}; start those that are away, "
        "or see exo node forget"
    )


def show_models(client: NodeClient, *, as_json: bool) -> None:
    """Print the models."""
    found = client.get("/models")
    if as_json:
        print_json(found)
        return
    if not found["models"]:
        answers().print("no node has a model; exo doctor shows where to put one")
        return
    made = table(
        "MODEL", "SIZE", "LAYERS", "CONTEXT", "TYPE", "NODES", "", right=("SIZE", "LAYERS", "CONTEXT")
    )
    for model in found["models"]:
        nodes = ", ".join(node["name"] for node in model["nodes"]) or "-"
        placed = len(model["instance_ids"])
        if model["problem"] is not None:
            note = f"[red]{plain(model['problem'])}[/red]"
        else:
            note = f"[green]{placed} placed[/green]" if placed else plain(model["description"])
        made.add_row(
            plain(model["model_id"]),
            size(model["total_bytes"]),
            str(model["layer_count"]),
            str(model["context_length_max"]),
            plain(f"{model['family']} {model['dtype']}"),
            plain(nodes),
            note,
        )
    answers().print(made)


def short(long_id: str | None) -> str:
    """Return the start of an id, which is enough to tell a few apart."""
    return (long_id or "-")[:8]


def _nodes(state: Json, *, has_devices: bool) -> Any:
    devices = ("DEVICES",) if has_devices else ()
    made = table("NODE", "ID", "ADDRESS", "MEMORY FREE", *devices, "MODELS", right=("MEMORY FREE", "MODELS"))
    for column in made.columns:
        # Nobody can copy an address that is cut in two.
        column.no_wrap = column.header in ("ID", "ADDRESS", "MEMORY FREE")
    for node in state["topology"]["nodes"]:
        # What a node that is away told last says nothing of now.
        is_there = node["is_connected"]
        profile = node["node_profile"] if is_there else None
        memory = "-"
        if profile is not None:
            memory = f"{size(profile['memory']['ram_available'])} of {size(profile['memory']['ram_total'])}"
        name = plain(node["name"]) + (
            " [bold](master)[/bold]" if node["node_id"] == state["master_node_id"] else ""
        )
        if node.get("zone"):
            name += f" in {plain(node['zone'])}"
        if not is_there:
            name += f" [red](away: {plain(node['left_reason'])})[/red]"
        elif not node["is_worker"]:
            name += " (no worker)"
        address = f"{node['api_address']['host']}:{node['api_address']['port']}"
        told = ("\n".join(_device_lines(state, node)) or "-",) if has_devices else ()
        made.add_row(name, short(node["node_id"]), address, memory, *told, str(len(node["models"])))
    return made


def _device_lines(state: Json, node: Json) -> list[str]:
    """Return a line for each device of a node; of one that is away nothing is known of now."""
    now: Json = state["gpu_device_state"] if node["is_connected"] else {}
    return [
        device_line(device, now.get(device["device_id"]))
        for device in sorted(node["devices"], key=alias_order)
    ]


def alias_order(device: Json) -> tuple[str, int, str]:
    """As people count: `cuda:2` comes before `cuda:10`, whatever their ids are."""
    kind, _, number = device["local_alias"].partition(":")
    return kind, int(number) if number.isdecimal() else 0, number


def device_line(device: Json, now: Json | None) -> str:
    """Return one device on a line: what it is, and what is known of how it is."""
    name = f"{device['local_alias']} {device['name']}"
    is_said = not device["is_simulated"] or "(simulated)" in name
    parts = [name if is_said else f"{name} (simulated)"]
    if device["memory_kind"] == "vram":
        free = None
        if now is not None and now["memory_total_bytes"] is not None and now["memory_used_bytes"] is not None:
            free = now["memory_total_bytes"] - now["memory_used_bytes"]
        parts.append(f"{size(free)} of {size(device['memory_total_bytes'])} free")
    if now is not None:
        if now["compute_utilization_percent"] is not None:
            parts.append(f"{now['compute_utilization_percent']:.0f} %")
        if now["thermal_temperature_c"] is not None:
            parts.append(f"{now['thermal_temperature_c']:.0f} °C")
        if now["health"] != "healthy":
            parts.append(f"{now['health']}: {now['health_reason']}")
        elif now["thermal"] is not None and now["thermal"]["state"] in ("slowed", "paused"):
            parts.append(f"held back: {now['thermal']['reason'].rstrip('.')}")
        elif now["is_thermal_throttling"]:
            parts.append("slows itself down: it is too hot")
    return plain(", ".join(parts))


def refusal_line(refused: Json) -> str:
    """Return on a line what is there and is not used, why, and what can be done about it."""
    name = f"{refused['local_alias']} {refused['name']}" if refused["local_alias"] else refused["name"]
    step = f"; {refused['next_step']}" if refused["next_step"] else ""
    return plain(f"{name}: {refused['reason']}{step}")


def _instances(state: Json, names: dict[str, str]) -> Any:
    made = table("INSTANCE", "MODEL", "STATUS", "SPEED", "STAGES", right=("SPEED",))
    for instance in state["instances"].values():
        status = instance["status"]
        colour = _COLOURS.get(status, "white")
        text = f"[{colour}]{status}[/{colour}]"
        if status in ("loading", "pending"):
            text += f" {instance['loaded_layers']}/{instance['layer_count']}"
        if instance["reason"]:
            text += f": {plain(instance['reason'])}"
        elif instance["moved_reason"]:
            text += f", moved: {plain(instance['moved_reason'])}"
        stages = [
            f"{stage['rank']}: {names.get(stage['node_id'], short(stage['node_id']))} "
            f"{layers(plan)}, {size(plan['memory_bytes'])}"
            for stage, plan in zip(instance["stages"], instance["plan"]["stages"], strict=True)
        ]
        made.add_row(
            instance["instance_id"],
            plain(instance["model_id"]),
            text,
            _speed(instance),
            plain("; ".join(stages)),
        )
    return made


def _speed(instance: Json) -> str:
    """Return what one request was seen to get, else what was predicted."""
    seen = instance["measured_tokens_per_s"]
    if seen is not None:
        return f"{seen:,.3g} tokens/s" if seen < 1000 else f"{seen:,.0f} tokens/s"
    told = instance["plan"]["prediction"]
    predicted = None if told is None else told["tokens_per_s"]
    return (
        "-"
        if predicted is None
        else f"about {predicted:,.3g}"
        if predicted < 1000
        else f"about {predicted:,.0f}"
    )
