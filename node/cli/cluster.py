"""`meshnode status`, `nodes`, `ritual list`, `ritual show`: what one node says about itself and the mesh."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from node.cli import render
from node.cli.api import Api
from node.cli.exits import Exit

PEER_COLUMNS = ("name", "tier", "address", "state", "verdict", "rtt_ms", "since_s", "last_error")
"""What a person asks of a peer first; `--json` has all."""


UP_FOR = {"since_s": "up for", "link_s": "link up for"}


def run(arguments: Namespace) -> int:
    api = Api.of(arguments)
    match arguments.command, getattr(arguments, "action", None):
        case "status", _:
            answer = api.read("/status")
            text = status_text(answer)
        case "nodes", _:
            answer = api.read("/v1/members")
            text = nodes_text(answer)
        case "ritual", "list":
            answer = api.read("/v1/rituals")
            text = rituals_text(answer)
        case "ritual", "show":
            answer = api.read(f"/v1/rituals/{quote(arguments.name, safe='')}")
            text = ritual_text(answer["ritual"])
        case _:
            raise AssertionError(arguments.command)
    if arguments.json:
        render.print_json(answer)
    else:
        print(text)
    return Exit.OK


def status_text(status: Mapping[str, Any]) -> str:
    """Sections in the order of the answer; peers and other lists of maps as tables."""
    status = {**status, "peers": [{name: peer.get(name) for name in PEER_COLUMNS} for peer in status.get("peers", [])]}
    parts: list[str] = []
    plain = {name: value for name, value in status.items() if not _is_nested(value)}
    parts.append(_pairs(plain, ""))
    for name, value in status.items():
        if isinstance(value, Mapping) and value:
            flat = {key: item for key, item in value.items() if not _is_nested(item)}
            inner = [_pairs(flat, "  ")] if flat else []
            for key, item in value.items():
                if _is_nested(item) and item:
                    inner += [f"  {_words(key)}", _nested(item, "    ")]
            parts += [render.heading(_words(name)), *inner] if inner else []
        elif _is_nested(value) and value:
            parts += [render.heading(_words(name)), _nested(value, "  ")]
    return "\n".join(part for part in parts if part)


def nodes_text(answer: Mapping[str, Any]) -> str:
    members = answer.get("members") or []
    if not members:
        return "no members yet: is the mesh founded? see meshnode status"
    leader = answer.get("leader")
    # which commands a node knows matters only while nodes differ
    is_mixed = len({row.get("command_version") for row in members}) > 1
    rows = [
        [
            row["name"],
            row["node_id"],
            row["tier"],
            row.get("draining") if row["status"] == "alive" and row.get("draining") else row["status"],
            "leader" if row["node_id"] == leader else row.get("standing"),
            f"{row['slots']}+{row['async_slots']}",
            row["address"].replace("auto:", "*:"),
            f"{row['software']} (commands {row['command_version']})" if is_mixed else row["software"],
            "+".join(row.get("secrets") or ["-"]),
        ]
        for row in members
    ]
    are_told_apart = len({row["name"] for row in members}) == len(members)
    return render.table(
        ["name", "id", "tier", "status", "standing", "slots", "address", "version", "secret"],
        rows,
        keep=(1, 7),
        spare=(1,) if are_told_apart else (),
    )


def rituals_text(answer: Mapping[str, Any]) -> str:
    rows = [
        [row["name"], row["version"], row["kind"], row.get("source", ""), row.get("description", "")]
        for row in answer.get("rituals") or []
    ]
    text = render.table(["name", "version", "kind", "source", "description"], rows) if rows else "no rituals"
    problems = answer.get("problems") or []
    if problems:
        lines = [f"{row.get('name')}: {row.get('reason')}" if isinstance(row, Mapping) else row for row in problems]
        text += f"\n{render.heading('Not offered')}\n{render.bullets(lines)}"
    return text


def ritual_text(ritual: Mapping[str, Any]) -> str:
    timeout_s = ritual.get("timeout_s")
    kind = "async, many share a process" if ritual["kind"] == "async" else "cpu, a process each"
    parts = [
        f"{render.paint(ritual['name'], 'bold')} {ritual['version']} ({kind}; from {ritual.get('source', '?')})",
        render.paragraphs(ritual.get("description") or "No description."),
    ]
    if timeout_s:
        parts.append(f"  An attempt may take {render.duration(timeout_s * 1000)}, unless the session says otherwise.")
    parameters = ritual.get("parameters")
    if parameters is None:
        parts.append("  Takes any parameters.")
    elif parameters:
        rows = [
            [
                row["name"],
                row.get("allowed", row.get("type")),
                "required" if row.get("required") else render.clean(row.get("default")),
                row.get("meaning", ""),
            ]
            for row in parameters
        ]
        head = ["name", "allowed", "default", "meaning"]
        parts += [render.heading("Parameters"), render.table(head, rows, indent="  ")]
    else:
        parts.append("  Takes no parameters.")
    return "\n".join(parts)


def _nested(value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return _pairs({key: _short(item) for key, item in value.items()}, indent)
    if value and all(isinstance(item, Mapping) for item in value):
        columns = list(dict.fromkeys(key for item in value for key in item))
        columns = [name for name in columns if not any(_is_nested(item.get(name)) for item in value)]
        columns = [name for name in columns if any(item.get(name) not in (None, "") for item in value)]
        rows = [[_value(name, item.get(name)) for name in columns] for item in value]
        times = [index for index, name in enumerate(columns) if name == "at"]
        return render.table([_words(name) for name in columns], rows, indent=indent, keep=times)
    return render.bullets([_short(item) for item in value], indent)


def _pairs(values: Mapping[str, Any], indent: str) -> str:
    if not values:
        return ""
    wide = max(len(_words(name)) for name in values)
    return "\n".join(
        f"{indent}{_words(name):<{wide}}  {render.status(_value(name, value))}" for name, value in values.items()
    )


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("_bytes"):
        return render.size(value)
    if isinstance(value, int | float) and name.endswith("_ms"):
        return render.duration(value)
    if isinstance(value, int | float) and name.endswith(("_s", "_s_ago", "_s_max")):
        return render.duration(value * 1000) + (" ago" if name.endswith("_ago") else "")
    if value is not None and (name == "at" or name.endswith("_at")):
        return render.local(value)
    return render.clean(value)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {render.clean(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(render.clean(item) for item in value)
    return render.clean(value)


def _words(name: str) -> str:
    """Without the unit, which stands with the value."""
    if name in UP_FOR:
        return UP_FOR[name]
    return re.sub("_(bytes|ms|s)(_ago)?$|_s(?=_max$)", "", name).replace("_", " ")


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping | list)
