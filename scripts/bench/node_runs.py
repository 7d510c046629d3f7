"""Runs three real nodes as processes of a benchmark's own, `python -m MODULE CONFIG RESULTS` each, until one of them
has written `done` behind its results."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from node.testing import LocalMesh

DEADLINE_S = 120
DONE = '"done"\n'


def run(module: str, folder: Path) -> list[dict[str, Any]]:
    mesh = LocalMesh(folder)  # for its configurations; the processes are ours
    results = folder / "results.jsonl"
    nodes = []
    try:
        for daemon in mesh.daemons.values():
            command = [sys.executable, "-m", module, str(daemon.config_path), str(results)]
            with daemon.log_path.open("ab") as log:
                nodes.append(subprocess.Popen(command, stdout=log, stderr=log))
        ends_at = time.monotonic() + DEADLINE_S
        while not (results.exists() and results.read_text().endswith(DONE)):
            if time.monotonic() > ends_at or any(node.poll() is not None for node in nodes):
                raise RuntimeError("\n".join(daemon.last_words() for daemon in mesh.daemons.values()))
            time.sleep(0.05)
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    return [json.loads(line) for line in results.read_text().splitlines()[:-1]]
