"""The subcommands' names, flags and help. What they do is imported when one runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from exo.cli.client import NodeClient

Url = Annotated[
    str | None,
    typer.Option(
        envvar="EXO_URL",
        metavar="URL",
        show_default="the node of EXO_HOME, else http://127.0.0.1:52415",
        help="The node to ask.",
    ),
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="-vv: tracebacks of errors (see `exo --help`).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add the subcommands to the command line."""
    from exo.cli import audit, join, key, node_commands, token

    for command in (status, models, place, why, delete, chat, doctor):
        app.command()(command)
    for group in (node_commands, token, key):
        app.add_typer(group.app)
    app.command()(join.join)
    app.command()(audit.audit)


def open_node(context: typer.Context, url: str | None) -> "NodeClient":
    """Return a client of the node that is meant: a flag counts more than a variable."""
    from exo.cli.client import NodeClient

    home = home_given(context)
    return NodeClient.open(None, home) if home and not is_typed(context, "url") else NodeClient.open(url)


def open_node_at(context: typer.Context, home: Path | None, url: str | None) -> "NodeClient":
    """As `open_node`, for a command with a flag --home of its own."""
    from exo.cli.client import NodeClient

    is_home_typed = is_typed(context, "home") or home_given(context) is not None
    return (
        NodeClient.open(None, home)
        if is_home_typed and not is_typed(context, "url")
        else NodeClient.open(url)
    )


def home_given(context: typer.Context) -> Path | None:
    """Return the data directory that was given before the command."""
    return cast("Path | None", context.obj)


def is_typed(context: typer.Context, name: str) -> bool:
    """Say whether a flag was given on the command line, rather than by a variable or its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def status(context: typer.Context, url: Url = None, as_json: AsJson = False, _verbose: Verbose = 0) -> None:
    """Show the cluster: master, nodes, devices, instances."""
    from exo.cli import status as module

    with open_node(context, url) as client:
        module.show_status(client, as_json=as_json)


def models(context: typer.Context, url: Url = None, as_json: AsJson = False, _verbose: Verbose = 0) -> None:
    """List the models that the cluster's nodes have."""
    from exo.cli import status as module

    with open_node(context, url) as client:
        module.show_models(client, as_json=as_json)


def place(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One of `exo models`.")],
    min_nodes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Spread it over at least so many nodes.")
    ] = 1,
    sharding: Annotated[str, typer.Option(metavar="KIND", help="auto, pipeline, tensor or hybrid.")] = "auto",
    engine: Annotated[str, typer.Option(metavar="NAME", help="auto, or an engine's name.")] = "auto",
    gpu: Annotated[bool, typer.Option("--gpu/--no-gpu", help="Use GPUs where there are any.")] = True,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Only this node (id, start of an id, or name); may be repeated."),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE", help="Only this device; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Not this node or device; may be repeated.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens per request to keep room for.")
    ] = None,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at the same time.")] = 1,
    layers: Annotated[
        str, typer.Option(metavar="N,N,...", show_default=False, help="Layers per stage, in order.")
    ] = "",
    objective: Annotated[
        str, typer.Option(metavar="KIND", help="auto, latency or throughput: which of two plans is better.")
    ] = "auto",
    must_use: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="This node or device must take part; may be repeated."),
    ] = None,
    apart_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INSTANCE", help="Not on the nodes that run this instance or model; repeatable."
        ),
    ] = None,
    zone: Annotated[
        list[str] | None, typer.Option(metavar="ZONE", help="Only nodes of this zone; may be repeated.")
    ] = None,
    min_zones: Annotated[
        int, typer.Option(metavar="N", min=1, help="Spread it over at least so many zones.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be decided, and other ways; decide nothing.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="With --dry-run: every reason, for each device.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE", help="What if this node or device were gone? Decides nothing; repeatable."
        ),
    ] = None,
    with_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="What if this machine were there, too? A TOML file; decides nothing; repeatable.",
        ),
    ] = None,
    instead: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INSTANCE", help="What if this instance were gone? Decides nothing; repeatable."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is ready.")] = True,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait.")] = 600.0,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Place a model on the cluster and wait until it is ready."""
    from exo.cli import place as module

    with open_node(context, url) as client:
        wish = module.make_wish(
            client,
            model=model,
            min_nodes=min_nodes,
            sharding=sharding,
            engine=engine,
            prefer_gpu=gpu,
            nodes=node or [],
            devices=device or [],
            exclude=exclude or [],
            context_length=context_length,
            concurrency=concurrency,
            layers=layers,
            objective=objective,
            must_use=must_use or [],
            apart_from=apart_from or [],
            zones=zone or [],
            min_zones=min_zones,
        )
        change = module.make_change(
            client, without=without or [], with_files=with_files or [], instead=instead or []
        )
        if dry_run or explain or change:
            from exo.cli import planning

            planning.dry_run(client, wish, change, is_explained=explain, as_json=as_json)
        else:
            module.place(client, wish, is_waiting=wait, timeout_s=timeout, as_json=as_json)


def why(
    context: typer.Context,
    instance: Annotated[
        str,
        typer.Argument(metavar="INSTANCE", help="Its id (also of one that is gone), or a model's name."),
    ],
    decision: Annotated[
        int | None,
        typer.Option(metavar="INDEX", min=1, help="An earlier decision about it, by its place in the log."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Say why an instance is where it is: the decision explained again, and what else was possible."""
    from exo.cli import planning

    with open_node(context, url) as client:
        planning.show_why(client, instance, decision=decision, as_json=as_json)


def delete(
    context: typer.Context,
    instance: Annotated[
        str, typer.Argument(metavar="INSTANCE", help="Its id, the start of it, or a model's name.")
    ],
    url: Url = None,
    _verbose: Verbose = 0,
) -> None:
    """Stop an instance and forget it."""
    from exo.cli import place as module

    with open_node(context, url) as client:
        module.delete(client, instance)


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One of `exo models`.")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Without it: talk on a terminal, or read standard input."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions put before the talk.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End the answer after so many tokens.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, max=2, help="0: the same answer every time.")
    ] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the likeliest tokens only.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Makes sampling repeatable.")] = None,
    url: Url = None,
    _verbose: Verbose = 0,
) -> None:
    """Chat with a model; places it first where it is not placed."""
    from exo.cli import chat as module

    with open_node(context, url) as client:
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        code = module.run(client, model=model, prompt=prompt, system=system, options=options)
    raise typer.Exit(code)


def doctor(
    context: typer.Context,
    home: Annotated[
        Path | None, typer.Option(envvar="EXO_HOME", help="The data directory to look at.")
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Say why other nodes are or are not in this cluster; with HOST: try that one."
        ),
    ] = False,
    host: Annotated[
        str | None,
        typer.Argument(metavar="HOST[:PORT]", help="With --peers: another node's address and cluster port."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Say what works on this machine, what is missing, and how to install it."""
    from exo.cli import doctor as module

    chosen = home if is_typed(context, "home") else home_given(context) or home
    if host is not None and not peers:
        raise typer.BadParameter("an address goes with --peers: exo doctor --peers HOST[:PORT]")
    if peers:
        code = module.run_peers(lambda: open_node_at(context, chosen, url), chosen, host, as_json=as_json)
        raise typer.Exit(code)
    raise typer.Exit(module.run(chosen, as_json=as_json))
