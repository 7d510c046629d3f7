"""A fleet of real nodes on this machine, for scripts/mesh and the benchmarks of scale.

Every node is a process of its own, forked from this one, which has imported what a node consists of. Where root allows
each lives in a network namespace of its own, all on one LAN; otherwise they share the loopback interface. They know
nothing of each other but the secret.
"""

import argparse
import contextlib
import http.client
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mesh.secrets import MeshSecret
from node.testing import Daemon, MeshTestError
from node.testing.files import free_ports, node_document, to_toml
from node.testing.local import DaemonMesh
from scripts.bench.daemons import children, cpu_s, pid_of, pss_mb
from scripts.forked import ForkedDaemon
from tests.system.lan import Lan, unavailable_because

T = TypeVar("T")

LOOK_S = 0.25
"""Between two looks at a mesh of many: each look is work for the node that answers."""

NODES_MAX = 250
"""Addresses of one LAN; far beyond what one machine carries."""

WAIT_S = 0.5
"""Of a branch that does nothing but wait: what remains is what the mesh costs."""

SLOTS = 10
"""Async slots of each node."""


class Fleet(DaemonMesh):
    """`core-1` ..., `edge-1` ..., `leaf-1` ...; nothing runs before `launch`."""

    def __init__(
        self, folder: Path, cores: int, edges: int = 0, leaves: int = 0, *, lan: Lan | None = None, slots: int = SLOTS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lan = lan
        self.daemons = {}
        MeshSecret.new().save(folder / "secret")
        tiers = ["core"] * cores + ["edge"] * edges + ["leaf"] * leaves
        ports = free_ports(2 * len(tiers)) if lan is None else []
        numbers: Counter[str] = Counter()
        for place, tier in enumerate(tiers):
            numbers[tier] += 1
            name = f"{tier}-{numbers[tier]}"
            daemon = self.daemons[name] = ForkedDaemon(
                name=name,
                directory=folder / name,
                http_host="127.0.0.1",
                http_port=ports.pop() if ports else 7780,
                mesh_port=ports.pop() if ports else 7781,
            )
            if lan is not None:
                daemon.enter = partial(lan.enter, place)
                daemon.connect = partial(lan.connect, place)
            daemon.directory.mkdir()
            document = node_document(
                name=name,
                tier=tier,
                directory=daemon.directory,
                mesh={
                    "name": "fleet",
                    "secret_file": str(folder / "secret"),
                    "bind": "auto" if lan is not None else "127.0.0.1",
                    "port": daemon.mesh_port,
                    "bootstrap_expect": cores,
                },
                http=(daemon.http_host, daemon.http_port),
                settings={"execution": {"slots": 1, "async_slots": slots}},
            )
            daemon.config_path.write_text(to_toml(document))

    def launch(self, deadline_s: float = 300.0) -> float:
        """Starts all that do not run; seconds until all are registered, as the mesh sees it."""
        started = time.perf_counter()
        for daemon in self.daemons.values():
            if not daemon.is_running:
                daemon.start()
        self.wait_alive(len(self.daemons), deadline_s)
        return time.perf_counter() - started

    def wait(self, what: str, condition: Any, deadline_s: float = 30.0) -> Any:
        ends_at = time.monotonic() + deadline_s
        while not (found := condition()):
            if time.monotonic() > ends_at:
                raise MeshTestError(f"after {deadline_s:g} s it is still not so that {what}")
            time.sleep(LOOK_S)
        return found

    def wait_alive(self, count: int, deadline_s: float) -> None:
        self.wait(f"{count} nodes are alive", lambda: len(self.alive()) == count, deadline_s)

    def alive(self) -> list[dict[str, Any]]:
        """Members, as any node knows them."""
        members = (self.ask("/v1/members") or {}).get("members", [])
        return [member for member in members if member["status"] == "alive"]

    def ask(self, path: str) -> Any | None:
        """Of the first node that answers."""
        for daemon in self.daemons.values():
            if daemon.is_running:
                with contextlib.suppress(OSError, http.client.HTTPException, MeshTestError):
                    return daemon.call("GET", path, timeout_s=10).expect(200)
        return None

    def leading(self) -> Daemon:
        return self.wait("a node leads", lambda: self._leading(), 30)  # type: ignore[no-any-return]

    def _leading(self) -> Daemon | None:
        name = ((self.ask("/status") or {}).get("leader") or {}).get("name")
        return None if name is None else self.daemons[name]

    def parents(self) -> Counter[str]:
        """How many Leaf nodes hang on each node."""
        members = self.alive()
        names = {member["node_id"]: member["name"] for member in members}
        return Counter(names.get(member["parent"], "?") for member in members if member["tier"] == "leaf")

    def run_waits(self, branches: int, wait_s: float = WAIT_S, deadline_s: float = 120.0) -> tuple[float, Any]:
        """Seconds from submission to insight of a session that only waits; and the session."""
        each = [{"task": str(number), "parameters": {"seconds": wait_s}} for number in range(branches)]
        started = time.perf_counter()
        session = self.submit(thought="waiting", ritual="wait", branches=each)
        done = self.wait_session(session["id"], deadline_s)
        return time.perf_counter() - started, done

    def weight_mb(self) -> Counter[str]:
        """RAM by tier, workers apart; what processes share is counted once (PSS)."""
        found: Counter[str] = Counter()
        for daemon in self.daemons.values():
            if daemon.is_running:
                pid = pid_of(daemon)
                found[daemon.name.partition("-")[0]] += round(pss_mb(pid))
                found["workers"] += round(sum(pss_mb(child) for child in children(pid)))
        return found

    def leader_cost(self, seconds: float) -> tuple[float, float]:
        """Percent of a core, and bytes a second in and out, while nothing happens."""
        leader = self.leading()
        pid = pid_of(leader)
        cpu_before, bytes_before, started = cpu_s(pid), self._bytes(leader), time.perf_counter()
        time.sleep(seconds)
        elapsed_s = time.perf_counter() - started
        return (cpu_s(pid) - cpu_before) / elapsed_s * 100, (self._bytes(leader) - bytes_before) / elapsed_s

    def _bytes(self, daemon: Daemon) -> int:
        """That crossed its network interface; 0 without namespaces, where nobody counts them apart."""
        if self.lan is None:
            return 0
        lines = Path(f"/proc/{pid_of(daemon)}/net/dev").read_text().splitlines()
        fields = next(line.split() for line in lines if line.strip().startswith("lan0:"))
        return int(fields[1]) + int(fields[9])


@contextlib.contextmanager
def fleet(
    cores: int,
    edges: int = 0,
    leaves: int = 0,
    *,
    folder: Path | None = None,
    loopback: bool = False,
    slots: int = SLOTS,
) -> Iterator[Fleet]:
    """In namespaces if they can be made; everything ends with the block."""
    directory = folder or Path(tempfile.mkdtemp(prefix="meshnode-fleet-"))
    count = cores + edges + leaves
    with contextlib.ExitStack() as stack:
        if folder is None:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        lan = None if loopback or unavailable_because() is not None else stack.enter_context(Lan(count))
        yield stack.enter_context(Fleet(directory, cores, edges, leaves, lan=lan, slots=slots))


class Churn:
    """Kills nodes and starts them again, one at a time, never a second Core node while one is down."""

    def __init__(self, mesh: Fleet, every_s: float) -> None:
        self._mesh = mesh
        self._every_s = every_s
        self._down: list[str] = []
        self._due_at = time.monotonic() + every_s
        self._dice = random.Random(1)
        self.kills: Counter[str] = Counter()

    def step(self) -> None:
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + self._every_s
        for name in self._down:
            self._mesh.restart(name)
        self._down.clear()
        name = self._dice.choice([daemon.name for daemon in self._mesh.running()])
        self._mesh.kill(name)
        self._down.append(name)
        self.kills[name.partition("-")[0]] += 1

    def end(self) -> None:
        for name in self._down:
            self._mesh.restart(name)
        self._down.clear()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/mesh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cores", type=int, default=3, choices=[1, 3, 5, 7])
    parser.add_argument("--edges", type=int, default=7)
    parser.add_argument("--leaves", type=int, default=90)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long sessions run (default %(default)s)")
    parser.add_argument("--churn", type=float, metavar="SECONDS", help="kill a node every so often, start it again")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    arguments = parser.parse_args(words)
    count = arguments.cores + arguments.edges + arguments.leaves
    if min(arguments.edges, arguments.leaves) < 0 or count > NODES_MAX:
        parser.error(f"at most {NODES_MAX} nodes, and none less than zero")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends everything, as Ctrl-C does
    try:
        with fleet(arguments.cores, arguments.edges, arguments.leaves, loopback=arguments.loopback) as mesh:
            summary = run(mesh, arguments.minutes * 60, arguments.churn)
    except MeshTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(summary, indent=2))
    return 0 if summary["lost"] == 0 else 1


