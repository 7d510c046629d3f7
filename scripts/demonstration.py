"""Three daemons on this machine: they find each other, agree, run a session, lose their leader, and lose nothing.

Run by scripts/demo. Everything happens on loopback in a temporary folder, and nothing is left running.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from node.testing import Daemon, LocalMesh, MeshTestError

THOUGHT = "Which policy mix stabilises the public debt?"
BRANCHES = 100
SCENARIOS_A_BRANCH = 100


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as name:
        folder = Path(name)
        say("A secret that only the machines of this mesh know")
        meshnode("secret", "new", str(folder / "secret"))
        with LocalMesh(folder, name="demo", settings={"log": {"format": "console"}}) as mesh:
            try:
                show(mesh)
            except MeshTestError as error:
                print(f"\nThe demonstration failed: {error}", file=sys.stderr)
                return 1
        say("Done: nothing is left running")
    return 0


def show(mesh: LocalMesh) -> None:
    say("Three daemons start; they know nothing of each other but the secret")
    started = time.monotonic()
    leader = mesh.start()
    for daemon in mesh.daemons.values():
        print(indented(daemon))
    print(f"\nAfter {time.monotonic() - started:.1f} s they have founded a mesh, and {leader} leads it:\n")
    meshnode("nodes", "--url", mesh[leader].url)

    say(f"A session: {BRANCHES} policy mixes, {SCENARIOS_A_BRANCH} scenarios each. Half-way the leader is killed")
    urls = ",".join(mesh[name].url for name in [*mesh.followers(), leader])
    killer = Killer(mesh, leader)
    killer.start()
    meshnode(
        "session", "submit", "--url", urls, "--watch", "--thought", THOUGHT,
        "--branches-from", "debt_scenario", str(BRANCHES), str(SCENARIOS_A_BRANCH),
    )  # fmt: skip
    killer.join()
    if killer.failure is not None:
        raise MeshTestError(killer.failure)

    say(f"{leader} is dead, the session is complete")
    session_id = only_session(mesh)
    survivor = mesh.any_running()
    meshnode("nodes", "--url", survivor.url)
    say("Everything stops and starts again: history is still there, on every node")
    for daemon in mesh.running():
        code = daemon.stop()
        print(f"{daemon.name} stopped, exit code {code}")
    leader = mesh.start()
    print(f"all three are back, {leader} leads\n")
    for daemon in mesh.daemons.values():
        print(f"{daemon.name}:")
        meshnode("session", "list", "--url", daemon.url)
        insight = daemon.call("GET", f"/v1/sessions/{session_id}/insight").expect(200)["insight"]
        print(f"its insight: {insight['total_patterns']} patterns, {insight['branches_used']} branches\n")
    for daemon in mesh.running():
        daemon.stop()


class Killer(threading.Thread):
    """Kills the leader when half of the branches are completed."""

    def __init__(self, mesh: LocalMesh, leader: str) -> None:
        super().__init__(name="killer")
        self._mesh = mesh
        self._leader = leader
        self._url = mesh[mesh.followers()[0]].url
        self.failure: str | None = None

    def run(self) -> None:
        ends_at = time.monotonic() + 60
        while time.monotonic() < ends_at:
            session = newest_session(self._url)
            if session is not None and session["completed"] >= BRANCHES // 2:
                self._mesh.kill(self._leader)
                print(f"\n>>> {self._leader} leads: killed with SIGKILL at {session['completed']} of {BRANCHES}\n")
                return
            time.sleep(0.02)
        self.failure = "the session did not get half-way within a minute"


def newest_session(url: str) -> dict[str, Any] | None:
    from urllib.request import urlopen

    with contextlib.suppress(OSError), urlopen(f"{url}/v1/sessions?limit=1", timeout=5) as response:
        sessions = json.load(response)["sessions"]
        return sessions[0] if sessions else None
    return None


def only_session(mesh: LocalMesh) -> str:
    return str(mesh.any_running().call("GET", "/v1/sessions").expect(200)["sessions"][0]["id"])


def meshnode(*words: str) -> None:
    """Shows and runs a command as a person would type it."""
    print(f"$ meshnode {' '.join(word if ' ' not in word else repr(word) for word in words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "node", *words], env=os.environ, check=False)
    if done.returncode != 0:
        raise MeshTestError(f"the command ended with exit code {done.returncode}")


def say(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


STORY = ("started", "founding status", "link up", "mesh founded", "leading", "following")
"""Log events that tell how the mesh came to be."""


def indented(daemon: Daemon) -> str:
    lines = [line for line in daemon.log_text().splitlines() if any(f"info    {event} " in line for event in STORY)]
    return "\n".join(f"  {daemon.name}  {line[:130]}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
