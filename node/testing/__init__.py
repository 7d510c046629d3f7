"""A mesh of real daemons on this machine, with failures on demand: for the tests of people who write rituals, for the
project's own system tests, its benchmarks and its demonstration.

    with LocalMesh(folder, cores=3) as mesh:
        mesh.start()
        session = mesh.submit(thought="?", branches=[{"ritual": "echo", "task": "hello"}])
        mesh.kill(mesh.leader())
        mesh.wait_session(session["id"])

Every daemon is a process of its own with its own data directory, configuration and loopback ports; they find each other
by multicast on the loopback interface or by seeds. Everything blocks the calling thread and has a deadline; whatever
happens, leaving the `with` block ends every process that was started, by its process id.
"""

from node.testing.daemon import Answer, Daemon, MeshTestError
from node.testing.files import free_ports, to_toml
from node.testing.local import LocalMesh

__all__ = ["Answer", "Daemon", "LocalMesh", "MeshTestError", "free_ports", "to_toml"]
