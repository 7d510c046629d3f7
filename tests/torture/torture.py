"""A torture from beginning to end: set up, load, faults, healing, judgement. Blocks; leaves nothing running."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.testing import Daemon, MeshTestError
from tests.torture.clients import Board, Client, note_page
from tests.torture.faults import Happened, Planned, carry_out, kinds_possible, plan, victim_of
from tests.torture.ground import Ground
from tests.torture.history import History
from tests.torture.judgement import (
    availability,
    judge_indexes,
    judge_operations,
    judge_tables,
    table_digests,
)
from tests.torture.report import Report, Settings, logged_errors
from tests.torture.watchers import Lives, Watcher, differences

HEAL_S = 120.0
"""After the last fault every session ends within this: far beyond the usual, so that only a real failure meets it."""

PAGE = 1000

WRITER = {"submit": 6, "repeat": 1, "contend": 1, "cancel": 1, "read": 2}
READER = {"read": 6, "glance": 3, "list": 1}


Tell = Callable[[str], None]


def torture(settings: Settings, folder: Path, tell: Tell, *, with_network: bool = True) -> Report:
    """`tell` gets a line for a person now and then."""
    with Ground(folder, settings.nodes, with_network=with_network) as ground:
        kinds = settings.kinds or kinds_possible(ground)
        faults = plan(settings.seed, settings.duration_s, settings.every_s, settings.nodes, kinds)
        ground.mesh.start(deadline_s=60.0)
        return _Run(settings, ground, faults, tell).run()


class _Run:
    def __init__(self, settings: Settings, ground: Ground, faults: list[Planned], tell: Tell) -> None:
        self._settings = settings
        self._ground = ground
        self._faults = faults
        self._tell = tell
        self._history = History()
        self._lives = Lives()
        self._happened: list[Happened] = []
        self._violations: list[str] = []
        daemons = ground.daemons
        self._watchers = [
            Watcher(f"watcher of {daemon.name}", [daemon], self._lives.take if number == 0 else None)
            for number, daemon in enumerate(daemons)
        ]
        self._watchers.append(Watcher("watcher that changes nodes", daemons))
        board = Board()
        self._clients = [
            Client(f"{kind}-{number}", daemons, self._history, board, str(settings.seed), weights, pause_s)
            for kind, count, weights, pause_s in (
                ("writer", settings.writers, WRITER, 0.1),
                ("reader", settings.readers, READER, 0.05),
            )
            for number in range(count)
        ]  # fmt: skip
        self._sessions: Counter[str] = Counter()
        self._begin = self._end = 0.0

    def run(self) -> Report:
        self._begin = time.monotonic()
        for thread in (*self._watchers, *self._clients):
            thread.start()
        try:
            self._go_through_faults()
            self._end = time.monotonic()
        finally:
            for client in self._clients:
                client.end()
            for client in self._clients:
                client.join()
            with contextlib.ExitStack() as stack:
                stack.callback(self._end_watchers)
                if self._end:
                    self._settle()
        self._stop_all()
        return self._report()

    # -- faults -----------------------------------------------------------------------------------------------------

    def _go_through_faults(self) -> None:
        waiting = list(self._faults)
        while waiting:
            together = [fault for fault in waiting if fault.at_s == waiting[0].at_s]
            waiting = waiting[len(together) :]
            self._wait_until(together[0].at_s)
            victim = victim_of(self._ground, together[0])
            from_s = self._passed_s()
            with contextlib.ExitStack() as stack:
                for fault in together:
                    self._tell(f"{self._clock()}  {fault.what} on {victim.name} ({fault.who}), {fault.hold_s} s")
                    stack.enter_context(carry_out(self._ground, victim, fault))
                # From when it has happened: stopping takes its time.
                self._wait_until(self._passed_s() + max(fault.hold_s for fault in together))
            self._happened += [Happened(fault, victim.name, from_s, self._passed_s()) for fault in together]
            self._tell(f"{self._clock()}  healed; {self._so_far()}")
        self._wait_until(self._settings.duration_s)

    def _wait_until(self, at_s: float) -> None:
        while (left_s := self._begin + at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.5))

    def _passed_s(self) -> float:
        return time.monotonic() - self._begin

    def _clock(self) -> str:
        passed, total = int(self._passed_s()), int(self._settings.duration_s)
        return f"{passed // 60:02d}:{passed % 60:02d}/{total // 60:02d}:{total % 60:02d}"

    def _so_far(self) -> str:
        counts, watcher = self._history.counts, self._watchers[0]
        return (
            f"{counts['writes'] + counts['reads']:,} operations, {len(self._history.acknowledged_at):,} writes "
            f"acknowledged, {len(watcher.ids):,} events, {len(self._lives.faults)} faults in them"
        )

    # -- afterwards -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Everything is healed: every session ends, every node shows the same."""
        mesh = self._ground.mesh
        self._tell("healed for good: waiting until every session has ended")
        try:
            mesh.wait_ready(HEAL_S)
            mesh.wait("every watched session has ended", lambda: self._seen_to() and not self._lives.open, HEAL_S)
        except MeshTestError as error:
            still = ", ".join(list(self._lives.open)[:NAMED]) or "none"
            self._violations.append(f"not healed within {HEAL_S:g} s (sessions open: {still}): {error}")
            return
        shown = {daemon.name: self._all_sessions(daemon) for daemon in self._ground.daemons}
        call, back, rows = shown[self._ground.daemons[0].name]
        note_page(self._history, "afterwards", call, back, rows, is_last=True)
        for name, (_, _, other) in shown.items():
            if other != rows:
                different = [row["id"] for row in rows if row not in other][:NAMED]
                self._violations.append(f"{name} shows other sessions than the first node: {different}")
        self._violations += [f"session {row['id']} never ended" for row in rows if row["status"] not in ENDED]
        self._sessions = Counter(row["status"] for row in rows)

    def _seen_to(self) -> bool:
        """The watchers have caught up with the mesh."""
        index = max((daemon.status() or {}).get("applied_index") or 0 for daemon in self._ground.daemons)
        return self._watched(index - 1) or self._watched(index)

    def _watched(self, index: int) -> bool:
        return all(watcher.index >= index or not watcher.is_alive() for watcher in self._watchers)

    def _all_sessions(self, daemon: Daemon) -> tuple[float, float, list[Any]]:
        call, rows, after = time.monotonic(), [], ""
        while True:
            page = daemon.call("GET", f"/v1/sessions?limit={PAGE}&level=linearizable{after}").expect(200)
            rows += page["sessions"]
            if page["next"] is None:
                return call, time.monotonic(), rows
            after = f"&after={page['next']}"

    def _end_watchers(self) -> None:
        while running := [watcher for watcher in self._watchers if watcher.is_alive()]:
            for watcher in running:
                watcher.end()  # again, in case it was just connecting
            running[0].join(0.2)

    def _stop_all(self) -> None:
        for daemon in self._ground.daemons:
            try:
                code = daemon.stop(deadline_s=60.0)
                if code != 0:
                    self._violations.append(f"{daemon.name} ended with exit code {code} after SIGTERM")
            except MeshTestError as error:
                self._violations.append(str(error))

    def _report(self) -> Report:
        self._tell("judging what was recorded")
        operations = judge_operations(self._history)
        self._violations += operations.violations
        self._violations += judge_indexes(self._history)
        for watcher in self._watchers:
            self._violations += watcher.faults
        self._violations += differences(self._watchers)
        self._violations += self._lives.faults
        running = [daemon.name for daemon in self._ground.daemons if daemon.is_running]
        if not running:
            digests = {daemon.name: table_digests(self._ground.data_dir(daemon)) for daemon in self._ground.daemons}
            self._violations += judge_tables(digests)
        self._history.write(self._ground.folder / "history.txt")
        events = min(len(watcher.ids) for watcher in self._watchers)
        return Report(
            settings=self._settings,
            faults=self._happened,
            skipped=self._ground.skipped,
            counts={
                **self._history.counts, "acknowledged writes": len(self._history.acknowledged_at),
                "checked operations": operations.operations, "checked sessions": operations.objects,
                "events": events, "attempts": self._lives.attempts, "attempts repeated": self._lives.repeated,
                "streams resumed": sum(watcher.resumed for watcher in self._watchers),
            },
            availability=availability(
                self._history.acknowledged_at, self._begin, self._end, self._ground.without_majority
            ),
            sessions=dict(self._sessions),
            violations=self._violations,
            gave_up=operations.gave_up,
            unexpected=dict(self._history.surprises),
            logged_errors=logged_errors(self._ground.mesh),
            folder=str(self._ground.folder),
        )  # fmt: skip


ENDED = ("completed", "failed", "cancelled")
NAMED = 5
