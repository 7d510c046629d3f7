"""The `ritual` decorator and what it records about a function: version, kind, parameters.

`RitualDefinition.check` is run where a session is submitted, so that a mistyped parameter is refused at once and with
a text that names the parameter, what was found and what is allowed, instead of failing on some node later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

ParameterType = Literal["str", "int", "float", "bool", "list", "object"]
Kind = Literal["async", "cpu"]
RitualFunction = TypeVar("RitualFunction", bound=Callable[..., Any])

TIMEOUT_S_DEFAULT = 60.0
VERSION_CHARS_MAX = 32
CONCURRENCY_MAX = 1_000_000

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list, tuple),
    "object": (dict,),
}


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


class Parameter(NamedTuple):
    """One parameter of a ritual, as shown by `meshnode ritual show`. Limits are inclusive."""

    name: str
    type: ParameterType
    meaning: str
    default: Any = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    length_max: int | None = None

    @property
    def is_required(self) -> bool:
        return isinstance(self.default, _Required)

    def allowed(self) -> str:
        """What a value may be, for a person."""
        text: str = self.type
        if self.choices is not None:
            text += " out of " + ", ".join(repr(choice) for choice in self.choices)
        if self.minimum is not None and self.maximum is not None:
            text += f" from {_number(self.minimum)} to {_number(self.maximum)}"
        elif self.minimum is not None:
            text += f" of at least {_number(self.minimum)}"
        elif self.maximum is not None:
            text += f" of at most {_number(self.maximum)}"
        if self.length_max is not None:
            text += f", length at most {self.length_max}"
        return text

    def check(self, value: object) -> str | None:
        """None if `value` is allowed, otherwise a text that says why not."""
        if value is None and self.default is None:
            return None
        is_bool_for_number = isinstance(value, bool) and self.type != "bool"
        fits = isinstance(value, _TYPES[self.type]) and not is_bool_for_number
        if fits and isinstance(value, (int, float)) and not isinstance(value, bool):
            fits = (
                math.isfinite(value)
                and (self.minimum is None or value >= self.minimum)
                and (self.maximum is None or value <= self.maximum)
            )
        if fits and self.length_max is not None and isinstance(value, (str, list, tuple, dict)):
            fits = len(value) <= self.length_max
        if fits and self.choices is not None:
            fits = value in self.choices
        if fits:
            return None
        return f"parameter {self.name!r}: found {_shown(value)}, allowed is {self.allowed()}"


def _number(value: float) -> str:
    """Whole numbers with all their digits."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


