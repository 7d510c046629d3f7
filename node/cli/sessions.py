"""`meshnode session ...`: submit, watch, list, show, cancel."""

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from node.cli import drafts, insight, render, why
from node.cli.api import Api, overall_timeout_s
from node.cli.events import EventReader
from node.cli.exits import CommandError, Exit, outlived
from node.cli.ids import full_id
from node.cli.progress import Counts, ProgressLine

TERMINAL = ("completed", "failed", "cancelled")

POLL_S = 20.0
"""Of one long-poll; nodes accept 60 s, proxies often cut at 30 s."""

REFRESH_S = 0.2
"""Between looks at the session while events arrive."""

LOOK_S = 2.0
"""Between looks while none arrive, in case a stream died silently."""

RETRY_S = 30.0
"""How long a watcher goes on asking while no node answers: more than an election takes."""

PAGE_ROWS = 1000
"""Nodes give no more at once."""

FAILURES_SHOWN = 5

ID_CELLS = 36
SHORT_CELLS = 8
WIDE_CELLS = 100
"""From so wide a terminal on whole ids leave room for the rest."""


def run(arguments: Namespace) -> int:
    api = Api.of(arguments)
    match arguments.action:
        case "submit":
            return submit(api, arguments)
        case "watch":
            return follow(api, full_id(api, arguments.id), arguments, is_shown=True)
        case "list":
            return list_sessions(api, arguments)
        case "show":
            return show(api, arguments)
        case "cancel":
            return cancel(api, arguments)
        case _:
            raise AssertionError(arguments.action)


def submit(api: Api, arguments: Namespace) -> int:
    body = drafts.build(arguments)
    if arguments.dry_run:
        return why.dry_run(api, body, is_json=arguments.json)
    answer = api.post("/v1/sessions", body)
    session = answer["session"]
    branches = render.counted(int(session["total_branches"]), "branch")
    if not (arguments.wait or arguments.watch):
        if arguments.json:
            render.print_json(answer)
        else:
            again = "" if answer.get("created", True) else " (had been submitted before)"
            print(f"session {session['id']} accepted with {branches}{again}")
            print(f"follow it with: meshnode session watch {session['id']}")
        return Exit.OK
    if not arguments.json:
        print(f"session {session['id']} accepted with {branches}", flush=True)
    return follow(api, str(session["id"]), arguments, is_shown=bool(arguments.watch))


def follow(api: Api, session_id: str, arguments: Namespace, *, is_shown: bool) -> int:
    """Until the session ends or `--timeout` is over; then its insight."""
    timeout_s = overall_timeout_s(arguments)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    with outlived(f"the session goes on; follow it with: meshnode session watch {session_id}"):
        session = _watched(api, session_id, deadline_s) if is_shown else _awaited(api, session_id, deadline_s)
    if session["status"] not in TERMINAL:
        raise CommandError(
            f"session {session_id} is {session['status']} after {timeout_s:g} s; it goes on",
            Exit.TIMEOUT,
            f"meshnode session watch {session_id}",
        )
    return _print_session(api, session, arguments.json, has_branches=False)


def list_sessions(api: Api, arguments: Namespace) -> int:
    query: dict[str, object] = {"limit": arguments.limit}
    if arguments.status:
        query["status"] = arguments.status
    answer = api.read("/v1/sessions", query)
    if arguments.json:
        render.print_json(answer)
        return Exit.OK
    cells = _id_cells([row["id"] for row in answer["sessions"]])
    rows = [
        [
            row["id"][:cells],
            row["status"],
            f"{Counts.of(row).done}/{row['total_branches']}",
            row.get("failed", 0),
            render.local(row.get("created_at")),
            row.get("thought", ""),
        ]
        for row in answer["sessions"]
    ]
    if not rows:
        print("no sessions")
    else:
        print(render.table(["id", "status", "done", "failed", "submitted", "thought"], rows, right=(2, 3), keep=(0, 4)))
        if answer.get("next"):
            print("there are more: raise --limit" if arguments.limit < PAGE_ROWS else "there are more")
    return Exit.OK


