"""Sets up structlog for a process: lines a person can follow on a terminal, JSON lines for machines otherwise.

Events are constant snake_case names with facts as fields; the console shows them as words. Everything goes to standard
error, so that standard output stays free for answers. The standard library's loggers (aiohttp, zeroconf, asyncio,
pysyncobj) come through the same door, from `warning` on.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import msgspec
import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

FIELD_CHARACTERS_MAX = 500
"""Longest field on the console; what a peer sends must not flood a terminal."""

_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"


def configure(level: str = "info", format: str = "auto", *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Configures logging for the whole process. `level` and `format` are those of the section [log]; the stream
    defaults to standard error. May be called again."""
    out = stream if stream is not None else sys.stderr
    is_terminal = out.isatty()
    as_console = format == "console" or (format == "auto" and is_terminal)
    has_colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    renderer: structlog.types.Processor = Console(has_colour) if as_console else render_json
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_time,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Unfailing(out))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge())
    root.setLevel(max(LEVELS[level], logging.WARNING))


class _Unfailing:
    """A stream whose log lines are lost when it takes none (a full disk, a reader that is gone): what they tell of goes
    on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._out.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._out.flush()


class Console:
    """Renders `12:30:01.234 info  session completed  session_id=...`."""

    def __init__(self, has_colour: bool) -> None:
        self._has_colour = has_colour

    def __call__(self, logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
        at = datetime.fromisoformat(entry.pop("time")).astimezone()
        level = str(entry.pop("level"))
        words = _printable(str(entry.pop("event"))).replace("_", " ")
        story = entry.pop("exception", None)
        fields = "  ".join(f"{name}={_field(value)}" for name, value in entry.items())
        level_text = f"{_COLOURS.get(level, '')}{level:<7}{_RESET}" if self._has_colour else f"{level:<7}"
        line = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {level_text} {words:<32} {fields}".rstrip()
        return f"{line}\n{story}" if story else line


def render_json(logger: object, method: str, entry: MutableMapping[str, Any]) -> str:
    """One JSON object a line: `time`, `level`, `event`, then the fields."""
    head = {name: entry.pop(name) for name in ("time", "level", "event")}
    return msgspec.json.encode({**head, **entry}, enc_hook=str).decode()


def _add_time(logger: object, method: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    entry["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    return entry


def _field(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    text = _printable(text[:FIELD_CHARACTERS_MAX])
    return f'"{text}"' if " " in text or not text else text


def _printable(text: str) -> str:
    """Control characters made visible: a peer's text must not steer the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class _Bridge(logging.Handler):
    """Passes the standard library's records on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        if record.levelno >= logging.ERROR:
            log.error("library_error", **fields)
        else:
            log.warning("library_warning", **fields)
