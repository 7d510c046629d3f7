"""Trust that changes while links are up: rotated secrets, renewed certificates, clocks that are wrong."""

import asyncio
import contextlib
import datetime
import time
from pathlib import Path

import pytest

from mesh.limits import DAY_S
from mesh.links import remake, streams
from mesh.mesh import Mesh
from mesh.secrets import MeshSecret, Secrets
from tests.unit.mesh.support import SECRET, Site, address, linked, run, site, until
from tests.unit.mesh.test_streams import Owner, arrived, is_over

NEW = MeshSecret(bytes([1]) * 32)
TODAY = datetime.date(2026, 3, 1)


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remake, "REMAKE_PAUSE_S", 0.01)
    monkeypatch.setattr(remake, "REMAKE_RETRY_S", 0.05)
    monkeypatch.setattr(remake, "SHUT_OUT_AFTER_S", 0.2)
    monkeypatch.setattr(streams, "STREAM_RETRY_S", 0.01)


async def three(here: Site, directory: Path, clock: Clock | None = None) -> list[Mesh]:
    """Linked, each with a secret file of its own; any link that goes down is an error in its log."""
    meshes: list[Mesh] = []
    for name in "abc":
        file = directory / f"{name}.secret"
        Secrets(SECRET).save(file)
        seeds = [address(mesh) for mesh in meshes]
        mesh = here.make(name, secret_file=file, seeds=seeds, clock=clock or time.time)
        here._running.append(mesh)
        await mesh.start()
        meshes.append(mesh)
    await linked(*meshes)
    return meshes


def downs(here: Site) -> list[object]:
    return [
        (name, fields)
        for name, log in here.logs.items()
        for _, event, fields in log.lines
        if event == "link_down" or event.startswith("link_refused")
    ]


async def give(mesh: Mesh, secrets: Secrets) -> None:
    """Put a secret file in its place and wait until the node has taken it over."""
    assert mesh.settings.secret_file is not None
    secrets.replace(mesh.settings.secret_file)
    mesh.look_at_secrets()
    await until(lambda: mesh.trust_status().accepted == secrets.fingerprints)


@run
async def test_a_secret_is_rotated_without_a_link_going_down(directory: Path) -> None:
    async with site(directory) as here:
        meshes = await three(here, directory)
        steps = [Secrets(SECRET).with_next(NEW, TODAY)]
        steps += [steps[0].turned(TODAY), steps[0].turned(TODAY).without_former()]
        for step in steps:
            for mesh in meshes:
                await give(mesh, step)
                await until(
                    lambda known=mesh, step=step: all(  # type: ignore[misc]
                        peer.secrets == step.fingerprints
                        for other in meshes
                        for peer in other.peers()
                        if peer.node_id == known.node_id
                    ),
                    "its peers know what it accepts",
                )
                assert await mesh_answers(meshes)
        await until(
            lambda: all(peer.admitted_by == NEW.fingerprint() for mesh in meshes for peer in mesh.peers()),
            "every link has been made anew under the new secret",
        )
        assert not downs(here)


async def mesh_answers(meshes: list[Mesh]) -> bool:
    async def echo(peer: object, payload: bytes) -> bytes:
        return payload

    for mesh in meshes:
        mesh.serve("echo", echo)
    pairs = [(a, b) for a in meshes for b in meshes if a is not b]
    answers = await asyncio.gather(*(a.request(b.node_id, "echo", b"?", 10.0) for a, b in pairs))
    return answers == [b"?"] * len(pairs)


@run
async def test_who_has_only_the_old_secret_is_shut_out_when_it_is_dropped(directory: Path) -> None:
    async with site(directory) as here:
        a, b, c = await three(here, directory)
        step = Secrets(SECRET).with_next(NEW, TODAY)
        for secrets in (step, step.turned(TODAY), step.turned(TODAY).without_former()):
            for mesh in (a, b):
                await give(mesh, secrets)
        await until(lambda: not any(peer.state == "up" for peer in c.peers()), "nobody is linked to it any more")
        assert a.is_up(b.node_id)
        await until(lambda: c.counters().get("wrong_secret", 0))
        await give(c, Secrets(NEW))
        await linked(a, b, c)