def run(mesh: Fleet, seconds: float, churn_s: float | None) -> dict[str, Any]:
    count = len(mesh.daemons)
    where = "network namespaces of their own" if mesh.lan is not None else f"loopback ({unavailable_because()})"
    say(f"{count} nodes start, each a process of its own, in {where}")
    ready_s = mesh.launch()
    say(f"all {count} are registered after {ready_s:.1f} s; {mesh.leading().name} leads")
    tiers = Counter(member["tier"] for member in mesh.alive())
    say(", ".join(f"{number} {tier}" for tier, number in sorted(tiers.items())))
    if parents := mesh.parents():
        say("leaf nodes by parent: " + ", ".join(f"{name} {number}" for name, number in parents.most_common()))
    weight = mesh.weight_mb()
    say("RAM: " + ", ".join(f"{what} {megabytes:,} MB" for what, megabytes in sorted(weight.items())))
    cost, traffic = mesh.leader_cost(10.0)
    say(f"idle, the leader takes {cost:.1f} % of a core" + (f" and {traffic:,.0f} bytes/s" if mesh.lan else ""))
    churn = None if churn_s is None else Churn(mesh, churn_s)
    branches, sessions, lost = SLOTS * count, 0, 0
    efficiency: list[float] = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        if churn is not None:
            churn.step()
        took_s, done = mesh.run_waits(branches)
        sessions += 1
        is_whole = done["status"] == "completed" and done["completed"] == branches
        lost += not is_whole
        efficiency.append(WAIT_S / took_s)
        tell(f"session {sessions}: {branches} branches of {WAIT_S} s in {took_s:.2f} s", is_whole)
    if churn is not None:
        churn.end()
        say("killed and started again: " + ", ".join(f"{number} {tier}" for tier, number in churn.kills.items()))
        mesh.wait_alive(count, 120)
        say(f"all {count} are alive again")
    say(f"{sessions} sessions, {lost} of them not whole; every node ends now")
    return {
        "nodes": dict(tiers),
        "ready_s": round(ready_s, 2),
        "ram_mb": dict(weight),
        "leader_cpu_percent": round(cost, 2),
        "leader_bytes_per_s": round(traffic) if mesh.lan is not None else None,
        "sessions": sessions,
        "lost": lost,
        "linear": [round(value, 3) for value in efficiency],
        "kills": {} if churn is None else dict(churn.kills),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tell(text: str, is_good: bool) -> None:
    say(text if is_good else f"{text}: NOT WHOLE")


if __name__ == "__main__":
    sys.exit(main())
