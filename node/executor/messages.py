"""Turns an attempt into the messages that a worker is sent."""

from collections.abc import Iterator
from typing import Any

import msgspec

from node.executor import limits, protocol
from node.executor.work import BranchInput, Work

_encode_input = msgspec.msgpack.Encoder().encode


def run_message(number: int, work: Work, *, is_trimmed: bool) -> list[Any]:
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
        is_trimmed,
    ]


def input_messages(number: int, work: Work) -> Iterator[list[Any]]:
    """For an attempt with inputs: those in pieces, then the RUN message."""
    chunk: list[Any] = []
    chunk_bytes = total_bytes = 0
    is_trimmed = False
    for branch in work.inputs or ():
        raw = _encode_input(branch)
        if total_bytes + len(raw) > limits.INPUTS_BYTES_MAX and branch.knowledge is not None:
            is_trimmed = True
            raw = _encode_input(_without_result(branch))
        total_bytes += len(raw)
        chunk_bytes += len(raw)
        chunk.append(msgspec.Raw(raw))
        if chunk_bytes >= limits.INPUTS_CHUNK_BYTES:
            yield [protocol.INPUTS, number, chunk]
            chunk, chunk_bytes = [], 0
    yield [protocol.INPUTS, number, chunk]
    yield run_message(number, work, is_trimmed=is_trimmed)


def _without_result(branch: BranchInput) -> BranchInput:
    assert branch.knowledge is not None
    knowledge = msgspec.structs.replace(branch.knowledge, result=None)
    return msgspec.structs.replace(branch, knowledge=knowledge)
