"""The `meshnode` command: reads the arguments and hands over to the command's module.

Everything heavy is imported by the command that needs it, so that `--help` and the client commands start at once.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from node import __version__
from node.cli.exits import MEANING, CommandError, Exit

if TYPE_CHECKING:
    from node.config import Config

_EPILOG = (
    "exit codes:\n"
    + "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANING.items())
    + """

environment:
  MESHNODE_URL, MESHNODE_TOKEN_FILE, MESHNODE_TIMEOUT
                            defaults of --url, --token-file, --timeout
  MESHNODE_<SECTION>_<KEY>  overrides a key of the configuration,
                            as MESHNODE_MESH_PORT
  NO_COLOR                  no colours
"""
)

_SUBMIT_EPILOG = """examples:
  meshnode session submit --ritual echo --task hello --task world --wait
  meshnode session submit --ritual wait --task a --param seconds=2 --watch
  meshnode session submit --branches-from debt_scenario --watch
  meshnode session submit --branches-from reflect ./documents --watch
  meshnode session submit session.json
"""

_ROTATE_EPILOG = """A rotation has three steps: the new secret is accepted beside the old one; it is presented; the old
one is dropped. Each step is taken in FILE on this machine and copied to every other; daemons take a changed file over
by themselves, and no link goes down. A step that would part nodes is refused (exit code 1), with the reason.

  meshnode secret rotate --begin   step 1; copy FILE to every machine
  meshnode secret rotate           step 2, if all have taken step 1; copy again
  meshnode secret rotate           step 3, if all have taken step 2; copy again
"""


_BACKUP_EPILOG = """The backup is taken while the mesh works, from the node that answers, and holds everything up to
one moment. It is checked while it arrives, and named FILE only when it is whole. Restore it with
`meshnode --config FILE restore BACKUP`.

examples:
  meshnode backup monday.backup
  meshnode backup --verify monday.backup
"""


_RESTORE_EPILOG = """The data directory must be empty. The new mesh has one voter, this node; others join it as new
nodes.

example:
  meshnode --config core.toml restore monday.backup
"""

_DRAIN_EPILOG = """It finishes what it executes, or hands it back when the grace is over; if it leads, another node
takes over. A node that has left is let go of by the quorum and may be stopped; starting it, as ever with `meshnode
--config FILE`, ends draining and brings it back. Exit codes: 1 refused, 4 no such node, 5 not done within --timeout (it
goes on)."""

_WHY_EPILOG = """Says what holds it back, what rules out each node, and what would change it. The leader's links are
what counts: ask it by its --url if another node answers something else. Exit codes: 4 no such id."""

_RECOVER_EPILOG = """Only when a majority of the Core nodes will never come back; as long as it may, wait for it. What
was accepted by a majority without this node is lost: run --dry-run on every node that survives, and recover the one
with the highest last term and index. It becomes the only voter of a new mesh; all other nodes, also those that
survived, join it as new nodes with empty data directories.

