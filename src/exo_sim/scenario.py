"""Scenarios: text files of commands and of what a simulated cluster then does, in the manner of etcd's test data.

A file is a row of blocks: lines of commands, a line of four dashes, and what comes of them, up to an empty line. Lines
that begin with `#` are for readers. See `COMMANDS` for what may be said.
"""

from collections.abc import Callable, Sequence

import msgspec

from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from exo_sim.cluster import Cluster, StoryLine
from exo_sim.errors import BrokenPromiseError, ScenarioError
from exo_sim.machine import Machine
from exo_sim.wording import describe

COMMANDS = """
cluster NAMES [voters NAMES] [replica NAME] [seed N]   begin; all vote unless said otherwise
run SECONDS             let time pass
until one SECONDS       let time pass until one leads and everybody has everything
tell NAME TEXT          a node tells a fact
load NAME COUNT         a node tells many, of which the story says nothing
read NAME               ask a node for a read that is confirmed
crash NAMES             end processes as a loss of power does
start NAMES             start them again
lose-log NAME           what a stopped node has on disk becomes unreadable, but for its vote
cut NAMES from NAMES    let nothing through between them
cut NAMES to NAMES      let nothing through in that direction
heal                    make all links whole
slow-disk NAME SECONDS  how long its syncs take from here on
hand-over NAME [to NAME]    a leader lets somebody else lead
force NAME              an operator gives up everybody else
members NAMES           whom people want in the cluster
status                  how every node is
log NAME                what a node has in its log
""".strip()

_SNAPSHOT_ENTRIES = 12


class Block(msgspec.Struct):
    """Some commands, and what came of them."""

    line_number: int
    text: list[str]
    """Commands and remarks, as written."""
    expected: list[str]


def parse(text: str) -> list[Block]:
    """Read a scenario.

    Raises:
        ScenarioError: A block has no line of dashes.
    """
    blocks: list[Block] = []
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        if not lines[position].strip():
            position += 1
            continue
        begins = position
        said: list[str] = []
        while position < len(lines) and lines[position] != "----":
            said.append(lines[position])
            position += 1
        if position == len(lines):
            raise ScenarioError(
                f"line {begins + 1}: no line of dashes follows these commands; add ---- behind them"
            )
        position += 1
        expected: list[str] = []
        while position < len(lines) and lines[position].strip():
            expected.append(lines[position])
            position += 1
        blocks.append(Block(begins + 1, said, expected))
    return blocks


def render(blocks: Sequence[Block]) -> str:
    """Return the text of a scenario."""
    return "\n".join("\n".join([*block.text, "----", *block.expected]) + "\n" for block in blocks)


def play(text: str) -> str:
    """Return the scenario with what really comes of its commands.

    Raises:
        ScenarioError: A command cannot be carried out.
    """
    stage = _Stage()
    blocks = parse(text)
    for block in blocks:
        block.expected = stage.carry_out(block)
    return render(blocks)


