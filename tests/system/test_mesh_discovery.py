"""Zeroconf over a real network: two namespaces joined by a cable, default settings, no seeds."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NODE = """
import asyncio, json, sys
from pathlib import Path
from mesh.proposals import FoundingRecord
from mesh.identity import Identity, new_instance_id
from mesh.mesh import Mesh, MeshSettings
from mesh.secrets import MeshSecret, Secrets
from tests.unit.mesh.support import KeptLog, MemoryFounding

async def main(name, directory):
    settings = MeshSettings(mesh_name="cable", node_name=name, data_dir=directory, bootstrap_expect=2)
    identity = Identity.load_or_create(directory / "identity")
    mesh = Mesh(settings, identity, new_instance_id(), Secrets(MeshSecret(bytes(32))), MemoryFounding(), KeptLog())
    await mesh.start()
    founding = await mesh.founded()
    peers = [peer.address for peer in mesh.peers() if peer.state == "up"]
    diary = [(entry.interface, entry.event) for entry in mesh.diary()]
    print(json.dumps({"mesh": founding.mesh_id, "peers": peers, "diary": diary}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await mesh.stop()

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces with addresses 10.77.0.1 and 10.77.0.2 on a veth pair named as a real card would be."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 for network namespaces")
    tag = secrets.token_hex(3)
    left, right = f"mn{tag}a", f"mn{tag}b"
    made: list[str] = []
    try:
        try:
            for name in (left, right):
                ip("netns", "add", name)
                made.append(name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not possible here: {error.stderr.decode().strip()}")
        ip("-n", left, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right)
        for name, address in ((left, "10.77.0.1/24"), (right, "10.77.0.2/24")):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "address", "add", address, "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "default", "dev", "eth0")
        yield left, right
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_machines_on_a_cable_find_each_other_and_found(cable: tuple[str, str], tmp_path: Path) -> None:
    running: list[subprocess.Popen[str]] = []
    try:
        for name in cable:
            directory = tmp_path / name
            directory.mkdir()
            command = ["ip", "netns", "exec", name, sys.executable, "-c", NODE, name, str(directory)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            running.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
        said = []
        for process in running:
            assert process.stdout is not None
            said.append(json.loads(process.stdout.readline()))
        assert said[0]["mesh"] == said[1]["mesh"]
        for answer in said:
            assert ["eth0", "announced"] in answer["diary"]
            assert ["lo", "skipped"] in answer["diary"]
            assert all(address.startswith("10.77.0.") for address in answer["peers"])
    finally:
        for process in running:
            try:
                process.communicate(timeout=10)  # closes stdin: the node stops
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    assert [process.returncode for process in running] == [0, 0]