examples:
  meshnode --config core.toml recover --dry-run
  meshnode --config core.toml recover
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (`node.cli.exits`)."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        return int(_run(arguments, parser))
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.fix:
            print(f"fix: {error.fix}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `meshnode session list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.OK)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshnode",
        description="Turns the machines you already have into one compute mesh.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"meshnode {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="run a node with this configuration")
    parser.add_argument("--check", action="store_true", help="with --config: check the configuration and stop")
    commands = parser.add_subparsers(dest="command", metavar="command")
    client = _client_options()
    reader = _reader_options(client)
    _add(commands, "status", "the state of the node that answers", reader)
    _add_nodes(commands, reader)
    _add_session(commands, client, reader)
    why = _add(commands, "why", "why a branch or session is where it is", reader, _WHY_EPILOG)
    why.add_argument("id", metavar="ID", help="of a branch, or the beginning of a session's")
    backup = _add(commands, "backup", "save all sessions and insights in a file", client, _BACKUP_EPILOG)
    backup.add_argument("file", type=Path, metavar="FILE", help="where to save it")
    backup.add_argument("--force", action="store_true", help="replace FILE if it exists")
    backup.add_argument("--verify", action="store_true", help="only check FILE, without asking a node")
    offline = _offline_options()
    restore = _add(commands, "restore", "make a new mesh of one node from a backup", offline, _RESTORE_EPILOG)
    restore.add_argument("backup", type=Path, metavar="BACKUP", help="file made by `meshnode backup`")
    recover = _add(commands, "recover", "go on alone after most nodes are lost for good", offline, _RECOVER_EPILOG)
    recover.add_argument("--dry-run", action="store_true", help="only say what would survive; changes nothing")
    recover.add_argument("--yes", action="store_true", help="do not ask")
    recover.add_argument("--no-copy", action="store_true", help="do not keep a copy of the data as it was")
    ritual = commands.add_parser("ritual", help="what the mesh can execute", allow_abbrev=False)
    rituals = ritual.add_subparsers(dest="action", metavar="action", required=True)
    _add(rituals, "list", "names and versions", reader)
    _add(rituals, "show", "one ritual and its parameters", reader).add_argument("name")
    secret = commands.add_parser("secret", help="the secret that the nodes of a mesh share", allow_abbrev=False)
    secrets = secret.add_subparsers(dest="action", metavar="action", required=True)
    new = secrets.add_parser("new", help="make a secret; refuses to overwrite one", allow_abbrev=False)
    new.add_argument("file", nargs="?", type=Path, default=Path("~/.config/meshnode/secret"), metavar="FILE")
    rotate = _add(
        secrets, "rotate", "replace the secret without downtime, one safe step at a time", client, _ROTATE_EPILOG
    )
    rotate.add_argument("file", nargs="?", type=Path, default=Path("~/.config/meshnode/secret"), metavar="FILE")
    rotate.add_argument("--config", dest="node_config", type=Path, metavar="FILE", help="rotate its secret file")
    rotate.add_argument("--begin", action="store_true", help="begin a rotation, if none is under way")
    rotate.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    rotate.add_argument("--wait", action="store_true", help="wait until the next step is safe, then take it")
    rotate.add_argument(
        "--without", action="append", default=[], metavar="NODE", help="leave this node behind (name or id; repeatable)"
    )
    doctor = commands.add_parser("doctor", help="check this machine: network, clock, disk, rights", allow_abbrev=False)
    doctor.add_argument("--config", dest="doctor_config", type=Path, metavar="FILE", help="check for this one")
    doctor.add_argument("--url", help="ask this node for the mesh's clocks (default: the configured one)")
    doctor.add_argument("--interface", action="append", metavar="NAME", help="test multicast on this interface only")
    doctor.add_argument("--json", action="store_true", help="answer in JSON")
    return parser


def _add_nodes(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", reader: argparse.ArgumentParser
) -> None:
    """`nodes` alone lists; with an action it changes who votes, who drains, who leaves."""
    nodes = _add(commands, "nodes", "the members of the mesh, and who votes", reader)
    actions = nodes.add_subparsers(dest="action", metavar="action")
    client = _client_options(is_inner=True)
    for name, text in (
        ("remove", "take a node out of the mesh for good"),
        ("replace", "let a standby vote in the place of a node, which is removed"),
        ("promote", "let a standby vote"),
        ("demote", "let a voter stand by"),
    ):
        action = _add(actions, name, text, client)
        action.add_argument("name", metavar="NODE", help="name or id")
        if name == "replace":
            action.add_argument("--by", required=True, metavar="NODE", help="the standby that takes its place")
        action.add_argument("--dry-run", action="store_true", help="only say what it would do to the quorum")
        action.add_argument("--yes", action="store_true", help="do not ask")
    for name, text in (
        ("drain", "give a node no new work, and wait until it has none"),
        ("undrain", "give a node work again"),
        ("leave", "drain a node, and take it out of the mesh until it is started again"),
    ):
        action = _add(actions, name, text, client, None if name == "undrain" else _DRAIN_EPILOG)
        action.add_argument("name", metavar="NODE", help="name or id")
        if name != "undrain":
            action.add_argument(
                "--grace", type=_seconds, metavar="S", help="what is not finished by then goes on elsewhere (60)"
            )
            action.add_argument("--no-wait", action="store_true", help="do not wait for it")
        if name == "drain":
            action.add_argument("--leave", action="store_true", help="as `nodes leave`")
        action.add_argument("--dry-run", action="store_true", help="only say what it would do")
        if name != "undrain":
            action.add_argument("--yes", action="store_true", help="do not ask, if it leaves")


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    parent: argparse.ArgumentParser,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        parents=[parent],
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,
    )