class _Stage:
    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._told = 0
        self._said: list[str] = []
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "cluster": self._begin,
            "run": self._run,
            "until": self._until,
            "tell": self._tell,
            "load": self._load,
            "read": self._read,
            "crash": self._crash,
            "start": self._start,
            "lose-log": lambda words: self._machine(words).rot(),
            "cut": self._cut,
            "heal": lambda _: self.cluster.network.heal(),
            "slow-disk": self._slow_disk,
            "hand-over": self._hand_over,
            "force": self._force,
            "members": self._members,
            "status": self._status,
            "log": self._log,
        }

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise ScenarioError("there is no cluster yet; begin with: cluster a b c")
        return self._cluster

    def carry_out(self, block: Block) -> list[str]:
        self._said = []
        for offset, line in enumerate(block.text):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            command = self._commands.get(words[0])
            if command is None:
                raise ScenarioError(
                    f"line {block.line_number + offset}: {words[0]!r} is no command; there are\n{COMMANDS}"
                )
            try:
                command(words[1:])
            except BrokenPromiseError as error:
                self._said.append(f"BROKEN: {error}")
            except (ScenarioError, ValueError, KeyError, IndexError, AssertionError) as error:
                raise ScenarioError(f"line {block.line_number + offset}: {line!r}: {error}") from error
            self._listen()
        return self._said or ["ok"]

    def _listen(self) -> None:
        """Take over what the story has to say since the last time."""
        if self._cluster is None:
            return
        fresh: list[StoryLine] = self._cluster.story[self._told :]
        self._told = len(self._cluster.story)
        self._said += [str(line).rstrip() for line in fresh]

    def _machine(self, words: list[str]) -> Machine:
        return self.cluster.machine(NodeId(words[0]))

    def _begin(self, words: list[str]) -> None:
        parts: dict[str, list[str]] = {"cluster": []}
        part = "cluster"
        for word in words:
            if word in ("voters", "replica", "seed"):
                part = word
                parts[part] = []
            else:
                parts[part].append(word)
        names = tuple(NodeId(name) for name in parts["cluster"])
        voters = Voters(
            voters=tuple(NodeId(name) for name in parts.get("voters", parts["cluster"])),
            replicas=tuple(NodeId(name) for name in parts.get("replica", [])),
        )
        self._cluster = Cluster(
            int(parts.get("seed", ["1"])[0]),
            names,
            voters,
            is_telling=True,
            snapshot_entries=_SNAPSHOT_ENTRIES,
        )
        self._cluster.is_telling_facts = True
        self._cluster.start()

    def _run(self, words: list[str]) -> None:
        self.cluster.run_for(float(words[0]))

    def _until(self, words: list[str]) -> None:
        if words[0] != "one":
            raise ScenarioError("it is: until one SECONDS")
        self.cluster.require_one(float(words[1]))

    def _tell(self, words: list[str]) -> None:
        machine = self._machine(words)
        machine.propose([self.cluster.fact(machine.node_id, " ".join(words[1:]))])

    def _load(self, words: list[str]) -> None:
        machine = self._machine(words)
        for _ in range(int(words[1])):
            machine.propose([self.cluster.fact(machine.node_id)])

    def _read(self, words: list[str]) -> None:
        self._machine(words).read()

    def _crash(self, words: list[str]) -> None:
        for name in words:
            self._machine([name]).stop("crashes")

    def _start(self, words: list[str]) -> None:
        for name in words:
            self._machine([name]).start()

    def _cut(self, words: list[str]) -> None:
        separator = "from" if "from" in words else "to"
        position = words.index(separator)
        here = [NodeId(name) for name in words[:position]]
        there = [NodeId(name) for name in words[position + 1 :]]
        self.cluster.network.cut(here, there, is_one_way=separator == "to")

    def _slow_disk(self, words: list[str]) -> None:
        sync_us = int(float(words[1]) * 1_000_000)
        self._machine(words).disk.sync_us = (sync_us, sync_us)

    def _hand_over(self, words: list[str]) -> None:
        self._machine(words).hand_over(NodeId(words[2]) if len(words) > 2 else None)

    def _force(self, words: list[str]) -> None:
        machine = self._machine(words)
        machine.force(tuple(sorted(machine.up.voters.members - {machine.node_id})))

    def _members(self, words: list[str]) -> None:
        self.cluster.members = frozenset(NodeId(name) for name in words)

    def _status(self, _: list[str]) -> None:
        for machine in self.cluster.machines:
            if not machine.is_running:
                self._said.append(f"{machine.node_id}: stopped")
                continue
            core = machine.up
            waiting = f", {machine.origin.pending} waiting" if machine.origin.pending else ""
            incarnation = f", incarnation {core.incarnation}" if core.incarnation > 1 else ""
            if core.role == "leader":
                does = "leads"
            else:
                does = f"follows {core.leader_id}" if core.leader_id else "knows no leader"
            self._said.append(
                f"{machine.node_id}: {does}, term {core.term}{incarnation}, log to {core.log.last_index}, "
                f"committed to {core.commit_index}, voters {describe(core.voters)}{waiting}"
            )

    def _log(self, words: list[str]) -> None:
        core = self._machine(words).up
        begins = max(core.log.base_index, self.cluster.first_index)
        is_beginning = begins == self.cluster.first_index
        self._said.append(f"1..{begins}: {'the beginning' if is_beginning else 'in the snapshot'}")
        for entry in core.log.between(begins, core.log.last_index):
            event = entry.event
            what = repr(event.reason) if isinstance(event, NodeDisconnected) else type(event).__name__
            mark = "" if entry.index <= core.commit_index else ", not committed"
            self._said.append(f"{entry.index}: term {entry.term}, {what} of {entry.origin}{mark}")
