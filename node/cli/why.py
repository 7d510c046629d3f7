"""`meshnode why ID` and `meshnode session submit --dry-run`: where work goes, and what rules out where it does not."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from node.cli import render
from node.cli.api import Api
from node.cli.exits import Exit
from node.cli.ids import full_id

SHOWN_MAX = 20
"""Branches of a dry run that are listed for a person; `--json` has all that the node answers."""


def run(arguments: Namespace) -> int:
    api = Api.of(arguments)
    answer = api.read(f"/v1/branches/{full_id(api, arguments.id)}/why")
    if arguments.json:
        render.print_json(answer)
        return Exit.OK
    print(render.clean(answer["sentence"]))
    if answer["candidates"]:
        print(render.table(["node", "fits", "why"], _rows(answer["candidates"]), keep=(0,)))
    for fix in answer["unblock"]:
        print(render.clean(f"would help: {fix}"))
    if answer["next_deadline"] is not None:
        print(f"next: {answer['next_deadline']['what']} ({render.local(answer['next_deadline']['at'])})")
    if not answer["seen_from"]["is_leader"] and answer["candidates"]:
        print(f"(the leader does not answer: links as seen from {answer['seen_from']['name']})")
    return Exit.OK


def dry_run(api: Api, body: Mapping[str, Any], *, is_json: bool) -> int:
    """Exit code 1 if a branch would find no place."""
    answer = api.post("/v1/sessions?dry_run=1", dict(body))
    placements: list[dict[str, Any]] = answer["placements"]
    if is_json:
        render.print_json(answer)
    else:
        print(f"{answer['placed']} of {answer['total_branches']} branches would start now; nothing was submitted")
        rows = [
            [row["branch_index"], row["ritual"], row["name"] or "-", _reason(row)] for row in placements[:SHOWN_MAX]
        ]
        print(render.table(["branch", "ritual", "node", "why not"], rows, right=(0,), keep=(1, 2)))
        if len(placements) > SHOWN_MAX:
            print(f"and {len(placements) - SHOWN_MAX} more: see --json")
    return Exit.OK if answer["placed"] == len(placements) else Exit.FAILED


def _rows(candidates: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[row["name"], "yes" if row["fits"] else "no", row["detail"]] for row in candidates]


def _reason(row: Mapping[str, Any]) -> str:
    if row["name"] is not None:
        return ""
    if row["waits"] is not None:
        return str(row["waits"]["detail"])
    told = [f"{one['name']} {one['detail']}" for one in row["ruled_out"] if not one["fits"]]
    return "; ".join(told) or "the mesh has no nodes"
