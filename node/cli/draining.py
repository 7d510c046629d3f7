"""`meshnode nodes drain|undrain|leave`: asks for it, and shows what is left to finish until it is done."""

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from node.cli import render
from node.cli.api import Api, overall_timeout_s
from node.cli.exits import CommandError, Exit, outlived
from node.cli.nodes import ANSWER_S, confirm

POLL_S = 0.5


def run(arguments: Namespace) -> int:
    api = Api.of(arguments)
    api.timeout_s = max(api.timeout_s, ANSWER_S)
    path = f"/v1/members/{quote(arguments.name, safe='')}/change"
    action = "leave" if getattr(arguments, "leave", False) else arguments.action
    body = {"action": action, "grace_s": getattr(arguments, "grace", None), "dry_run": True}
    timeout_s = overall_timeout_s(arguments)
    if arguments.dry_run or action == "leave":
        plan = api.post(path, body)
        if arguments.dry_run:
            _show(arguments, plan, plan_text(plan))
            return Exit.OK if plan["allowed"] else Exit.FAILED
        if not plan["allowed"]:
            raise CommandError(plan["refusal"]["message"], Exit.FAILED, "see meshnode nodes", plan["refusal"]["code"])
        if not arguments.yes:
            print(plan_text(plan), file=sys.stderr)
            confirm()
    done = api.post(path, {**body, "dry_run": False})
    if action != "undrain" and not arguments.no_wait:
        with outlived("it goes on; see meshnode nodes"):
            done = {**done, "member": _wait(api, done["node_id"], action, timeout_s)}
    _show(arguments, done, done_text(done))
    return Exit.OK


def plan_text(plan: Mapping[str, Any]) -> str:
    """What it would do."""
    name, action = plan["name"], plan["action"]
    if action == "undrain":
        return f"would give {render.clean(name)} work again"
    lines = [
        f"would give {name} no new work; it executes {_attempts(plan)} now, and what is left at "
        f"{render.local(plan['hand_back_at'])} goes on elsewhere"
    ]
    if action == "leave":
        lines.append("then it leaves the mesh until it is started again")
    for when, quorum in (plan["quorum"] or {}).items():
        lines.append(
            f"{when}: {quorum['voters']} voters, {quorum['majority']} make a majority, {quorum['healthy']} are "
            f"healthy: survives the loss of {quorum['survives']}"
        )
    if plan["refusal"]:
        lines.append(f"refused ({plan['refusal']['code']}): {plan['refusal']['message']}")
    return "\n".join(render.clean(line) for line in lines)


def done_text(done: Mapping[str, Any]) -> str:
    name = done["name"]
    is_waited_for = "member" in done
    text = {
        "undrain": f"{name} gets work again",
        "drain": f"{name} is drained" if is_waited_for else f"{name} drains, and executes {_attempts(done)}",
        "leave": f"{name} has left the mesh: it may be stopped; starting it brings it back"
        if is_waited_for
        else f"{name} drains, then it leaves the mesh",
    }[done["action"]]
    return render.clean(text)


def _wait(api: Api, node_id: str, action: str, timeout_s: float | None) -> Mapping[str, Any]:
    """The member's row when it is done."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    told = ""
    while True:
        answer = api.get("/v1/members")
        member = next((row for row in answer["members"] if row["node_id"] == node_id), None)
        if member is None:
            raise CommandError("the member is gone", Exit.NOT_FOUND, "see meshnode nodes")
        if action == "leave" and member["standing"] == "left":
            return dict(member)
        if not member["is_draining"]:
            raise CommandError("it was started again, or undrained", Exit.FAILED, "see meshnode nodes")
        leads = answer.get("leader") == node_id
        if action == "drain" and not member["running"] and not leads:
            return dict(member)
        left = f"{_attempts(member)} to finish" + (", leadership to hand over" if leads else "")
        if left != told and member["status"] != "left":
            told = left
            print(f"{render.clean(member['name'])}: {left}", file=sys.stderr)
        if until is not None and time.monotonic() >= until:
            raise CommandError(f"not done yet: {left}", Exit.TIMEOUT, "it goes on; see meshnode nodes")
        time.sleep(POLL_S)


def _attempts(row: Mapping[str, Any]) -> str:
    return f"{row['running']} attempt{'' if row['running'] == 1 else 's'}"


def _show(arguments: Namespace, document: Mapping[str, Any], text: str) -> None:
    if arguments.json:
        render.print_json(document)
    else:
        print(text)
