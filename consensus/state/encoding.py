"""Commands as bytes: one version byte (`versions`), then a MessagePack array. Also every check that needs nothing else.

`decode_command` is total: it returns a command whose every field is in range, or raises `CommandError`; so nothing
behind it has to doubt ids, times or sizes of the command itself. Single items of a batch (assignments, outcomes,
requeues) are judged later and one by one: a bad one must not take the others with it.
"""

import re
from math import isfinite
from typing import assert_never

import msgspec

from consensus.errors import UpgradeRequired
from consensus.state.commands import (
    AnyCommand,
    AssignBranches,
    BranchSpec,
    Canary,
    CancelSession,
    CompleteBranches,
    DrainMember,
    Offer,
    RegisterMember,
    RequeueBranches,
    SetMemberStatus,
    SubmitSession,
)
from consensus.state.limits import (
    ATTEMPTS_MAX,
    BRANCHES_PER_SESSION_MAX,
    CANARY_PAYLOAD_BYTES_MAX,
    COMMAND_BYTES_MAX,
    CONCURRENCY_MAX,
    CONDITION_VALUES_MAX,
    CONDITIONS_MAX,
    FAILURE_CODE_CHARACTERS_MAX,
    FAILURE_MESSAGE_CHARACTERS_MAX,
    JSON_DEPTH_MAX,
    LABEL_CHARACTERS_MAX,
    LABELS_PER_MEMBER_MAX,
    PARAMETERS_BYTES_MAX,
    PRIORITY_MAX,
    REASON_CHARACTERS_MAX,
    RITUALS_PER_MEMBER_MAX,
    SLOTS_MAX,
    TASK_BYTES_MAX,
    TEXT_BYTES_MAX,
    THOUGHT_BYTES_MAX,
    TIME_MS_MAX,
    TIMEOUT_MS_MAX,
)
from consensus.state.rows import Condition, Failure, Knowledge, Placement
from consensus.state.tables import encode, trimmed, uuid_key
from consensus.state.versions import COMMAND_VERSION, version_of
from storage.codec import check_json, digest
from storage.errors import CodecError

