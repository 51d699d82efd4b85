"""`exo`: starts a node; its subcommands ask a running one."""

import itertools
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from exo.cli import commands

app = typer.Typer(
    name="exo",
    help="One cluster out of unequal machines that serves language models. Without a command: start a node.",
    no_args_is_help=False,
    # Plain help answers in half the time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
commands.register(app)

_FLAGS_OF_EVERY_COMMAND = frozenset({"home", "verbose", "quiet", "version"})


def print_version(is_wanted: bool) -> None:
    """Print the version and end; before anything else is read, so that it works whatever the environment says."""
    if is_wanted:
        from importlib.metadata import version

        print(version("exo"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    port: Annotated[
        int,
        typer.Option(
            envvar="EXO_PORT",
            metavar="PORT",
            min=0,
            max=65535,
            help="Port of API and dashboard; 0 takes any free one.",
        ),
    ] = 52415,
    host: Annotated[
        str,
        typer.Option(
            envvar="EXO_HOST",
            metavar="ADDRESS",
            help="Address of API and dashboard; beyond loopback nobody is answered without an API key.",
        ),
    ] = "127.0.0.1",
    cluster_port: Annotated[
        int,
        typer.Option(
            envvar="EXO_CLUSTER_PORT",
            metavar="PORT",
            min=0,
            max=65535,
            help="Port between nodes; 0 takes any free one.",
        ),
    ] = 52416,
    data_port: Annotated[
        int,
        typer.Option(
            envvar="EXO_DATA_PORT",
            metavar="PORT",
            min=0,
            max=65535,
            help="Port for the tokens of this node's clients; 0 takes any free one.",
        ),
    ] = 52417,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            envvar="EXO_PEERS",
            metavar="HOST:PORT",
            help="Cluster port of another node, where discovery does not reach; repeat it, or separate by commas.",
        ),
    ] = None,
    peers_file: Annotated[
        Path | None,
        typer.Option(
            envvar="EXO_PEERS_FILE",
            metavar="FILE",
            help="A JSON or TOML file with more of them; read again when it changes.",
        ),
    ] = None,
    cluster_host: Annotated[
        str | None,
        typer.Option(
            envvar="EXO_CLUSTER_HOST",
            metavar="ADDRESS",
            show_default="loopback; all addresses once the cluster has given this node a certificate",
            help="Where other nodes may connect.",
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise",
            envvar="EXO_ADVERTISE",
            metavar="HOST",
            show_default="this host's first address",
            help="The address that nodes of other hosts are told.",
        ),
    ] = None,
    coordinator: Annotated[
        str,
        typer.Option(
            envvar="EXO_COORDINATOR",
            metavar="embedded|etcd://HOST:PORT",
            help="Who keeps the decisions: the nodes themselves, or an etcd that runs already.",
        ),
    ] = "embedded",
    namespace: Annotated[
        str,
        typer.Option(
            envvar="EXO_NAMESPACE",
            help="Only nodes of one namespace find each other.",
        ),
    ] = "default",
    no_discovery: Annotated[
        bool,
        typer.Option(
            "--no-discovery",
            envvar="EXO_NO_DISCOVERY",
            help="Neither look for other nodes nor announce this one.",
        ),
    ] = False,
    no_mdns: Annotated[
        bool,
        typer.Option(
            "--no-mdns",
            envvar="EXO_NO_MDNS",
            help="Do not look for nodes by mDNS, nor announce this one there.",
        ),
    ] = False,
    no_tailscale: Annotated[
        bool,
        typer.Option(
            "--no-tailscale",
            envvar="EXO_NO_TAILSCALE",
            help="Do not look for nodes in the Tailscale network.",
        ),
    ] = False,
    discovery_port: Annotated[
        int,
        typer.Option(
            envvar="EXO_DISCOVERY_PORT",
            metavar="PORT",
            min=1,
            max=65535,
            help="UDP port of the multicast by which nodes find each other; the same on all of them.",
        ),
    ] = 52416,
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="EXO_HOME",
            metavar="FOLDER",
            show_default="the platform's place for a user's data",
            help="Data directory: log, node id, models.",
        ),
    ] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="EXO_MODELS_DIRS",
            metavar="FOLDER",
            help="A folder of model directories, beside the data directory's own; may be repeated.",
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            envvar="EXO_NAME",
            metavar="NAME",
            show_default="the host's name",
            help="Shown to people.",
        ),
    ] = "",
    zone: Annotated[
        str,
        typer.Option(
            envvar="EXO_ZONE",
            metavar="NAME",
            help="Room, building or provider that this node stands in; those of one zone are near each other.",
        ),
    ] = "",
    no_worker: Annotated[
        bool,
        typer.Option(
            "--no-worker",
            envvar="EXO_NO_WORKER",
            help="Coordinate and answer, but run no layers here.",
        ),
    ] = False,
    no_auto_place: Annotated[
        bool,
        typer.Option(
            "--no-auto-place",
            envvar="EXO_NO_AUTO_PLACE",
            help="Refuse a chat with a model that is not placed, rather than placing it.",
        ),
    ] = False,
    require_key: Annotated[
        bool,
        typer.Option(
            "--require-key",
            envvar="EXO_REQUIRE_KEY",
            help="Ask programs on this machine for an API key, too; for machines with several users.",
        ),
    ] = False,
    telemetry_interval: Annotated[
        float,
        typer.Option(
            envvar="EXO_TELEMETRY_INTERVAL",
            metavar="SECONDS",
            min=0.05,
            help="How often devices are read.",
        ),
    ] = 2.0,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            envvar="EXO_VERBOSITY",
            help="Log more; -vv everything, and tracebacks of errors.",
        ),
    ] = 0,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", envvar="EXO_QUIET", help="Log warnings only."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """One cluster out of unequal machines that serves language models. Without a command: start a node."""
    if context.invoked_subcommand is not None:
        _refuse_flags_of_a_node(context)
        context.obj = home if commands.is_typed(context, "home") else None
        return
    from exo.cli import node

    node.start(
        home=home,
        host=host,
        port=port,
        cluster_port=cluster_port,
        data_port=data_port,
        discovery_port=discovery_port,
        is_discovery_enabled=not no_discovery,
        namespace=namespace,
        peers=peer or [],
        peers_file=peers_file,
        is_mdns_enabled=not no_mdns,
        is_tailscale_enabled=not no_tailscale,
        cluster_host=cluster_host,
        advertise_host=advertise,
        coordinator=coordinator,
        is_worker=not no_worker,
        is_auto_place_enabled=not no_auto_place,
        is_key_required=require_key,
        models_dirs=models_dir or [],
        telemetry_interval_s=telemetry_interval,
        verbosity=-1 if quiet else min(verbose, 2),
        name=name,
        zone=zone,
    )


def _refuse_flags_of_a_node(context: typer.Context) -> None:
    """Refuse what would be passed over in silence: flags of a node that is not started."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _FLAGS_OF_EVERY_COMMAND and commands.is_typed(context, name):
            from exo.shared.errors import ConfigurationError

            command = context.invoked_subcommand
            raise ConfigurationError(
                f"{parameter.opts[0]} is for starting a node, not for `exo {command}`; leave it out, "
                f"and name the node to ask with --home FOLDER before `{command}` or --url URL behind it"
            )


def main() -> NoReturn:
    """Run the command line; ends the process.

    Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 the log is damaged, 4 the log cannot be written,
    130 interrupted.
    """
    try:
        app()
    except Exception as error:
        from exo.cli.output import report_error

        sys.exit(report_error(error, is_traceback_wanted=_wants_traceback()))
    sys.exit(0)


def _wants_traceback() -> bool:
    """Look for -vv by hand: the error may have come before the flags were read."""
    import os

    words = itertools.takewhile(lambda word: word != "--", sys.argv[1:])
    flags = [word for word in words if word.startswith("-")]
    count = flags.count("--verbose") + sum(
        word.count("v") for word in flags if not word.startswith("--") and set(word[1:]) == {"v"}
    )
    variable = os.environ.get("EXO_VERBOSITY", "").strip()
    return count >= 2 or (variable.isdecimal() and int(variable) >= 2)
