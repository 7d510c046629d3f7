"""A mesh with failures on demand: for the tests of people who write rituals, for the project's own system tests, its
benchmarks and its demonstration.

    def test_it_survives(mesh):                       # the fixture of the pytest plugin
        mesh.start(cores=3, rituals=[my_ritual])
        session = mesh.submit(thought="?", branches=[{"ritual": "my_ritual", "task": "hello"}])
        mesh.kill(mesh.leader())
        assert mesh.wait_session(session["id"])["status"] == "completed"

`VirtualMesh` is whole nodes in one process on a virtual clock, `ProcessMesh` daemons as real processes; what a test
does to them (`MeshUnderTest`) is the same. `LocalMesh` is daemons without relays between them, configured in any way.
"""

from node.testing.daemon import Daemon
from node.testing.files import free_ports, to_toml
from node.testing.harness import Answer, Harness, MeshTestError, MeshUnderTest
from node.testing.local import LocalMesh
from node.testing.processes import ProcessMesh
from node.testing.virtual.mesh import VirtualMesh

__all__ = [
    "Answer",
    "Daemon",
    "Harness",
    "LocalMesh",
    "MeshTestError",
    "MeshUnderTest",
    "ProcessMesh",
    "VirtualMesh",
    "free_ports",
    "to_toml",
]
