"""`meshnode secret rotate`: leads through a rotation of the mesh secret, one safe step at a time.

It changes the secret file of this machine only; copying it to the others is the operator's, and the daemons take a
changed file over by themselves. What every node accepts is asked of one node, which asks the others; a Leaf passes the
question on to its parent.
"""

import os
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mesh.errors import MeshError
from mesh.secrets import MeshSecret, Secrets
from node.cli import render
from node.cli.api import Api, overall_timeout_s
from node.cli.exits import CommandError, Exit
from node.cli.rotation import STEPS, WORDS, Member, Plan, members_of, plan

POLL_S = 1.0


def rotate(arguments: Namespace) -> int:
    path = _file(arguments)
    api = Api.of(arguments)
    asked = api.get("/status")["node_id"]
    timeout_s = overall_timeout_s(arguments)
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        file = _load(path)
        after = _after(file, arguments.begin)
        members = [
            member
            for member in members_of(api.get("/v1/trust")["nodes"], asked)
            if not _is_left_out(member, arguments.without)
        ]
        found = plan(file, after, members)
        if not arguments.wait or found.verdict not in ("copy", "unknown"):
            break
        if until is not None and time.monotonic() >= until:
            raise CommandError(_reason(found, path), Exit.TIMEOUT)
        time.sleep(POLL_S)
    is_taken = found.verdict == "ready" and not arguments.dry_run
    if is_taken:
        assert after is not None
        try:
            after.replace(path)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}", Exit.FAILED) from None
    shown = after if found.verdict == "ready" and after is not None else file
    if arguments.json:
        render.print_json(_document(path, found, members, shown, is_taken=is_taken))
    else:
        print(_text(path, found, members, file, shown, is_taken=is_taken))
    return Exit.OK if found.verdict in ("ready", "idle") else Exit.FAILED


def _file(arguments: Namespace) -> Path:
    if arguments.node_config is None:
        file: Path = arguments.file
        return file.expanduser()
    from node.config import ConfigError, load

    try:
        config = load(arguments.node_config, os.environ)
    except ConfigError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    if config.secret_file is None:
        raise CommandError(
            f"{arguments.node_config} names no [mesh] secret_file: there is nothing to rotate", Exit.USAGE
        )
    return config.secret_file


def _load(path: Path) -> Secrets:
    try:
        return Secrets.load(path)
    except MeshError as error:
        raise CommandError(str(error), Exit.FAILED) from None


def _after(file: Secrets, begin: bool) -> Secrets | None:
    today = datetime.now(UTC).date()
    if file.role == "next":
        return file.turned(today)
    if file.role == "former":
        return file.without_former()
    return file.with_next(MeshSecret.new(), today) if begin else None


def _is_left_out(member: Member, names: list[str]) -> bool:
    return member.name in names or member.node_id in names


def _reason(found: Plan, path: Path) -> str:
    """Why the next step is not taken."""
    names = ", ".join(member.name for member in found.waiting_for)
    match found.verdict:
        case "copy":
            return f"not yet: {names} {_has(found)} not taken over {path} as it is now"
        case "unknown":
            return f"not yet: nothing is known of the secrets of {names}"
        case "foreign":
            return (
                f"refused: {names} {_has(found)} secrets that {path} does not know, or went on with the rotation from "
                "another machine"
            )
        case _:
            return "no rotation is under way"


def _has(found: Plan) -> str:
    return "has" if len(found.waiting_for) == 1 else "have"


def _next(found: Plan, path: Path, members: list[Member], file: Secrets, *, is_taken: bool) -> list[str]:
    """What the operator does now, line by line."""
    match found.verdict:
        case "ready" if is_taken:
            return [
                *_copies(path, members),
                "daemons that use the file take it over by themselves within seconds",
                "then run this command again"
                + (": it will say that the rotation is done" if file.role is None else ""),
            ]
        case "ready":
            return ["run this command without --dry-run"]
        case "copy":
            return [*_copies(path, list(found.waiting_for)), "then run this command again (--wait waits for them)"]
        case "unknown":
            return [
                *(f"{member.name}: {member.unknown}" for member in found.waiting_for),
                "or leave a node behind with --without NAME: it cannot link again until the file is copied to it",
            ]
        case "foreign":
            return [
                f"go on where the rotation was begun, or copy the file of {found.waiting_for[0].name} to {path}",
            ]
        case "idle":
            return ["begin one with --begin"]


def _copies(path: Path, members: list[Member]) -> list[str]:
    return [
        f"copy it to {member.name}: scp -p {path} {member.address.rpartition(':')[0].strip('[]')}:{path}"
        if member.address
        else f"copy it to {member.name}, unless that is this machine"
        for member in members
    ]


def _document(path: Path, found: Plan, members: list[Member], shown: Secrets, *, is_taken: bool) -> dict[str, Any]:
    return {
        "file": str(path),
        "verdict": "taken" if is_taken else found.verdict,
        "step": None if found.verdict == "idle" else STEPS[shown.role],
        "steps": 3,
        "accepts": list(shown.fingerprints),
        "waiting_for": [member.node_id for member in found.waiting_for],
        "nodes": [
            {
                "node_id": member.node_id,
                "name": member.name,
                "address": member.address,
                "accepts": None if member.accepts is None else list(member.accepts),
                "unknown": member.unknown,
            }
            for member in members
        ],
        "next": _next(found, path, members, shown, is_taken=is_taken),
    }


def _text(path: Path, found: Plan, members: list[Member], file: Secrets, shown: Secrets, *, is_taken: bool) -> str:
    if found.verdict == "ready":
        step = STEPS[shown.role]
        tense = "taken" if is_taken else "would be taken"
        first = f"step {step} of 3 {tense}: in {path} {WORDS[step]}"
    elif found.verdict == "idle":
        first = f"no rotation is under way: every node accepts {file.fingerprints[0]} only"
    else:
        first = _reason(found, path)
    rows = [[member.name, "+".join(member.accepts) if member.accepts else "?"] for member in members]
    steps = _next(found, path, members, shown, is_taken=is_taken)
    return "\n".join(
        [first, render.table(["node", "presents+accepts"], rows, indent="  "), *(f"- {line}" for line in steps)]
    )
