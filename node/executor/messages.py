"""Turns an attempt into the messages that a worker is sent."""

from collections.abc import Iterator
from typing import Any

import msgspec

from node.executor import limits, protocol
from node.executor.work import Work

_encode_input = msgspec.msgpack.Encoder().encode


def run_message(number: int, work: Work) -> list[Any]:
    return [
        protocol.RUN,
        number,
        work.ritual,
        work.session_id,
        work.branch_index,
        work.attempt,
        work.task,
        work.parameters,
        work.thought,
        work.seed,
        work.inputs is not None,
        work.inputs_trimmed,
    ]


def input_messages(number: int, work: Work) -> Iterator[list[Any]]:
    """For an attempt with inputs: those in pieces, then the RUN message."""
    chunk: list[Any] = []
    chunk_bytes = 0
    for branch in work.inputs or ():
        raw = _encode_input(branch)
        chunk_bytes += len(raw)
        chunk.append(msgspec.Raw(raw))
        if chunk_bytes >= limits.INPUTS_CHUNK_BYTES:
            yield [protocol.INPUTS, number, chunk]
            chunk, chunk_bytes = [], 0
    yield [protocol.INPUTS, number, chunk]
    yield run_message(number, work)