def _id_cells(ids: list[str]) -> int:
    """Of an id in the list: all of it where the terminal has room, else a beginning that tells them apart."""
    if render.width() >= WIDE_CELLS:
        return ID_CELLS
    return next(cells for cells in range(SHORT_CELLS, ID_CELLS + 1) if len({one[:cells] for one in ids}) == len(ids))


def show(api: Api, arguments: Namespace) -> int:
    session = api.read(f"/v1/sessions/{full_id(api, arguments.id)}")["session"]
    _print_session(api, session, arguments.json, has_branches=arguments.branches)
    return Exit.OK


def cancel(api: Api, arguments: Namespace) -> int:
    session_id = full_id(api, arguments.id)
    answer = api.post(f"/v1/sessions/{session_id}/cancel", {"reason": arguments.reason})
    if arguments.json:
        render.print_json(answer)
    else:
        print(f"session {session_id} is {render.status(answer['session']['status'])}")
    return Exit.OK


def _awaited(api: Api, session_id: str, deadline_s: float | None) -> dict[str, Any]:
    """The session when it has ended, or as it stands at the deadline."""
    while True:
        wait_s = POLL_S if deadline_s is None else max(0.0, min(POLL_S, deadline_s - time.monotonic()))
        query = {"wait": f"{wait_s:.3f}s", "until": "terminal"}
        session = _patiently(api, f"/v1/sessions/{session_id}", query, wait_s, deadline_s)
        if session["status"] in TERMINAL or (deadline_s is not None and time.monotonic() >= deadline_s):
            return session


def _watched(api: Api, session_id: str, deadline_s: float | None) -> dict[str, Any]:
    """Like `_awaited`, with a progress line. The counts come from the session; events say when to look."""
    path = f"/v1/sessions/{session_id}"
    session: dict[str, Any] = api.get(path)["session"]
    line = ProgressLine(sys.stderr, time.monotonic())
    looked_s = time.monotonic()
    has_changed = True
    with EventReader(api, "/v1/events", {"session": session_id}) as reader:
        while True:
            if session["status"] in TERMINAL or (deadline_s is not None and time.monotonic() >= deadline_s):
                break
            line.show(Counts.of(session), time.monotonic())
            pause_s = REFRESH_S if has_changed else LOOK_S
            due_s = looked_s + pause_s
            if deadline_s is not None:
                due_s = min(due_s, deadline_s)
            while (left_s := due_s - time.monotonic()) > 0:
                event = reader.take(left_s)
                if event is not None:
                    has_changed = True
                    due_s = min(due_s, looked_s + REFRESH_S)
                    if event.event in ("session_completed", "session_failed", "session_cancelled"):
                        break
            looked_s = time.monotonic()
            before = session.get("rev")
            session = _patiently(api, path, {}, 0.0, deadline_s)
            has_changed = session.get("rev") != before
    line.finish(Counts.of(session), time.monotonic())
    return session


def _patiently(
    api: Api, path: str, query: Mapping[str, object], wait_s: float, deadline_s: float | None
) -> dict[str, Any]:
    """Asks until a node answers: while a mesh elects or restarts, a watcher waits rather than fails. A node that has
    not seen the session yet is passed over as well."""
    give_up_s = time.monotonic() + wait_s + RETRY_S
    if deadline_s is not None:
        give_up_s = min(give_up_s, deadline_s + 1.0)
    while True:
        try:
            session: dict[str, Any] = api.get(path, query, wait_s=wait_s)["session"]
            return session
        except CommandError as error:
            is_passing = error.exit_code in (Exit.UNREACHABLE, Exit.TIMEOUT) or (
                error.code == "unknown_session" and len(api.urls) > 1
            )
            if not is_passing or time.monotonic() >= give_up_s:
                raise
            api.next_node()
            time.sleep(0.3)


