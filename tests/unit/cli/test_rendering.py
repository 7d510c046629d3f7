"""What people see: progress, tables, durations, events, log lines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from node import logs
from node.cli import render
from node.cli.events import ServerEvent, parse
from node.cli.progress import LINE_PERIOD_S, Counts, ProgressLine, Rate, describe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def counts(done: int = 33, failed: int = 2, status: str = "processing", running: int = 8) -> Counts:
    return Counts(status=status, total=100, completed=done - failed, failed=failed, cancelled=0, processing=running)


def test_progress_says_done_running_failed_rate_and_what_is_left() -> None:
    text = describe(counts(), 10.0, 120, 3.3)
    assert text == "[#######-----------------] 33/100  8 running  2 failed  10.0/s  6.7 s left  3.3 s"


def test_progress_of_the_consolidation_and_the_end() -> None:
    assert "100/100  consolidating" in describe(counts(100, 0), 10.0, 120, 3.0)
    assert "100/100  completed" in describe(counts(100, 0, "completed"), None, 120, 3.0)


def test_progress_fits_the_terminal() -> None:
    assert len(describe(counts(), 10.0, 40, 3.0)) == 39


def test_rate_looks_back_a_window() -> None:
    rate = Rate()
    rate.add(0.0, 0)
    assert rate.per_second is None
    for second in range(1, 41):
        rate.add(float(second), 100 + second)
    assert rate.per_second == pytest.approx(1.0)


def test_a_terminal_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    line = ProgressLine(out, 0.0)
    line.show(counts(1, 0), 0.0)
    line.show(counts(2, 0), 0.01)
    line.show(counts(3, 0), 1.0)
    line.finish(counts(100, 0, "completed"), 2.0)
    assert out.getvalue().count("\r\x1b[K") == 3
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["file", "dumb"])
def test_elsewhere_a_line_now_and_then(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    line = ProgressLine(out, 0.0)
    for tenth in range(int(LINE_PERIOD_S * 10) + 1):
        line.show(counts(tenth, 0), tenth / 10)
    assert len(out.getvalue().splitlines()) == 2
    assert "\x1b" not in out.getvalue()


def test_tables_are_aligned_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = render.table(["name", "note"], [["ann", "x" * 100], ["benjamin", None]], right=(0,))
    assert text.splitlines() == ["    name  note", "     ann  " + "x" * 27 + "...", "benjamin  -"]


def test_long_findings_hang_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/srv/" + "x" * 50
    assert render.hanging(f"libraries: {'lmdb 3.0.0, ' * 3}{path}", indent="  ").splitlines() == [
        "  libraries: lmdb 3.0.0, lmdb 3.0.0,", "  lmdb 3.0.0,", f"  {path}",
    ]  # fmt: skip


def test_ids_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = render.table(["id", "a", "b"], [["i" * 36, "x" * 30, "y" * 30]], keep=(0,))
    assert text.splitlines()[1] == f"{'i' * 36}  {'x' * 9}...  {'y' * 9}..."


def test_what_can_be_spared_is_left_out_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ["ann", "i" * 26, "x" * 10]
    monkeypatch.setenv("COLUMNS", "44")
    assert render.table(["name", "id", "a"], [row], spare=(1,)).splitlines()[1] == f"ann   {'i' * 26}  {'x' * 10}"
    monkeypatch.setenv("COLUMNS", "43")
    lines = render.table(["name", "id", "a"], [row], spare=(1,)).splitlines()
    assert lines == ["name  a", f"ann   {'x' * 10}"]


@pytest.mark.parametrize(("count", "expected"), [(0, "0 branches"), (1, "1 branch"), (2, "2 branches")])
def test_counts(count: int, expected: str) -> None:
    assert render.counted(count, "branch") == expected


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (None, "-"), (0, "0 ms"), (0.42, "0.4 ms"), (350, "350 ms"), (120_000, "2 min"), (3_600_000, "1 h"),
        (4_200, "4.2 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min"),
        (273_600_000, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations(milliseconds: int | None, expected: str) -> None:
    assert render.duration(milliseconds) == expected


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert render.clean("a\x1b[31mb\nc") == "a?[31mb c"
    assert render.paragraphs("one\x07\ntwo") == "  one?\n  two"


def test_colour_only_on_a_terminal_and_never_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert render.has_colour(Terminal())
    assert not render.has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.has_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not render.has_colour(Terminal())


def test_events_are_parsed() -> None:
    lines = (
        b"retry: 1000\nid: 3.0\n: here\n\nid: 4.1\nevent: x\ndata: a\ndata: b\n\n: still here\n\nid: 5\ndata: lost\n"
    )
    assert list(parse(io.BytesIO(lines))) == [ServerEvent("3.0", "", ""), ServerEvent("4.1", "x", "a\nb")]


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
def test_log_lines_for_machines() -> None:
    out = io.StringIO()
    logs.configure("info", "auto", stream=out)
    log = structlog.get_logger()
    log.debug("unseen")
    log.info("session_completed", session_id="s", took_s=1.25, odd=object)
    logging.getLogger("zeroconf").warning("it said %s", "this")
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert list(first)[:3] == ["time", "level", "event"]
    assert (first["event"], first["took_s"], first["session_id"]) == ("session_completed", 1.25, "s")
    assert (second["event"], second["logger"], second["message"]) == ("library_warning", "zeroconf", "it said this")


@pytest.mark.usefixtures("_restored_logging")
def test_log_lines_for_people() -> None:
    out = io.StringIO()
    logs.configure("info", "console", stream=out)
    log = structlog.get_logger()
    log.warning("peer_refused", reason="wrong secret", text="a\x1b[2Jb")
    try:
        raise ValueError("oops")
    except ValueError:
        log.exception("failed")
    line, *rest = out.getvalue().splitlines()
    assert line[13:] == 'warning peer refused                     reason="wrong secret"  text=a\\x1b[2Jb'
    assert rest[-1] == "ValueError: oops"
