"""The caps of the replicated state: what a command may carry and how much the tables may hold.

Every replica must hold the same values, because a refusal is part of the agreed result: changing one of them is a
change of the state machine (see `DESIGN.md` of this package). What is above a cap is refused or recorded as a failure;
nothing grows without bound, except the history of finished sessions, which is kept until it is deleted.
"""

from typing import Final

COMMAND_BYTES_MAX: Final = 1024 * 1024
"""An encoded command. Below the batch size of the Raft engine, so that an entry never has to be split."""

JSON_DEPTH_MAX: Final = 32
"""Nesting of parameters and results: far below the depth at which a decoder fails, which differs by caller."""

KNOWLEDGE_BYTES_MAX: Final = 64 * 1024
"""Encoded knowledge of a branch: 10,000 branches stay below 640 MiB, and a batch of outcomes fits a command."""

CONSOLIDATION_KNOWLEDGE_BYTES_MAX: Final = 256 * 1024
"""Encoded knowledge of a consolidation: it speaks for the whole session."""

BRANCHES_PER_SESSION_MAX: Final = 10_000
OPEN_SESSIONS_MAX: Final = 10_000
"""Sessions that are not finished. New ones are refused before running ones are harmed."""

MEMBERS_MAX: Final = 10_000
"""Nodes ever registered."""

RITUALS_PER_MEMBER_MAX: Final = 256
LABELS_PER_MEMBER_MAX: Final = 64
"""All members are read at every decision of the scheduler."""

LABEL_CHARACTERS_MAX: Final = 64
"""Of a name and of a value."""

CONDITIONS_MAX: Final = 16
"""Of one list of a placement."""

CONDITION_VALUES_MAX: Final = 32

PRIORITY_MAX: Final = 10
"""-10 to 10: each is a range of the queue that the scheduler looks for."""

CONCURRENCY_MAX: Final = 1_000_000
FORMER_INSTANCES_MAX: Final = 8
"""Former instances remembered per member: a delayed registration is at most a few restarts late."""

THOUGHT_BYTES_MAX: Final = 64 * 1024
TASK_BYTES_MAX: Final = 16 * 1024
PARAMETERS_BYTES_MAX: Final = 64 * 1024
REASON_CHARACTERS_MAX: Final = 1_000
FAILURE_CODE_CHARACTERS_MAX: Final = 64
FAILURE_MESSAGE_CHARACTERS_MAX: Final = 2_000
"""Longer ones are cut: a failure must be recorded whatever its text."""

TEXT_BYTES_MAX: Final = 256
"""Names, addresses, versions."""

CANARY_PAYLOAD_BYTES_MAX: Final = 1024
SLOTS_MAX: Final = 65_536
ATTEMPTS_MAX: Final = 100
"""Failed attempts a branch may ask for."""

LOSSES_MAX: Final = 16
"""Attempts of a branch lost with their node before it fails: a branch that kills every node must not go on for ever."""

TIMEOUT_MS_MAX: Final = 7 * 24 * 3600 * 1000
"""A single attempt: one week."""

TIME_MS_MAX: Final = 2**53 - 1
"""Exact in JSON and in a double."""

DURATION_MS_MAX: Final = 2**38
"""About nine years; longer ones are cut, so that their sum over a session stays below 2**53."""

EVENTS_RETAINED: Final = 100_000
"""Log indexes whose events are kept for resuming watchers."""

EVENTS_PRUNED_PER_COMMAND: Final = 4
"""A command adds at most one row of events, so four a command always catch up."""

PATTERNS_MAX: Final = 50_000
"""Patterns remembered; then a new one takes the place of its neighbour in key order, which is a random one."""

PATTERNS_PER_RESULT_MAX: Final = 16
"""Patterns of one result that are remembered: the cost of recording a result stays bounded."""

PATTERN_BYTES_MAX: Final = 256
"""Longer ones are cut before they are compared."""