_VERSIONS = [bytes([version]) for version in range(256)]
_decode = msgspec.msgpack.Decoder(AnyCommand).decode
_UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_SUBMISSION = b"\xaesubmit_session"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class CommandError(Exception):
    """`code` is `malformed` or `too_large`; the message says which field and what is allowed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def encode_command(command: AnyCommand) -> bytes:
    """Raises CommandError `too_large` above COMMAND_BYTES_MAX: split the batch, or refuse the submission. Does not
    check fields; `decode_command` does."""
    try:
        data = _VERSIONS[version_of(command)] + encode(command)
    except _UNDECODABLE as error:
        raise CommandError("malformed", f"cannot be encoded: {error}") from error
    if len(data) > COMMAND_BYTES_MAX:
        raise CommandError("too_large", f"the command has {len(data)} bytes; at most {COMMAND_BYTES_MAX} are allowed")
    return data


def decode_command(data: bytes) -> AnyCommand:
    """Raises CommandError for anything that is not a valid command, UpgradeRequired for one of a newer version, and
    nothing else."""
    if len(data) > COMMAND_BYTES_MAX:
        raise CommandError("too_large", f"the command has {len(data)} bytes; at most {COMMAND_BYTES_MAX} are allowed")
    version = data[0] if data else 0
    if version > COMMAND_VERSION:
        raise UpgradeRequired(version, COMMAND_VERSION)
    try:
        command: AnyCommand = _decode(memoryview(data)[1:])
    except _UNDECODABLE as error:
        raise CommandError("malformed", f"not a command: {error}") from error
    if version != version_of(command):  # what the version of its first byte does not have
        raise CommandError("malformed", f"a command of another version than {version}")
    check_command(command)
    return command


def is_submission(data: bytes) -> bool:
    """Whether these bytes, if they are a command at all, submit a session; at no cost, as leaders ask it of every
    command that is forwarded to them. An array of less than sixteen fields begins with its tag."""
    return data[2 : 2 + len(_SUBMISSION)] == _SUBMISSION


def check_command(command: AnyCommand) -> None:
    """Raises CommandError. For proposers too: what passes here is not refused as malformed later."""
    _range("at_ms", command.at_ms, 0, TIME_MS_MAX)
    match command:
        case Canary():
            _id("node_id", command.node_id)
            if len(command.payload) > CANARY_PAYLOAD_BYTES_MAX:
                raise CommandError("too_large", f"payload: at most {CANARY_PAYLOAD_BYTES_MAX} bytes are allowed")
        case CompleteBranches():
            _check_offer(command.offer)
        case CancelSession() | AssignBranches() | RequeueBranches():
            pass
        case SubmitSession():
            _check_submission(command)
        case RegisterMember():
            _check_registration(command)
        case SetMemberStatus():
            _id("node_id", command.node_id)
        case DrainMember():
            _check_drain(command)
        case _:
            assert_never(command)


def body_digest(command: SubmitSession) -> bytes:
    """Of what the client asked for; not of the time, nor of the node that took the request: a client that repeats its
    request may reach another one."""
    body: list[object] = [
        command.thought,
        command.main_session_id,
        [trimmed(spec) for spec in command.branches],
        trimmed(command.consolidation),
    ]
    if command.priority or command.concurrency is not None:
        body += [command.priority, command.concurrency]
    if not command.speculation:
        body.append(command.speculation)
    if command.ritual_concurrency:
        body.append(command.ritual_concurrency)
    return digest(encode(body))


def encode_knowledge(knowledge: Knowledge) -> bytes | None:
    """None when it holds what no reader could show as JSON (not a number, binary, keys that are no strings)."""
    if not isfinite(knowledge.novelty) or not (knowledge.score is None or isfinite(knowledge.score)):
        return None
    return encode(knowledge) if _is_json(knowledge.result, JSON_DEPTH_MAX) else None


def _is_json(value: object, depth_left: int) -> bool:
    """As `storage.codec.check_json`, for what a decoder has made: no cycles, no subclasses, size known. A fifth of its
    cost, and this is done for every result on every replica."""
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return isfinite(value)
    if depth_left <= 0:
        return False
    if isinstance(value, list):
        for item in value:  # noqa: SIM110 - a generator for every level costs more than the checks
            if not _is_json(item, depth_left - 1):
                return False
        return True
    if isinstance(value, dict):
        for key, item in value.items():  # noqa: SIM110
            if type(key) is not str or not _is_json(item, depth_left - 1):
                return False
        return True
    return False


def clipped(failure: Failure) -> Failure:
    if len(failure.code) <= FAILURE_CODE_CHARACTERS_MAX and len(failure.message) <= FAILURE_MESSAGE_CHARACTERS_MAX:
        return failure
    return Failure(
        code=failure.code[:FAILURE_CODE_CHARACTERS_MAX], message=failure.message[:FAILURE_MESSAGE_CHARACTERS_MAX]
    )


def clipped_reason(reason: str) -> str:
    return reason[:REASON_CHARACTERS_MAX]


def _check_submission(command: SubmitSession) -> None:
    _uuid("session_id", command.session_id)
    if command.main_session_id is not None:
        _uuid("main_session_id", command.main_session_id)
    _id("submitted_by", command.submitted_by)
    _text("thought", command.thought, THOUGHT_BYTES_MAX)
    if not command.branches:
        raise CommandError("malformed", "branches: a session needs at least one")
    if len(command.branches) > BRANCHES_PER_SESSION_MAX:
        raise CommandError(
            "too_large",
            f"branches: {len(command.branches)}; at most {BRANCHES_PER_SESSION_MAX} are allowed: split it",
        )
    for index, spec in enumerate(command.branches):
        _check_spec(f"branches[{index}]", spec)
    _check_spec("consolidation", command.consolidation)
    _check_offer(command.offer)
    _range("priority", command.priority, -PRIORITY_MAX, PRIORITY_MAX)
    if command.concurrency is not None:
        _range("concurrency", command.concurrency, 1, CONCURRENCY_MAX)
    if command.ritual_concurrency and not command.ritual_concurrency.keys() <= {s.ritual for s in command.branches}:
        raise CommandError("malformed", "ritual_concurrency: of rituals of its branches only")
    for limit in command.ritual_concurrency.values():
        _range("ritual_concurrency", limit, 1, CONCURRENCY_MAX)


def _check_offer(offer: Offer | None) -> None:
    if offer is not None:
        _id("offer.node_id", offer.node_id)
        _range("offer.lease_grace_ms", offer.lease_grace_ms, 0, TIMEOUT_MS_MAX)


def _check_spec(where: str, spec: BranchSpec) -> None:
    if not _ID.fullmatch(spec.ritual):
        raise CommandError("malformed", f"{where}.ritual: 1 to 64 of letters, digits, '_', '.', '-' expected")
    if len(spec.task) * 4 > TASK_BYTES_MAX:
        _text(f"{where}.task", spec.task, TASK_BYTES_MAX)
    _range(f"{where}.timeout_ms", spec.timeout_ms, 1, TIMEOUT_MS_MAX)
    _range(f"{where}.attempts_max", spec.attempts_max, 1, ATTEMPTS_MAX)
    _range(f"{where}.seed", spec.seed, 0, 2**64 - 1)
    if spec.placement is not None:
        _check_placement(f"{where}.placement", spec.placement)
    if not _is_json(spec.parameters, JSON_DEPTH_MAX) or len(encode(spec.parameters)) > PARAMETERS_BYTES_MAX:
        try:  # slower, and says what is wrong
            check_json(spec.parameters, PARAMETERS_BYTES_MAX, JSON_DEPTH_MAX)
        except CodecError as error:
            code = "too_large" if error.code == "too_large" else "malformed"
            raise CommandError(code, f"{where}.parameters: {error}") from error
        raise CommandError("malformed", f"{where}.parameters: plain data expected")


def _check_placement(where: str, placement: Placement) -> None:
    for name in ("require", "prefer"):
        conditions: list[Condition] = getattr(placement, name)
        if len(conditions) > CONDITIONS_MAX:
            raise CommandError("too_large", f"{where}.{name}: at most {CONDITIONS_MAX} conditions are allowed")
        for condition in conditions:
            _label(f"{where}.{name}", condition.label, *condition.values)
            if len(condition.values) > CONDITION_VALUES_MAX:
                raise CommandError("too_large", f"{where}.{name}: at most {CONDITION_VALUES_MAX} values are allowed")
    for text in (placement.node, placement.version, placement.spread):
        if text is not None:
            _text(where, text, TEXT_BYTES_MAX)


def _label(where: str, *texts: str) -> None:
    if any(len(text) > LABEL_CHARACTERS_MAX for text in texts):
        raise CommandError("too_large", f"{where}: at most {LABEL_CHARACTERS_MAX} characters are allowed")


def _check_registration(command: RegisterMember) -> None:
    _id("node_id", command.node_id)
    _id("instance_id", command.instance_id)
    for name in ("name", "address", "http_address", "software"):
        _text(name, getattr(command, name), TEXT_BYTES_MAX)
    _range("slots", command.slots, 0, SLOTS_MAX)
    _range("async_slots", command.async_slots, 0, SLOTS_MAX)
    if (command.parent is None) != (command.parent_instance is None):
        raise CommandError("malformed", "parent: goes with parent_instance")
    for name in ("parent", "parent_instance"):
        if getattr(command, name) is not None:
            _id(name, getattr(command, name))
    if len(command.rituals) > RITUALS_PER_MEMBER_MAX:
        raise CommandError("too_large", f"rituals: at most {RITUALS_PER_MEMBER_MAX} are allowed")
    for name, offer in command.rituals.items():
        if not _ID.fullmatch(name):
            raise CommandError("malformed", "rituals: names have 1 to 64 of letters, digits, '_', '.', '-'")
        _text("rituals.version", offer.version, TEXT_BYTES_MAX)
    if len(command.labels) > LABELS_PER_MEMBER_MAX:
        raise CommandError("too_large", f"labels: at most {LABELS_PER_MEMBER_MAX} are allowed")
    for label, value in command.labels.items():
        _label("labels", label, value)
    if not command.ritual_limits.keys() <= command.rituals.keys():
        raise CommandError("malformed", "ritual_limits: of rituals that are offered only")
    for limit in command.ritual_limits.values():
        _range("ritual_limits", limit, 1, CONCURRENCY_MAX)


def _check_drain(command: DrainMember) -> None:
    _id("node_id", command.node_id)
    if not command.is_draining and (command.is_leaving or command.hand_back_at_ms is not None):
        raise CommandError("malformed", "is_leaving, hand_back_at_ms: only of one that is draining")
    if command.hand_back_at_ms is not None:
        _range("hand_back_at_ms", command.hand_back_at_ms, 0, TIME_MS_MAX)


def _id(name: str, value: str) -> None:
    if not _ID.fullmatch(value):
        raise CommandError("malformed", f"{name}: 1 to 64 of letters, digits, '_', '.', '-' expected")


def _uuid(name: str, value: str) -> None:
    if uuid_key(value) is None:
        raise CommandError("malformed", f"{name}: a UUID in lower-case canonical form expected")


def _text(name: str, value: str, bytes_max: int) -> None:
    if len(value.encode()) > bytes_max:
        raise CommandError("too_large", f"{name}: at most {bytes_max} bytes are allowed")


def _range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise CommandError("malformed", f"{name}: {value} is outside {least} to {most}")
