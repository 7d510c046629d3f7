"""`meshnode nodes remove|replace|promote|demote`: says what it does to the quorum, then does it."""

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from node.cli import render
from node.cli.api import Api
from node.cli.exits import CommandError, Exit

ANSWER_S = 20.0
"""A node answers within 15 s: a change may have to wait for another leader."""


def run(arguments: Namespace) -> int:
    api = Api.of(arguments)
    api.timeout_s = max(api.timeout_s, ANSWER_S)
    path = f"/v1/members/{quote(arguments.name, safe='')}/change"
    body = {"action": arguments.action, "by": getattr(arguments, "by", ""), "dry_run": True}
    plan = api.post(path, body)
    if arguments.dry_run:
        if arguments.json:
            render.print_json(plan)
        else:
            print(plan_text(plan))
        return Exit.OK if plan["allowed"] else Exit.FAILED
    if not plan["allowed"]:
        refusal = plan["refusal"]
        raise CommandError(refusal["message"], Exit.FAILED, "see meshnode nodes", refusal["code"])
    if not arguments.yes:
        print(plan_text(plan), file=sys.stderr)
        confirm()
    done = api.post(path, {**body, "dry_run": False})
    if arguments.json:
        render.print_json(done)
    else:
        print(plan_text(done))
    return Exit.OK


def plan_text(plan: Mapping[str, Any]) -> str:
    """Steps, and the quorum before and after."""
    is_dry_run = plan["dry_run"]
    steps = [f"{step['kind']} {step.get('name') or step['node_id']}" for step in plan["steps"]]
    lines = [f"{'would' if is_dry_run else 'done:'} {', then '.join(steps)}" if steps else "nothing to do"]
    for when in ("before", "after"):
        quorum = plan[when]
        lines.append(
            f"{when}: {quorum['voters']} voters, {quorum['majority']} make a majority, {quorum['healthy']} are "
            f"healthy: survives the loss of {quorum['survives']}"
        )
    if plan["refusal"]:
        lines.append(f"refused ({plan['refusal']['code']}): {plan['refusal']['message']}")
    elif plan["after"]["survives"] < plan["before"]["survives"]:
        lines.append("the mesh will survive fewer failures than now")
    return "\n".join(render.clean(line) for line in lines)


def confirm() -> None:
    if not sys.stdin.isatty():
        raise CommandError("nobody is there to confirm it", Exit.USAGE, "look at it with --dry-run, then add --yes")
    if input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed", Exit.FAILED)