class _Help(argparse.HelpFormatter):
    """Paragraphs are fitted to the terminal; those with indented lines, which are commands and tables, are not."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip("\n").split("\n\n")
        return "\n\n".join(
            block if "\n  " in block else super(_Help, self)._fill_text(block, width, indent) for block in blocks
        )


def _client_options(*, is_inner: bool = False) -> argparse.ArgumentParser:
    """`is_inner`: of an action of a command that takes them too; what was given before the action holds."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS if is_inner else None)
    group = options.add_argument_group("talking to a node")
    group.add_argument("--url", help="any node, or several separated by commas (default: http://127.0.0.1:7780)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the API token")
    group.add_argument("--timeout", type=_seconds, metavar="S", help="give up after so many seconds")
    group.add_argument("--json", action="store_true", help="answer in JSON")
    return options


def _reader_options(client: argparse.ArgumentParser) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[client])
    group = options.add_argument_group("how fresh the answer must be")
    group.add_argument(
        "--level",
        choices=["stale", "leader", "linearizable"],
        help="stale: as the node knows (default); leader: with all that the leader knows; linearizable: with all that "
        "was answered anywhere before",
    )
    group.add_argument(
        "--max-age", type=_seconds, metavar="S", help="refuse a stale answer that may be older than so many seconds"
    )
    return options


def _offline_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("the node, which must not be running")
    group.add_argument("--config", dest="offline_config", type=Path, metavar="FILE", help="its configuration")
    group.add_argument("--json", action="store_true", help="answer in JSON")
    return options


def _add_session(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    client: argparse.ArgumentParser,
    reader: argparse.ArgumentParser,
) -> None:
    session = commands.add_parser("session", help="submit work and follow it", allow_abbrev=False)
    actions = session.add_subparsers(dest="action", metavar="action", required=True)
    submit = _add(actions, "submit", "submit a session", client, _SUBMIT_EPILOG)
    submit.add_argument("file", nargs="?", metavar="FILE", help="session as JSON; - reads standard input")
    submit.add_argument("--ritual", metavar="NAME", help="ritual of the branches given with --task")
    submit.add_argument("--task", action="append", metavar="T", help="one branch; may be repeated")
    submit.add_argument("--param", action="append", metavar="K=V", help="parameter of all branches; V is JSON or text")
    submit.add_argument(
        "--branches-from", nargs="+", metavar=("RITUAL", "ARG"), help="branches made by a ritual, e.g. reflect FOLDER"
    )
    submit.add_argument("--thought", help="the question that the session answers")
    submit.add_argument("--id", metavar="UUID", help="session id; submitting it twice is harmless")
    submit.add_argument("--attempts", type=int, metavar="N", help="failed attempts before a branch fails")
    submit.add_argument("--dry-run", action="store_true", help="only say where its branches would go now")
    where = submit.add_argument_group("where and when")
    where.add_argument(
        "--require", action="append", metavar="L", help="LABEL=VALUE[,VALUE], LABEL!=VALUE, LABEL, !LABEL"
    )
    where.add_argument("--prefer", action="append", metavar="L", help="the same, if such a node has a free place")
    where.add_argument("--node", metavar="NAME", help="only this node, by name or id")
    where.add_argument("--tier", choices=("core", "edge", "leaf"), help="only nodes of this tier")
    where.add_argument("--spread", metavar="LABEL", help="spread over the values of this label, as name or rack")
    where.add_argument("--ritual-version", metavar="V", help="1.2, or comparisons as '>=1.2, <2'")
    where.add_argument("--priority", type=int, metavar="N", help="-10 to 10; higher first (default: 0)")
    where.add_argument("--concurrency", type=int, metavar="N", help="branches at the same time, at most")
    where.add_argument("--no-speculation", action="store_true", help="never two attempts of a branch at a time")
    submit.add_argument("--branch-timeout", type=_seconds, metavar="S", help="seconds one attempt may take")
    follow = submit.add_mutually_exclusive_group()
    follow.add_argument("--wait", action="store_true", help="wait for the end and print the insight")
    follow.add_argument("--watch", action="store_true", help="show the progress, then print the insight")
    watch = _add(actions, "watch", "follow a session until it ends", client)
    watch.add_argument("id", metavar="ID", help="of the session; a beginning is enough")
    listing = _add(actions, "list", "sessions, newest first", reader)
    listing.add_argument("--limit", type=_page, default=20, metavar="N", help="so many at most, up to 1000 (20)")
    listing.add_argument(
        "--status", choices=["pending", "processing", "completed", "failed", "cancelled"], help="only these"
    )
    show = _add(actions, "show", "one session and its insight", reader)
    show.add_argument("id", metavar="ID", help="of the session; a beginning is enough")
    show.add_argument("--branches", action="store_true", help="list its branches too")
    cancel = _add(actions, "cancel", "cancel what has not finished", client)
    cancel.add_argument("id", metavar="ID", help="of the session; a beginning is enough")
    cancel.add_argument("--reason", default="cancelled by its user", help="recorded with the session")


