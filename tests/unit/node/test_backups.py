"""Backups are taken from a copy: whoever reads slowly, or gives up, costs nobody anything."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.backup import BackupReader
from node.backups import DIRECTORY, Backups
from node.service.errors import ServiceError
from storage.environment import Environment
from tests.unit.consensus.solo import ALL_TABLES, Solo, with_sessions
from tests.unit.state.model import S3, register, submit


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment.open(tmp_path / "consensus", ALL_TABLES)
    with_sessions(opened)
    yield opened
    opened.close()


def backups(store: Environment) -> Backups:
    return Backups(store, store.path.parent, lambda: {"mesh": "home"})


async def taken(source: Backups) -> bytes:
    async with source.take() as backup:
        return b"".join([piece async for piece in backup.pieces()])


def test_it_is_whole_and_leaves_nothing_behind(store: Environment) -> None:
    data = asyncio.run(taken(backups(store)))
    reader = BackupReader()
    reader.feed(data)
    assert reader.finish().about["mesh"] == "home"
    assert not (store.path.parent / DIRECTORY).exists()


def test_what_is_written_meanwhile_is_not_in_it_and_nothing_is_held_back(store: Environment) -> None:
    async def main() -> None:
        source = backups(store)
        async with source.take() as backup:
            pieces = backup.pieces()
            first = await anext(pieces)
            assert store.statistics().readers == 0
            before = backup.header
            await asyncio.to_thread(lambda: Solo(store).propose(register(), submit(S3)))
            reader = BackupReader()
            reader.feed(first)
            async for piece in pieces:
                reader.feed(piece)
            assert reader.finish() == before
        async with source.take() as backup:
            assert backup.header.index > before.index

    asyncio.run(main())


def test_one_at_a_time(store: Environment) -> None:
    async def main() -> None:
        source = backups(store)
        async with source.take():
            with pytest.raises(ServiceError) as refused:
                await taken(source)
            assert refused.value.code == "overloaded"
        assert await taken(source)

    asyncio.run(main())


def test_given_up_half_way_it_is_cleaned_up(store: Environment) -> None:
    async def main() -> None:
        source = backups(store)
        begun = asyncio.Event()

        async def give_up() -> None:
            async with source.take() as backup:
                await anext(backup.pieces())
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(give_up())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not (store.path.parent / DIRECTORY).exists()
        # Also while the copy is being made:
        taking = asyncio.create_task(taken(source))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        assert not (store.path.parent / DIRECTORY).exists()
        assert await taken(source)

    asyncio.run(main())


def test_no_copy_that_would_fill_the_disk(store: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = store.statistics()
    monkeypatch.setattr(store, "statistics", lambda: found._replace(disk_free_bytes=found.used_bytes + 1))
    with pytest.raises(ServiceError, match="Make room") as refused:
        asyncio.run(taken(backups(store)))
    assert refused.value.code == "disk_low"
    assert not (store.path.parent / DIRECTORY).exists()
