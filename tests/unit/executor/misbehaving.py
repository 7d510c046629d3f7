"""Rituals that do what rituals must not do; executed only in worker processes."""

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from typing import Any

from node.rituals import Context, Knowledge, Parameter, ritual


def raise_error(context: Context) -> None:
    raise ValueError("the figures do not add up")


async def raise_error_async(context: Context) -> None:
    raise ValueError("the figures do not add up")


class _Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def raise_nasty(context: Context) -> None:
    raise _Nasty


def call_exit(context: Context) -> None:
    sys.exit(3)


async def call_exit_async(context: Context) -> None:
    sys.exit(3)


async def cancel_itself(context: Context) -> None:
    raise asyncio.CancelledError


def leave(context: Context) -> None:
    print("about to leave", file=sys.stderr)
    os._exit(17)


async def leave_async(context: Context) -> None:
    await asyncio.sleep(0.05)  # so that neighbours have started
    os._exit(17)


def segfault(context: Context) -> None:
    ctypes.string_at(0)


def recurse(context: Context) -> None:
    recurse(context)


def devour(context: Context) -> int:
    hoard = []
    while True:
        hoard.append(bytearray(16 * 1024 * 1024))


def litter(context: Context) -> None:
    with open("litter", "wb") as file:
        file.write(bytes(1024))
    context.log(os.getcwd())
    while True:
        time.sleep(0.01)


def hang(context: Context) -> None:
    context.progress(0.5, "hanging")
    while True:
        time.sleep(0.01)


async def hang_the_loop(context: Context) -> None:
    time.sleep(3600)  # noqa: ASYNC251 - that is its crime


async def ignore_cancellation(context: Context) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            context.log("no")


async def sleep_long(context: Context) -> None:
    context.progress(0.1, "sleeping")
    await asyncio.sleep(3600)


def return_value(context: Context) -> Any:
    """Returns whatever `kind` says."""
    match context.task:
        case "object":
            return object()
        case "nan":
            return {"patterns": [], "result": float("nan")}
        case "set":
            return {1, 2}
        case "int_key":
            return {"result": {1: 2}}
        case "cycle":
            cycle: list[Any] = []
            cycle += [cycle, cycle]
            return cycle
        case "huge":
            return "x" * 100_000
        case "huge_int":
            return 2**64
        case "surrogate":
            return "\ud800"
        case "novelty":
            return Knowledge(novelty=3.0)
        case "mixed":
            return {"patterns": [], "verdict": 1}
        case "lambda":
            return Knowledge(result=lambda: None)
        case "none":
            return None
        case "plain":
            return {"verdict": "good"}
        case "fields":
            return {"summary": "short", "score": 1}
        case _:
            raise AssertionError(context.task)


def chatter(context: Context) -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    context.log("to the log")
    os.write(1, b"raw bytes on descriptor 1\n")
    subprocess.run(["echo", "a child speaks"], check=True)
    for number in range(5_000):
        print("line", number)
    return "done"


async def chatter_async(context: Context) -> str:
    print("hello from", context.task)
    context.progress(0.25, context.task)
    await asyncio.sleep(0)
    return context.task


def write_into_channel(context: Context) -> None:
    _write_everywhere(b"\xff\xff\xff\xff garbage")


def write_no_text_into_channel(context: Context) -> None:
    """A frame of one message, a text that is no UTF-8."""
    _write_everywhere(b"\x00\x00\x00\x04\x91\x91\xa1\xff")


def _write_everywhere(data: bytes) -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            continue
    time.sleep(3600)


def ask(context: Context) -> dict[str, int]:
    return {"result": context.seen(["known", "unknown"])}  # type: ignore[dict-item]


async def ask_async(context: Context) -> Any:
    return Knowledge(result=await context.seen_async(["known", "unknown"]))


def start_child(context: Context) -> Any:
    child = subprocess.Popen(["sleep", "3600"])
    context.log(f"child {child.pid}")
    while True:
        time.sleep(0.01)


@ritual(parameters=[Parameter("top", "int", "how many", default=3)])
async def count_inputs(context: Context) -> Any:
    assert context.inputs is not None
    return {
        "count": len(context.inputs),
        "phrases": sum(len(branch.knowledge.patterns) for branch in context.inputs if branch.knowledge is not None),
        "failed": [branch.failure.code for branch in context.inputs if branch.failure is not None],
        "top": context.parameters["top"],
        "trimmed": context.inputs_trimmed,
    }
