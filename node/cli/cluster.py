"""`meshnode status`, `nodes`, `ritual list`, `ritual show`: what one node says about itself and the mesh."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from node.cli import render
from node.cli.api import Api
from node.cli.exits import Exit


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
    rows = [
        [
            row["name"],
            row["node_id"],
            row["tier"] + (" (leader)" if row["node_id"] == leader else ""),
            row.get("draining") if row["status"] == "alive" and row.get("draining") else row["status"],
            row.get("standing"),
            f"{row['slots']}+{row['async_slots']}",
            row["address"],
            row["software"],
            "+".join(row.get("secrets") or ["-"]),
        ]
        for row in members
    ]
    return render.table(
        ["name", "id", "tier", "status", "standing", "slots", "address", "software", "secret"], rows, keep=(1, 7)
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
        return render.table(
            [_words(name) for name in columns], [[item.get(name) for name in columns] for item in value], indent=indent
        )
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
    return render.clean(value)


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {render.clean(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(render.clean(item) for item in value)
    return render.clean(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping | list)