class RitualDefinition(NamedTuple):
    """What the mesh knows about a ritual without loading its code."""

    name: str
    version: str
    kind: Kind
    description: str
    target: str
    """`module:attribute`, where a worker finds it."""
    parameters: tuple[Parameter, ...] | None = None
    """None: not declared, anything is accepted."""
    timeout_s: float = TIMEOUT_S_DEFAULT
    """Of one attempt, if the submission does not say."""
    source: str = "meshnode"
    """Which distribution brought it."""
    concurrency: int | None = None
    """So many branches of it may run at the same time in the whole mesh."""

    def check(self, parameters: Mapping[str, Any]) -> str | None:
        """None if the parameters are allowed, otherwise the first thing that is wrong with them. Never raises."""
        if self.parameters is None:
            return None
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in parameters:
            if name not in known:
                if not known:
                    return f"parameter {name!r}: ritual {self.name!r} takes no parameters"
                return f"parameter {name!r}: unknown to ritual {self.name!r}{_nearest(str(name), known)}"
        for parameter in self.parameters:
            if parameter.name in parameters:
                error = parameter.check(parameters[parameter.name])
                if error is not None:
                    return error
            elif parameter.is_required:
                return f"parameter {parameter.name!r}: missing, needed is {parameter.allowed()} ({parameter.meaning})"
        return None

    def complete(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with defaults filled in."""
        return complete(self.parameters, parameters)

    def to_json(self) -> dict[str, Any]:
        """For `ritual show` and `GET /v1/rituals`."""
        return {
            "name": self.name,
            "version": self.version,
            "kind": self.kind,
            "description": self.description,
            "timeout_s": self.timeout_s,
            "source": self.source,
            "concurrency": self.concurrency,
            "parameters": None
            if self.parameters is None
            else [
                {
                    "name": parameter.name,
                    "type": parameter.type,
                    "required": parameter.is_required,
                    "default": None if parameter.is_required else parameter.default,
                    "allowed": parameter.allowed(),
                    "meaning": parameter.meaning,
                }
                for parameter in self.parameters
            ],
        }


class Declaration(NamedTuple):
    """What the decorator leaves on the function as `__ritual__`."""

    version: str
    kind: Kind
    description: str
    parameters: tuple[Parameter, ...] | None
    timeout_s: float
    concurrency: int | None = None

    def definition(self, name: str, target: str, source: str = "meshnode") -> RitualDefinition:
        return RitualDefinition(
            name,
            self.version,
            self.kind,
            self.description,
            target,
            self.parameters,
            self.timeout_s,
            source,
            self.concurrency,
        )


@overload
def ritual(function: RitualFunction, /) -> RitualFunction: ...
@overload
def ritual(
    *,
    version: str = ...,
    parameters: Sequence[Parameter] | None = ...,
    timeout_s: float = ...,
    concurrency: int | None = ...,
) -> Callable[[RitualFunction], RitualFunction]: ...
def ritual(
    function: RitualFunction | None = None,
    /,
    *,
    version: str = "1",
    parameters: Sequence[Parameter] | None = None,
    timeout_s: float = TIMEOUT_S_DEFAULT,
    concurrency: int | None = None,
) -> RitualFunction | Callable[[RitualFunction], RitualFunction]:
    """Declare a function of one `Context` to be a ritual. `async def` is kind `async`, `def` is kind `cpu`. The first
    paragraph of the docstring is its description. Change `version` whenever the same seed would give another result.
    `concurrency`: at most so many branches of it run at the same time in the whole mesh.
    """

    def declare(target: RitualFunction) -> RitualFunction:
        description = " ".join((target.__doc__ or "").strip().split("\n\n")[0].split())
        declared = None if parameters is None else tuple(parameters)
        for parameter in declared or ():
            if not parameter.is_required and (error := parameter.check(parameter.default)) is not None:
                raise ValueError(f"the default itself is not allowed: {error}")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s: found {timeout_s!r}, allowed is a number above 0")
        if not 0 < len(version) <= VERSION_CHARS_MAX:
            raise ValueError(f"version: found {version!r}, allowed is a str of 1 to {VERSION_CHARS_MAX} characters")
        if concurrency is not None and not 1 <= concurrency <= CONCURRENCY_MAX:
            raise ValueError(f"concurrency: found {concurrency!r}, allowed is 1 to {CONCURRENCY_MAX}")
        declaration = Declaration(version, kind_of(target), description, declared, timeout_s, concurrency)
        target.__ritual__ = declaration  # type: ignore[attr-defined]
        return target

    return declare if function is None else declare(function)


def kind_of(function: Callable[..., Any]) -> Kind:
    """`async` for a coroutine function. By its code flag, because `inspect` would double a worker's start-up time."""
    code = getattr(function, "__code__", None)
    return "async" if code is not None and code.co_flags & 0x80 else "cpu"  # 0x80: inspect.CO_COROUTINE


def declaration_of(function: object) -> Declaration:
    """Of a decorated function; an undecorated one gets the defaults. TypeError if it cannot be a ritual at all."""
    declaration = getattr(function, "__ritual__", None)
    if isinstance(declaration, Declaration):
        return declaration
    if not callable(function):
        raise TypeError(f"a ritual must be a function of one Context, found {type(function).__name__}")
    return Declaration("0", kind_of(function), "", None, TIMEOUT_S_DEFAULT)


def complete(parameters: tuple[Parameter, ...] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the defaults filled in."""
    completed = {p.name: p.default for p in parameters or () if not p.is_required}
    completed.update(given)
    return completed


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _nearest(name: str, known: Mapping[str, Parameter]) -> str:
    import difflib  # only on the error path, and never in a worker

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(sorted(known))}"
