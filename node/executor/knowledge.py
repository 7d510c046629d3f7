"""Turns what a ritual returned into the bytes of a `Knowledge` row, or says why it cannot be one.

Runs in the worker, where a bad result costs only its own attempt. The encoding is that of `consensus.state.rows`
(an array of the row's fields); the daemon decodes it once, typed.
"""

import math

from node.executor.limits import JSON_DEPTH_MAX
from node.executor.packing import pack
from node.rituals.context import Knowledge

_INT_MIN = -(2**63)
_INT_MAX = 2**63 - 1
_FIELDS = frozenset(Knowledge._fields)


class BadResult(ValueError):
    """Code and message are for a person: the author of the ritual."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_knowledge(value: object, bytes_max: int) -> bytes:
    """Encode a ritual's return value. BadResult (`invalid_result`, `result_too_large`) says what to change."""
    knowledge = as_knowledge(value, bytes_max)
    try:
        packed = pack(knowledge)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError) as error:
        raise BadResult("invalid_result", f"the result cannot be encoded: {error}") from error
    if len(packed) > bytes_max:
        raise BadResult(
            "result_too_large",
            f"the result takes {len(packed)} bytes, allowed are {bytes_max}; return a summary instead",
        )
    return packed


def as_knowledge(value: object, bytes_max: int) -> Knowledge:
    """The checked `Knowledge` that `value` stands for."""
    if value is None:
        return Knowledge()
    if type(value) is dict and value:
        fields = value.keys() & _FIELDS
        if fields == value.keys():
            value = Knowledge(**value)
        elif fields:
            others = ", ".join(sorted(repr(key) for key in value.keys() - _FIELDS))
            raise BadResult(
                "invalid_result",
                f"the result mixes fields of Knowledge with others ({others}); put those into 'result'",
            )
    if not isinstance(value, Knowledge):
        value = Knowledge(result=value)
    if value.result is not None:
        check_json(value.result, "result", bytes_max)  # a value takes at least a byte
    return Knowledge(
        _strings(value.patterns, "patterns"),
        _pairs(value.connections),
        _number(value.novelty, "novelty", 0.0, 1.0),
        None if value.score is None else _number(value.score, "score", -math.inf, math.inf),
        _string(value.summary, "summary"),
        value.result,
    )


def check_json(value: object, where: str, values_max: int) -> None:
    """BadResult unless `value` is None, bool, int of 64 bits, finite float, str, list or tuple of such, or dict with
    str keys, nested at most `JSON_DEPTH_MAX` deep and of at most `values_max` values. Does not recurse; a cycle
    ends at the caps.
    """
    stack: list[tuple[object, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        values_max -= 1
        if values_max < 0:
            raise BadResult("result_too_large", f"{where} holds too many values; return a summary instead")
        kind = type(item)
        if kind is str or kind is bool or item is None:
            if kind is str:
                _string(item, where)
        elif kind is int:
            if not _INT_MIN <= item <= _INT_MAX:  # type: ignore[operator]
                raise BadResult("invalid_result", f"{where} holds an int that does not fit 64 bits")
        elif kind is float:
            if not math.isfinite(item):  # type: ignore[arg-type]
                raise BadResult("invalid_result", f"{where} holds {item!r}; only finite numbers are allowed")
        elif depth >= JSON_DEPTH_MAX:
            raise BadResult("invalid_result", f"{where} is nested deeper than {JSON_DEPTH_MAX} levels or holds itself")
        elif kind is list or kind is tuple:
            stack.extend((inner, depth + 1) for inner in item)  # type: ignore[attr-defined]
        elif kind is dict:
            for key, inner in item.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    raise BadResult(
                        "invalid_result", f"{where} holds a dict with a key of type {type(key).__name__}; use str"
                    )
                _string(key, where)
                stack.append((inner, depth + 1))
        else:
            raise BadResult(
                "invalid_result",
                f"{where} holds a value of type {kind.__name__}; allowed are None, bool, int, float, str, list, dict",
            )


def _string(value: object, where: str) -> str:
    if type(value) is not str:
        raise BadResult("invalid_result", f"{where} must be a str, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadResult("invalid_result", f"{where} holds a str with lone surrogates, which is not text") from None
    return value


def _strings(value: object, where: str) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise BadResult("invalid_result", f"{where} must be a list of str, found {type(value).__name__}")
    return [_string(item, where) for item in value]


def _pairs(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, (list, tuple)):
        raise BadResult("invalid_result", f"connections must be a list of pairs, found {type(value).__name__}")
    pairs = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadResult("invalid_result", "connections must be pairs (concept, concept)")
        pairs.append((_string(pair[0], "connections"), _string(pair[1], "connections")))
    return pairs


def _number(value: object, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadResult("invalid_result", f"{where} must be a finite number, found {value!r}")
    if not low <= value <= high:
        raise BadResult("invalid_result", f"{where} must be from {low:g} to {high:g}, found {value:g}")
    return float(value)