@run
async def test_a_renewed_certificate_makes_every_link_anew_unseen(directory: Path) -> None:
    async with site(directory) as here:
        clock = Clock()
        meshes = await three(here, directory, clock)
        ends = {mesh.trust_status().certificate_ends_at for mesh in meshes}
        # The acceptor of a link may renew after the dialler has made it anew: then its turn comes with the next one.
        for days in (31, 62):
            clock.ahead_s = days * DAY_S
            for mesh in meshes:
                mesh.look_at_secrets()
            soonest = max(ends) + (days - 1) * DAY_S
            await until(lambda at=soonest: all(mesh.trust_status().certificate_ends_at > at for mesh in meshes))  # type: ignore[misc]
        await until(
            lambda: all(
                peer.certificate_ends_at_ms is not None and peer.certificate_ends_at_ms / 1000 > max(ends) + 30 * DAY_S
                for mesh in meshes
                for peer in mesh.peers()
            )
        )
        assert await mesh_answers(meshes)
        assert not downs(here)


@run
async def test_a_wrong_clock_is_named_on_both_sides_and_heals_when_it_is_set(directory: Path) -> None:
    async with site(directory) as here:
        clock = Clock()
        clock.ahead_s = -time.time()  # 1970
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)], clock=clock)
        await until(lambda: a.counters().get("wrong_clock") and b.counters().get("wrong_clock"))
        for name in "ab":
            details = " ".join(fields["detail"] for fields in here.logs[name].refusals("wrong_clock"))
            assert "1970-0" in details
            assert "set the clock that is wrong" in details
        clock.ahead_s = 0.0
        b.look_at_secrets()
        await linked(a, b)


@run
async def test_a_clock_that_jumps_costs_no_link(directory: Path) -> None:
    async with site(directory) as here:
        clock = Clock()
        a = await here.start("a")
        b = await here.start("b", seeds=[address(a)], clock=clock)
        await linked(a, b)
        clock.ahead_s = 400 * DAY_S
        b.look_at_secrets()
        await until(lambda: b.counters().get("wrong_clock"))
        assert a.is_up(b.node_id)
        assert b.is_up(a.node_id)
        clock.ahead_s = 0.0
        b.look_at_secrets()
        await until(lambda: (a.peers()[0].certificate_ends_at_ms or 0) / 1000 < time.time() + 91 * DAY_S)
        assert not [line for line in here.logs["a"].lines + here.logs["b"].lines if line[1] == "link_down"]


@run
async def test_a_stream_is_made_anew_with_its_link(directory: Path) -> None:
    async with site(directory) as here:
        clock = Clock()
        a = await here.start("a", clock=clock)
        b = await here.start("b", seeds=[address(a)], clock=clock)
        at_a, at_b = Owner(a), Owner(b)
        with contextlib.closing(at_a), contextlib.closing(at_b):
            await until(lambda: at_a.streams and at_b.streams)
            dialler, acceptor, peer = (at_a, at_b, b) if a.peers()[0].is_dialled else (at_b, at_a, a)
            own = b if peer is a else a
            before = dialler.streams[peer.node_id]
            clock.ahead_s = 31 * DAY_S
            own.look_at_secrets()
            await until(lambda: before.is_outdated)
            with pytest.raises(OSError, match="made anew"):
                before.send(b"lost")
            dialler.streams.pop(peer.node_id).close()
            await until(lambda: is_over(acceptor, own.node_id))
            await until(lambda: dialler.given == 2 and acceptor.given == 2)
            dialler.streams[peer.node_id].send(b"on the new one")
            assert await arrived(acceptor, own.node_id, 1) == [b"on the new one"]
