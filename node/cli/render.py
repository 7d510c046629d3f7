"""Text for people: tables, wrapped paragraphs, durations, colour only where a terminal shows it."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}
_STATUS_COLOURS = {
    "completed": "green",
    "alive": "green",
    "up": "green",
    "ok": "green",
    "processing": "blue",
    "connecting": "yellow",
    "pending": "yellow",
    "warn": "yellow",
    "cancelled": "yellow",
    "left": "yellow",
    "failed": "red",
    "dead": "red",
    "suspect": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "leaving": "yellow",
    "down": "red",
    "fail": "red",
}

COLUMN_CELLS_MIN = 12
"""A column is not cut to less; rather the lines get too long."""


def can_redraw(stream: TextIO) -> bool:
    """Whether it is a terminal that understands escape sequences: an editor's or a serial one is `dumb`."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO | None = None) -> bool:
    """On a terminal, unless NO_COLOR is set (no-color.org)."""
    return can_redraw(stream or sys.stdout) and not os.environ.get("NO_COLOR")


def paint(text: str, *styles: str, stream: TextIO | None = None) -> str:
    if not styles or not has_colour(stream):
        return text
    return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


def status(word: str) -> str:
    """A status word in its colour."""
    colour = _STATUS_COLOURS.get(word.strip())
    return paint(word, colour) if colour else word


def width() -> int:
    return max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    indent: str = "",
    right: Sequence[int] = (),
    keep: Sequence[int] = (),
    spare: Sequence[int] = (),
) -> str:
    """Aligned columns under a head; the widest columns are cut so that lines fit the terminal, but never those in
    `keep` (ids are useless when cut). `right` names the columns that are aligned to the right, `spare` those that are
    left out, the first first, while lines would not fit uncut."""
    texts = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *texts, strict=True)]
    columns = list(range(len(head)))

    def excess() -> int:
        return len(indent) + sum(widths[column] for column in columns) + 2 * (len(columns) - 1) - width()

    for column in spare:
        if excess() > 0:
            columns.remove(column)
    flexible = [column for column in columns if column not in keep]
    while excess() > 0 and flexible:
        widest = max(flexible, key=widths.__getitem__)
        if widths[widest] <= COLUMN_CELLS_MIN:
            break
        widths[widest] -= 1

    def line(cells: Sequence[str], is_head: bool) -> str:
        parts = []
        for column in columns:
            cell, wide = cells[column], widths[column]
            text = cell if len(cell) <= wide else f"{cell[: wide - 3]}..."
            text = text.rjust(wide) if column in right else text.ljust(wide)
            parts.append(paint(text, "bold") if is_head else status(text))
        return indent + "  ".join(parts).rstrip()

    return "\n".join([line(head, True), *(line(row, False) for row in texts)])


def paragraphs(text: str, indent: str = "  ") -> str:
    """Wrapped to the terminal, line breaks kept."""
    wrapped = [
        textwrap.fill(line, width() - 2, initial_indent=indent, subsequent_indent=indent) if line.strip() else ""
        for line in clean(text, keep_lines=True).splitlines()
    ]
    return "\n".join(wrapped)


def hanging(text: str, indent: str) -> str:
    """Wrapped to the terminal; what is long (a path) is not broken."""
    return textwrap.fill(
        text, width(), initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def bullets(lines: Iterable[object], indent: str = "  ") -> str:
    return "\n".join(
        textwrap.fill(clean(line), width() - 2, initial_indent=f"{indent}- ", subsequent_indent=f"{indent}  ")
        for line in lines
    )


def counted(count: int, noun: str) -> str:
    """`1 branch`, `2 branches`."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{ending}"


def heading(text: str) -> str:
    return "\n" + paint(text, "bold")


def clean(value: object, *, keep_lines: bool = False) -> str:
    """As text without control characters: what a ritual returned must not steer the terminal."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    if not keep_lines:
        text = " ".join(text.split())
    return "".join(c if c.isprintable() or (keep_lines and c == "\n") else "?" for c in text)


def duration(milliseconds: float | None) -> str:
    """`350 ms`, `4.2 s`, `3 min`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if milliseconds is None:
        return "-"
    seconds = milliseconds / 1000
    if seconds < 1:
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 10 and milliseconds % 1 else f"{milliseconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        whole, rest = f"{minutes} min", f"{int(seconds % 60)} s"
    elif minutes < 48 * 60:
        whole, rest = f"{minutes // 60} h", f"{minutes % 60} min"
    else:
        whole, rest = f"{minutes // 1440} d", f"{minutes // 60 % 24} h"
    return whole if rest.startswith("0 ") else f"{whole} {rest}"


def local(text: object) -> str:
    """An ISO 8601 time as local time."""
    if not isinstance(text, str):
        return "-"
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return clean(text)


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
