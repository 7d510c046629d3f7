"""The configuration's schema: every key, its type, its default and what it means, in one place.

`node.config` reads files and environment against it; `docs/configuration.md` is generated from it. A description says
what the key does and in which unit, for somebody who sees it for the first time.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Tier: TypeAlias = Literal["core", "edge", "leaf", "auto"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all sections; immutable."""


LabelName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
LabelValue = Annotated[str, Meta(max_length=64)]


class NodeSettings(Section, frozen=True, kw_only=True):
    """This machine's place in the mesh."""

    name: Annotated[
        str, Meta(max_length=63, description="Name shown to people. Empty: the host name. Names need not be unique.")
    ] = ""
    tier: Annotated[
        Tier,
        Meta(
            description="`core` founds the mesh, votes, stores and executes. `edge` stores and executes, and neither "
            "founds nor votes: up to 32, they keep a full replica near the work. `leaf` dials one of these, holds no "
            "replica, and executes: for small machines and behind NAT. `auto` leaves it to the mesh: who founds "
            "it is `core`, who comes later `edge`, until it takes the place of a voter that is lost; a machine "
            "with less than 1 GiB of RAM (2 GiB with one core), or whose data_dir is in RAM or on less than 4 GiB"
            " of disk, is `leaf`.",
        ),
    ] = "core"
    data_dir: Annotated[
        str,
        Meta(
            min_length=1,
            description="Folder of identity and database; made at first start, readable by its owner only. One "
            "running daemon per folder. A relative path starts at the configuration file's folder.",
        ),
    ] = "~/.local/share/meshnode"
    labels: Annotated[
        dict[LabelName, LabelValue],
        Meta(
            max_length=62,
            description='What this machine has, for sessions that require or prefer it, as `{ gpu = "a4000" }`. '
            "`name`, `id`, `tier`, `arch` and `os` are there by themselves and stay what they are.",
        ),
    ] = {}


class MeshSettings(Section, frozen=True, kw_only=True):
    """How nodes find and trust each other."""

    name: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9][a-z0-9-]{0,62}$",
            description="Nodes with the same mesh name and secret form one mesh: lower-case letters, digits, dashes.",
        ),
    ] = "home"
    secret_file: Annotated[
        str,
        Meta(
            description="File made by `meshnode secret new`, the same on every machine. A changed one is taken over "
            "while the node runs: see `meshnode secret rotate`. Empty: no secret, and then the node talks to loopback "
            "only."
        ),
    ] = ""
    bind: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address on which nodes connect to each other. `auto`: all addresses with a secret, loopback "
            "without one.",
        ),
    ] = "auto"
    port: Annotated[Port, Meta(description="Port on which nodes connect to each other (TCP). 0: any free port.")] = 7781
    advertise: Annotated[
        str,
        Meta(description="`host:port` that other nodes should use to reach this one. Empty: found out by itself."),
    ] = ""
    seeds: Annotated[
        list[str],
        Meta(
            max_length=64,
            description="`host:port` of nodes to try besides those found by multicast; any one that answers is enough.",
        ),
    ] = []
    bootstrap_expect: Annotated[
        Literal[1, 3, 5, 7],
        Meta(description="Core nodes that must see each other before they found a mesh together. 1: alone at once."),
    ] = 3
    voters_wanted: Annotated[
        Literal[0, 1, 3, 5, 7],
        Meta(description="Voters that the mesh keeps of its Core nodes; others stand by. 0: `bootstrap_expect`."),
    ] = 0
    voter_grace_s: Annotated[
        int,
        Meta(
            ge=2,
            le=86_400,
            description="A voter that has not answered for so many seconds is replaced by a Core node that stands by. "
            "Longer than a restart or an update takes.",
        ),
    ] = 300
    zeroconf: Annotated[bool, Meta(description="Find nodes on the local network by multicast DNS (UDP port 5353).")] = (
        True
    )
    interfaces: Annotated[
        Literal["auto"] | list[str],
        Meta(
            description="Network interfaces used for multicast, by name or address. `auto`: all suitable ones; bridges "
            "and tunnels are skipped."
        ),
    ] = "auto"


class HttpSettings(Section, frozen=True, kw_only=True):
    """The HTTP interface that clients talk to."""

    bind: Annotated[
        str,
        Meta(
            min_length=1,
            description="Address of the HTTP interface. Anything but loopback needs `token_file` or "
            "`allow_unauthenticated`.",
        ),
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port of the HTTP interface (TCP). 0: any free port.")] = 7780
    token_file: Annotated[
        str,
        Meta(description="File whose first line clients must send as a bearer token. Empty: no token is asked for."),
    ] = ""
    allow_unauthenticated: Annotated[
        bool,
        Meta(
            description="Serve beyond loopback without a token: whoever reaches the port may then submit and cancel "
            "work."
        ),
    ] = False


class ExecutionSettings(Section, frozen=True, kw_only=True):
    """What this node gives to rituals."""

    slots: Annotated[
        int,
        Meta(ge=0, le=1024, description="CPU rituals executed at the same time, one process each. 0: one per core."),
    ] = 0
    async_slots: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Async rituals executed at the same time; they share one process."),
    ] = 100
    memory_mb_max: Annotated[
        int,
        Meta(
            ge=64,
            le=1_048_576,
            description="RAM one worker process may use, in MiB; beyond it the attempt fails and says so.",
        ),
    ] = 1024
    rituals: Annotated[
        list[str],
        Meta(
            max_length=256,
            description="Rituals offered besides those of installed packages, as `module:function`, for development. "
            "The modules must be importable by the daemon (`PYTHONPATH`).",
        ),
    ] = []
    readable_folders: Annotated[
        list[str],
        Meta(
            max_length=64,
            description="Folders whose files `reflect` may read by their path. Whoever may submit a session can then "
            "see what is in them; texts sent with a session need none.",
        ),
    ] = []


class LogSettings(Section, frozen=True, kw_only=True):
    """What the daemon writes to standard error."""

    level: Annotated[LogLevel, Meta(description="Least severe level that is written.")] = "info"
    format: Annotated[
        LogFormat,
        Meta(description="`console` for people, `json` for machines, `auto`: console on a terminal, JSON otherwise."),
    ] = "auto"


SECTIONS: dict[str, type[Section]] = {
    "node": NodeSettings,
    "mesh": MeshSettings,
    "http": HttpSettings,
    "execution": ExecutionSettings,
    "log": LogSettings,
}
"""Section name in the file -> its struct; the order is that of the reference."""

CONFIG_BYTES_MAX = 256 * 1024
"""A configuration is written by a person; anything larger is the wrong file."""

ENVIRONMENT_PREFIX = "MESHNODE_"
"""`MESHNODE_<SECTION>_<KEY>` overrides `[section] key`."""

ENVIRONMENT_OF_CLIENT = frozenset({"MESHNODE_URL", "MESHNODE_TOKEN_FILE", "MESHNODE_TIMEOUT"})
"""Read by the client commands; no override of a key."""

ENVIRONMENT_FREE = ("MESHNODE_TEST_", "MESHNODE_BENCH_", "MESHNODE_DEMO_")
"""Left to scripts and tests."""
