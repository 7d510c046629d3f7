"""Inside a worker: loading a ritual, making its context, and turning its end into a message."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from node.executor import protocol
from node.executor.knowledge import BadResult, encode_knowledge
from node.executor.limits import MESSAGE_CHARS_MAX
from node.rituals.context import BranchInput, Context, Failure, Knowledge, Reporter
from node.rituals.definition import Parameter, complete, declaration_of


class LoadedRitual(NamedTuple):
    version: str
    kind: str
    function: Callable[[Context], Any]
    parameters: tuple[Parameter, ...] | None

    def context(self, message: list[Any], inputs: list[Any], reporter: Reporter) -> Context:
        """From a RUN message and the inputs that came before it."""
        _, key, _, session_id, branch_index, attempt, task, parameters, thought, seed, has_inputs, trimmed = message
        return Context(
            task=task,
            parameters=complete(self.parameters, parameters),
            thought=thought,
            session_id=session_id,
            branch_index=branch_index,
            attempt=attempt,
            seed=seed,
            inputs=[branch_input(fields) for fields in inputs] if has_inputs else None,
            inputs_trimmed=trimmed,
            reporter=reporter,
            key=key,
        )


class Rituals:
    """Loads rituals by name, once each."""

    def __init__(self, targets: dict[str, str]) -> None:
        self._targets = targets
        self._loaded: dict[str, LoadedRitual] = {}

    def load(self, name: str) -> LoadedRitual:
        """Raises whatever the import raises, as the failure of the attempt."""
        loaded = self._loaded.get(name)
        if loaded is None:
            module_name, _, attribute = self._targets[name].partition(":")
            value: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                value = getattr(value, part)
            declaration = declaration_of(value)
            loaded = LoadedRitual(declaration.version, declaration.kind, value, declaration.parameters)
            self._loaded[name] = loaded
        return loaded

    def preload(self, name: str) -> None:
        """So that the first attempt is quick. An import that fails is told to the attempt that needs it."""
        try:
            self.load(name)
        except Exception as error:
            print(f"cannot load ritual {name}: {error}", file=sys.__stderr__)


def branch_input(fields: list[Any]) -> BranchInput:
    """From the array of its fields; a later daemon may send more of them."""
    fields = fields[: len(BranchInput._fields)]
    if fields[8] is not None:
        fields[8] = Knowledge(*fields[8][: len(Knowledge._fields)])
    if fields[9] is not None:
        fields[9] = Failure(*fields[9][: len(Failure._fields)])
    return BranchInput(*fields)


def finished(key: int, started: float, version: str, value: object, bytes_max: int) -> list[Any]:
    """The DONE message of a returned value, or FAILED if it is not knowledge."""
    try:
        knowledge = encode_knowledge(value, bytes_max)
    except BadResult as error:
        return [protocol.FAILED, key, _since(started), version, error.code, str(error)[:MESSAGE_CHARS_MAX]]
    return [protocol.DONE, key, _since(started), version, knowledge]


def failure_of(key: int, started: float, version: str, error: BaseException) -> list[Any]:
    """The FAILED message of an exception. Never raises, whatever the exception's own methods do."""
    if isinstance(error, MemoryError):
        code = "out_of_memory"
        message = f"the ritual needed more memory than its worker may use{_where(error)}"
    elif isinstance(error, SystemExit):
        code = "ritual_error"
        message = f"the ritual called sys.exit({error.code!r}){_where(error)}"
    else:
        code = "ritual_error"
        try:
            text = str(error)
        except Exception:
            text = "(its text cannot be made)"
        message = f"{type(error).__name__}: {text}"[: MESSAGE_CHARS_MAX - 200] + _where(error)
    message = message[:MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode()
    return [protocol.FAILED, key, _since(started), version, code, message]


def _since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)


def _where(error: BaseException) -> str:
    """` (file:line, in function)` of the innermost frame. Without `traceback`, which would read source files."""
    step = error.__traceback__
    if step is None:
        return ""
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    return f" ({code.co_filename}:{step.tb_lineno}, in {code.co_name})"
