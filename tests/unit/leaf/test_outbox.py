"""What a Leaf has finished: in memory, on the disk, and away when the mesh has answered."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from consensus.state.commands import Outcome
from consensus.state.rows import Knowledge
from mesh.errors import PeerUnavailable
from mesh.identity import Identity, is_proven
from node.leaf import limits
from node.leaf.outbox import Outbox
from node.uplinks import messages
from node.uplinks.limits import OUTCOME_BYTES_PER_MESSAGE_MAX
from node.uplinks.messages import SignedOutcomes, Verdict
from storage import codec
from storage.ids import SessionId

IDENTITY = Identity.generate()
SESSION = SessionId("2df18a12-f01b-4fb3-91b1-b52a88d742cf")


def outcome(index: int, text: str = "x") -> Outcome:
    return Outcome(
        session_id=SESSION, branch_index=index, attempt=1, node_id=IDENTITY.node_id, duration_ms=1, ritual_version="1",
        knowledge=Knowledge(result=text),
    )  # fmt: skip


def outbox(folder: Path) -> Outbox:
    found = Outbox(folder / "results", IDENTITY.sign, "home")
    found.open()
    return found


def indexes(signed: SignedOutcomes) -> list[int]:
    return [one.branch_index for item in signed.contents if (one := messages.outcome_of(item)) is not None]


class Mesh:
    """What answers reports; `fails` of them first."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.got: list[int] = []
        self.signed: list[SignedOutcomes] = []

    async def report(self, signed: SignedOutcomes) -> list[Verdict]:
        if self.fails:
            self.fails -= 1
            raise PeerUnavailable("link_lost", "gone")
        self.got += indexes(signed)
        self.signed.append(signed)
        found = [messages.outcome_of(content) for content in signed.contents]
        return [Verdict(key=messages.key_of(one), result="recorded") for one in found if one is not None]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(main())