def _print_session(api: Api, session: dict[str, Any], is_json: bool, *, has_branches: bool) -> int:
    """The session with its insight; answers 1 for one that failed or was cancelled."""
    session_id = session["id"]
    document: dict[str, Any] = {"session": session}
    if session["status"] == "completed":
        document["insight"], document["provenance"] = _insight(api, session_id)
    if has_branches:
        document["branches"] = _pages(api, f"/v1/sessions/{session_id}/branches", "branches")
    if is_json:
        render.print_json(document)
    else:
        names = _names(api)
        print(_head(session, names))
        if "insight" in document:
            print(insight.text(session, document["insight"], document["provenance"], names))
        if has_branches:
            print(render.heading("Branches"))
            print(_branch_table(document["branches"], names))
        elif session.get("failed"):
            query = {"status": "failed", "limit": FAILURES_SHOWN}
            print(render.heading("Failures"))
            print(_failures(api.read(f"/v1/sessions/{session_id}/branches", query)["branches"], names))
            if session["failed"] > FAILURES_SHOWN:
                print(f"  ... see all with: meshnode session show {session_id} --branches")
    return Exit.FAILED if session["status"] in ("failed", "cancelled") else Exit.OK


def _head(session: Mapping[str, Any], names: Mapping[str, str]) -> str:
    counts = ", ".join(
        f"{session[name]} {name}"
        for name in ("pending", "processing", "completed", "failed", "cancelled")
        if session.get(name)
    )
    submitter = names.get(str(session.get("submitted_by")), session.get("submitted_by"))
    lines = [
        f"{render.paint(render.clean(session.get('thought', '')), 'bold')}",
        f"  session    {session['id']}",
        f"  status     {render.status(session['status'])}",
        f"  branches   {session['total_branches']} ({counts})",
        f"  submitted  {render.local(session.get('created_at'))} through {submitter}",
    ]
    if session.get("completed_at"):
        lines.append(f"  ended      {render.local(session['completed_at'])}")
    failure = session.get("failure")
    if isinstance(failure, Mapping):
        lines.append(f"  reason     {render.clean(failure.get('message'))} ({failure.get('code')})")
    return "\n".join(lines)


def _branch_table(branches: list[dict[str, Any]], names: Mapping[str, str]) -> str:
    rows = []
    for row in branches:
        live = row.get("live") or {}
        note = (row.get("failure") or {}).get("message") or live.get("message") or ""
        if live.get("progress") is not None and row["status"] == "processing":
            note = f"{live['progress']:.0%} {note}".strip()
        node = names.get(str(row.get("node_id")), row.get("node_id"))
        if (beside := row.get("speculative")) is not None:
            other = names.get(str(beside["node_id"]), beside["node_id"])
            note = "; ".join(filter(None, (note, f"slow, attempt {beside['attempt']} beside it on {other}")))
        rows.append(
            [row["branch_index"], row["status"], node, row["attempt"], render.duration(row.get("duration_ms")),
             row["task"], note]
        )  # fmt: skip
    return render.table(["#", "status", "node", "attempt", "took", "task", "note"], rows, indent="  ", right=(0, 3, 4))


def _failures(branches: list[dict[str, Any]], names: Mapping[str, str]) -> str:
    return render.bullets(
        f"branch {row['branch_index']}, attempt {row['attempt']} on {names.get(str(row['node_id']), row['node_id'])}: "
        f"{(row['failure'] or {}).get('message', 'no reason is known')}"
        for row in branches
    )


def _insight(api: Api, session_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    provenance: list[dict[str, Any]] = []
    query: dict[str, object] = {"limit": PAGE_ROWS}
    while True:
        answer = api.read(f"/v1/sessions/{session_id}/insight", query)
        provenance += answer.get("provenance") or []
        if not answer.get("provenance_next"):
            return answer["insight"], provenance
        query["after"] = answer["provenance_next"]


def _pages(api: Api, path: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    query: dict[str, object] = {"limit": PAGE_ROWS}
    while True:
        answer = api.read(path, query)
        rows += answer[name]
        if not answer.get("next"):
            return rows
        query["after"] = answer["next"]


def _names(api: Api) -> dict[str, str]:
    return {str(row["node_id"]): str(row["name"]) for row in api.read("/v1/members").get("members", [])}
