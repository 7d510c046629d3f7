"""One node of the benchmark of linearizable reads: the leader submits a session; the follower with the lowest id reads
it again and again.

python -m scripts.bench.reads_node CONFIG RESULTS
"""

import asyncio
import json
from pathlib import Path

from consensus.engine import Role
from consensus.state import queries
from node.app import Node
from scripts.bench.node_process import call_many, main, write
from storage.ids import SessionId

IN_FLIGHT = 64
READS = 30_000
SESSION = SessionId("5f0c7c1e-6f5e-4a57-9d0e-8f2f0c1b2a3d")


async def measure(node: Node, results: Path) -> None:
    status = node.group.status()
    if status.role is Role.LEADER:
        body = {"id": SESSION, "thought": "?", "branches": [{"ritual": "echo", "task": "x"}]}
        await node.service.submit(json.dumps(body).encode())
        return
    if node.node_id != min(voter for voter in status.voters if voter != status.leader):
        return
    while not has_ended(node):  # noqa: ASYNC110  # once, and nothing is measured yet
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)  # what follows a start is over

    async def read() -> None:
        await node.group.barrier()
        with node.group.read() as txn:
            assert queries.get_session(txn, SESSION) is not None

    await call_many(read, IN_FLIGHT, 2_000)
    write(results, [await call_many(read, IN_FLIGHT, READS)])


def has_ended(node: Node) -> bool:
    with node.group.read() as txn:
        session = queries.get_session(txn, SESSION)
    return session is not None and session.status == "completed"


if __name__ == "__main__":
    main(measure)