async def delivered(box: Outbox, mesh: Mesh) -> None:
    task = asyncio.create_task(box.deliver(mesh.report))
    await asyncio.wait({task, idle := asyncio.create_task(box.wait_idle())}, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_cut_off_is_on_the_disk_and_survives_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        box.add(outcome(0))
        box.add(outcome(1))
        await box.keep(only_overdue=True)
        assert (box.counts["waiting"], box.counts["kept_files"]) == (0, 1)
        again = outbox(tmp_path)
        again.add(outcome(2))
        await delivered(again, mesh)
        assert mesh.got == [0, 1, 2], "the oldest first"
        assert again.counts["kept_files"] == 0
        assert not list((tmp_path / "results").iterdir())

    run(test)


@pytest.mark.parametrize("is_kept", [False, True])
def test_every_report_is_proven_and_only_for_its_mesh(tmp_path: Path, is_kept: bool) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        box.add(outcome(0))
        box.add(outcome(1))
        if is_kept:
            await box.keep()
        await delivered(box, mesh)
        (signed,) = mesh.signed
        made = messages.signable("home", signed.contents)
        assert is_proven(IDENTITY.node_id, signed.proof, made)
        assert not is_proven(IDENTITY.node_id, signed.proof, messages.signable("other", signed.contents))
        assert not is_proven(IDENTITY.node_id, signed.proof, messages.signable("home", signed.contents[:1]))
        assert not is_proven(IDENTITY.node_id, signed.proof, messages.signable("home", signed.contents[::-1]))
        assert not is_proven(Identity.generate().node_id, signed.proof, made)
        for proof in (b"", b"x" * 32, signed.proof[:-1], b"x" * 96):
            assert not is_proven(IDENTITY.node_id, proof, made)

    run(test)


def test_what_was_not_answered_stays(tmp_path: Path) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh(fails=1)
        box.add(outcome(0))
        with pytest.raises(PeerUnavailable):
            await box.deliver(mesh.report)
        assert box.counts["waiting"] == 1
        await delivered(box, mesh)
        assert mesh.got == [0]

    run(test)


def test_a_parent_that_does_not_answer_is_not_trusted_with_the_only_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        box = outbox(tmp_path)
        box.is_cut_off = False
        box.add(outcome(0))
        await box.keep(only_overdue=True)
        assert box.counts["kept_files"] == 0, "it may answer yet"
        monkeypatch.setattr(limits, "KEEP_AFTER_S", 0.0)
        await box.keep(only_overdue=True)
        assert box.counts["kept_files"] == 1

    run(test)


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        for index in range(3):
            box.add(outcome(index))
            await box.keep()
        damaged = sorted((tmp_path / "results").iterdir())[1]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
        await outbox(tmp_path).deliver_kept(mesh.report)
        assert mesh.got == [0, 2]

    run(test)


def test_when_the_disk_has_no_room_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(limits, "KEPT_FILES_MAX", 2)
        box, mesh = outbox(tmp_path), Mesh()
        for index in range(4):
            box.add(outcome(index))
            await box.keep()
        assert box.counts["dropped"] == 2
        await box.deliver_kept(mesh.report)
        assert mesh.got == [2, 3]

    run(test)


def test_without_a_disk_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(limits, "OUTCOMES_WAITING_MAX", 3)
        box, mesh = outbox(tmp_path), Mesh()
        (tmp_path / "results").rmdir()
        for index in range(5):
            box.add(outcome(index))
        await box.keep()
        assert (box.counts["waiting"], box.counts["dropped"]) == (3, 2)
        await delivered(box, mesh)
        assert mesh.got == [2, 3, 4]

    run(test)


def test_large_results_go_in_several_reports(tmp_path: Path) -> None:
    async def test() -> None:
        box = outbox(tmp_path)
        sizes: list[int] = []

        async def report(signed: SignedOutcomes) -> list[Verdict]:
            sizes.append(sum(map(len, signed.contents)))
            return await Mesh().report(signed)

        for index in range(6):
            box.add(outcome(index, "x" * 400_000))
        await box.keep()
        await box.deliver_kept(report)
        assert len(sizes) == 3
        assert max(sizes) <= OUTCOME_BYTES_PER_MESSAGE_MAX

    run(test)


def test_results_of_another_version_are_given_up_and_hold_up_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        strange = [SignedOutcomes(contents=[b"strange"], proof=b"")]
        content = codec.encode(strange)
        (tmp_path / "results" / f"{1:012d}.results").write_bytes(codec.digest(content) + content)
        box = outbox(tmp_path)
        box.add(outcome(0))
        await delivered(box, mesh)
        assert (mesh.got, box.counts["kept_files"], box.counts["superseded"]) == ([0], 0, 1)

    run(test)


def test_what_the_mesh_cannot_read_is_not_said_for_ever(tmp_path: Path) -> None:
    async def test() -> None:
        box = outbox(tmp_path)

        async def report(signed: SignedOutcomes) -> list[Verdict]:
            return []

        box.add(outcome(0))
        task = asyncio.create_task(box.deliver(report))
        await box.wait_idle()
        task.cancel()
        assert box.counts == {"waiting": 0, "kept_files": 0, "kept_bytes": 0, "dropped": 0, "superseded": 1}

    run(test)


def test_a_disk_that_cannot_be_written_any_more_does_not_keep_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        box.add(outcome(0))
        await box.keep()

        def fail(path: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", fail)
            box.add(outcome(1))
            await delivered(box, mesh)
        assert mesh.got == [0, 1]
        assert box.counts["kept_files"] == 0

    run(test)


def test_a_file_that_cannot_be_read_now_waits_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        box, mesh = outbox(tmp_path), Mesh()
        box.add(outcome(0))
        await box.keep()

        def fail(path: Path) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", fail)
            await box.deliver_kept(mesh.report)
        assert mesh.got == []
        await outbox(tmp_path).deliver_kept(mesh.report)
        assert mesh.got == [0]

    run(test)


def test_what_a_killed_process_has_half_written_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f".{1:012d}.results.4711.abcdef01").write_bytes(b"half")
    outbox(tmp_path)
    assert not list((tmp_path / "results").iterdir())
