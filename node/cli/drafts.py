"""Makes the body of a submission from a file or from arguments.

Tasks and parameters are checked by the node that is asked; here only what it could not know: the file, the form of
`--param`, and the ritual's own `branches()`.
"""

import importlib
import inspect
import json
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from node.cli.exits import CommandError, Exit

FILE_BYTES_MAX = 4 * 1024 * 1024
"""More than a node accepts, so that the node's own error, which says what to do, is shown."""


def build(arguments: Namespace) -> dict[str, Any]:
    """The body, always with an id, so that it may be sent to several nodes. Raises CommandError."""
    given = [arguments.file is not None, bool(arguments.branches_from), bool(arguments.ritual or arguments.task)]
    if sum(given) != 1:
        raise CommandError(
            "one source of branches is needed: FILE, --ritual with --task, or --branches-from",
            Exit.USAGE,
            "see meshnode session submit --help",
        )
    if arguments.file is not None:
        body = _from_file(arguments.file)
    elif arguments.branches_from:
        body = _from_ritual(arguments.branches_from[0], arguments.branches_from[1:])
    else:
        body = _from_tasks(arguments)
    if arguments.param and not arguments.task:
        extra = _parameters(arguments.param)
        for branch in body.get("branches") or []:
            if isinstance(branch, dict):
                branch["parameters"] = {**(branch.get("parameters") or {}), **extra}
    if arguments.thought is not None:
        body["thought"] = arguments.thought
    if arguments.id is not None:
        body["id"] = arguments.id
    for name in ("priority", "concurrency", "node", "tier", "spread", "ritual_version"):
        if getattr(arguments, name) is not None:
            body[name] = getattr(arguments, name)
    if arguments.no_speculation:
        body["speculation"] = False
    for name in ("require", "prefer"):
        if getattr(arguments, name):
            body[name] = {**(body.get(name) or {}), **_labels(name, getattr(arguments, name))}
    if arguments.attempts is not None:
        body["attempts_max"] = arguments.attempts
    if arguments.branch_timeout is not None:
        body["timeout_s"] = arguments.branch_timeout
    body.setdefault("id", str(uuid.uuid4()))
    return body


def _from_file(name: str) -> dict[str, Any]:
    where = "standard input" if name == "-" else name
    try:
        if name == "-":
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        body = json.loads(data)
    except OSError as error:
        raise CommandError(f"{where} cannot be read: {error.strerror}", Exit.USAGE) from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{where} is not JSON: {error}", Exit.USAGE, "check it with `jq .`") from None
    if not isinstance(body, dict):
        raise CommandError(f"{where}: a session must be a JSON object", Exit.USAGE)
    return body


def _from_tasks(arguments: Namespace) -> dict[str, Any]:
    if not arguments.ritual or not arguments.task:
        missing = "--task" if arguments.ritual else "--ritual"
        raise CommandError(f"{missing} is missing: --ritual and --task go together", Exit.USAGE)
    parameters = _parameters(arguments.param or [])
    return {
        "thought": f"{arguments.ritual}: {arguments.task[0]}",
        "ritual": arguments.ritual,
        "branches": [{"task": task, "parameters": parameters} for task in arguments.task],
    }


def _from_ritual(name: str, values: Sequence[str]) -> dict[str, Any]:
    """The branches that a ritual proposes: `branches(*values)` beside the ritual's function."""
    from node.rituals.registry import Registry

    registry = Registry.load()
    definition = registry.get(name)
    if definition is None:
        raise CommandError(f"there is no ritual {name!r} here", Exit.NOT_FOUND, f"known: {', '.join(registry)}")
    maker = getattr(importlib.import_module(definition.target.partition(":")[0]), "branches", None)
    if maker is None:
        raise CommandError(f"the ritual {name!r} proposes no branches", Exit.USAGE, "use --ritual and --task")
    try:
        branches = [_plain(branch) for branch in maker(*_typed(maker, values))]
    except TypeError as error:
        raise CommandError(f"--branches-from {name}: {error}", Exit.USAGE) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"--branches-from {name}: {error}", Exit.FAILED) from None
    if not branches:
        raise CommandError(f"--branches-from {name}: nothing found that could become a branch", Exit.FAILED)
    return {"thought": f"{name} {' '.join(values)}".strip(), "ritual": name, "branches": branches}


def _typed(maker: Callable[..., Any], values: Sequence[str]) -> list[Any]:
    """The words of the command line as the types that the function asks for."""
    takes: list[inspect.Parameter] = []
    for parameter in inspect.signature(maker, eval_str=True).parameters.values():
        repeat = len(values) if parameter.kind is parameter.VAR_POSITIONAL else 1
        if parameter.kind is not parameter.KEYWORD_ONLY:
            takes += [parameter] * repeat
    if len(values) > len(takes):
        raise TypeError(f"{len(takes)} arguments at most, found {len(values)}")
    typed: list[Any] = []
    for parameter, value in zip(takes, values, strict=False):
        wanted = {int, float, Path} & {parameter.annotation, *get_args(parameter.annotation)}
        try:
            typed.append(wanted.pop()(value) if len(wanted) == 1 else value)
        except ValueError:
            raise TypeError(f"{parameter.name}: found {value!r}, allowed: a number") from None
    return typed


def _plain(branch: Any) -> dict[str, Any]:
    """A branch as a dict, whether the ritual gave one, a named tuple or a pair of task and parameters."""
    if isinstance(branch, dict):
        return dict(branch)
    if hasattr(branch, "_asdict"):
        return dict(branch._asdict())
    task, parameters = branch
    return {"task": task, "parameters": parameters}


def _labels(option: str, words: Sequence[str]) -> dict[str, Any]:
    """`LABEL=VALUE`, `LABEL=A,B` (one of these), `LABEL!=VALUE`, `LABEL` (any value), `!LABEL` (not there)."""
    found: dict[str, Any] = {}
    for word in words:
        wanted: Any
        label, separator, text = word.partition("=")
        values = text.split(",")
        if separator and label.endswith("!"):
            label, wanted = label[:-1], {"not_in": values}
        elif separator:
            wanted = values if len(values) > 1 else text
        else:
            label, wanted = word.removeprefix("!"), not word.startswith("!")
        if not label or (separator and not text):
            raise CommandError(
                f"--{option}: found {word!r}, allowed: LABEL=VALUE, LABEL=A,B, LABEL!=VALUE, LABEL or !LABEL",
                Exit.USAGE,
            )
        found[label] = wanted
    return found


def _parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value`; a value that is JSON is taken as JSON, anything else as text."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise CommandError(f"--param: found {pair!r}, allowed: NAME=VALUE", Exit.USAGE)
        try:
            parameters[name] = json.loads(text)
        except ValueError:
            parameters[name] = text
    return parameters
