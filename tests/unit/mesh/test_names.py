"""Names of nodes, and name servers that do not answer."""

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from mesh import limits
from mesh.links.names import Names
from tests.unit.mesh.support import address, linked, site, until


class NameServer:
    """Answers for names that end with `.invalid` when it is asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []
        self._usual = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._get)

    def _get(self, host: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".invalid"):
            return self._usual(host, *arguments, **options)
        self.asked.append(host)
        self.answers.wait()
        return self._usual("127.0.0.1", *arguments, **options)


def test_name_servers_that_do_not_answer_hold_up_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.links.manager.DIAL_TIMEOUT_S", 0.05)
    shared = min(32, (os.cpu_count() or 1) + 4)  # threads of `asyncio.to_thread`
    names = NameServer(monkeypatch)

    async def main() -> None:
        async with site(tmp_path) as here:
            b = await here.start("b")
            a = await here.start("a", seeds=[f"node-{number}.invalid:{b.port}" for number in range(shared)])
            await until(lambda: len(a.seed_errors()) == len(names.asked) == shared, "each has failed")
            async with asyncio.timeout(20):
                await asyncio.to_thread(int)
            names.answers.set()
            await linked(a, b)

    try:
        asyncio.run(main())
    finally:
        names.answers.set()


def test_a_name_is_asked_for_once_at_a_time_and_so_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = NameServer(monkeypatch)

    async def main() -> None:
        looked_up = Names()
        both = [asyncio.create_task(looked_up.addresses("a.invalid")) for _ in range(2)]
        others = [
            asyncio.create_task(looked_up.addresses(f"{number}.invalid")) for number in range(limits.LOOKUPS_MAX - 1)
        ]
        await until(lambda: len(names.asked) == limits.LOOKUPS_MAX)
        with pytest.raises(OSError, match="name servers"):
            await looked_up.addresses("b.invalid")
        assert await looked_up.addresses("fd00::1") == ["fd00::1"]
        both[0].cancel()
        names.answers.set()
        assert await both[1] == ["127.0.0.1"]
        await asyncio.gather(*others)
        assert await looked_up.addresses("b.invalid") == ["127.0.0.1"]

    try:
        asyncio.run(main())
    finally:
        names.answers.set()


def test_what_is_no_name_is_an_error_of_the_dial(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as here:
            b = await here.start("b")
            a = await here.start("a", seeds=[f"{'x' * 70}.invalid:7781", address(b)])
            await linked(a, b)
            await until(a.seed_errors)

    asyncio.run(main())