def _run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    is_offline = arguments.command in ("restore", "recover")
    if arguments.command is not None and ((arguments.config is not None and not is_offline) or arguments.check):
        parser.error("--config and --check belong to the daemon, not to this command")
    match arguments.command:
        case None:
            if arguments.check and arguments.config is None:
                parser.error("--check needs --config FILE")
            if arguments.config is None:
                parser.print_help(sys.stderr)
                return Exit.USAGE
            return _daemon(arguments.config, is_check=arguments.check)
        case "secret":
            if arguments.action == "rotate":
                from node.cli.rotate import rotate

                return rotate(arguments)
            from node.cli import secret

            return secret.new(arguments.file)
        case "doctor":
            from node.cli.doctor.command import run as examine

            return examine(arguments)
        case "backup":
            from node.cli import backup

            return backup.run(arguments)
        case "restore":
            from node.cli import restore

            return restore.run(arguments)
        case "recover":
            from node.cli import recover

            return recover.run(arguments)
        case "why":
            from node.cli import why

            return why.run(arguments)
        case "session":
            from node.cli import sessions

            return sessions.run(arguments)
        case "nodes" if arguments.action in ("drain", "undrain", "leave"):
            from node.cli import draining

            return draining.run(arguments)
        case "nodes" if arguments.action is not None:
            from node.cli import nodes

            return nodes.run(arguments)
        case _:
            from node.cli import cluster

            return cluster.run(arguments)


def _daemon(path: Path, *, is_check: bool) -> int:
    from node.config import ConfigError, check_files, describe, load, make_data_dir

    try:
        config = load(path, os.environ)
        if is_check:
            try:
                check_files(config)
            except ConfigError as error:  # the configuration is right; the machine is not prepared yet
                print(f"warning: {error}", file=sys.stderr)
            print(f"ok: {describe(config)}")
            return Exit.OK
        check_files(config)
        make_data_dir(config)
    except ConfigError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    with _no_extras():
        from node import logs

        work = _of_tier(config)
    logs.configure(config.log.level, config.log.format)
    from node.rituals.builtin.reflect import ROOTS_VARIABLE

    if config.execution.readable_folders:  # workers inherit it
        os.environ[ROOTS_VARIABLE] = os.pathsep.join(config.execution.readable_folders)
    return work()


def _of_tier(config: "Config") -> Callable[[], int]:
    """The daemon's life; a tier imports no more than it needs."""
    from mesh.tiers import AUTO, LEAF
    from node.common import STORE_DIRECTORY
    from node.tiers import CONFIGURED, leaf_for

    is_leaf, why = config.node.tier == LEAF, CONFIGURED
    if config.node.tier == AUTO and not (config.data_dir / STORE_DIRECTORY).exists():
        from node.machine import look

        if (leaf := leaf_for(look(config.data_dir))) is not None:
            is_leaf, why = True, leaf.why
    if is_leaf:
        from node.leaf.app import run as run_leaf

        return partial(run_leaf, config, why)
    from node.app import run

    return partial(run, config)


@contextlib.contextmanager
def _no_extras() -> Iterator[None]:
    """What libraries look for when they are imported and no daemon uses. aiohttp reads the system's certificate
    authorities twice, for clients: a tenth of a second of CPU on a small machine, and 2 MB. structlog takes rich for
    colours, if it is there: 5 MB."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, os.devnull))
    had_rich = "rich" in sys.modules
    if not had_rich:
        sys.modules["rich"] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        if not had_rich:
            del sys.modules["rich"]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _page(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a whole number from 1 to 1000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10_000_000:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
