"""What the mesh has seen: how often each pattern was found, over all results and insights.

Patterns are compared in a normal form that does not depend on the version of Unicode a Python was built with (replicas
may run different ones): ASCII letters in lower case, runs of ASCII white space as one space, cut to a cap.
"""

from msgspec.structs import replace

from consensus.state.limits import PATTERN_BYTES_MAX, PATTERNS_MAX, PATTERNS_PER_RESULT_MAX
from consensus.state.rows import PatternCount
from consensus.state.tables import PATTERNS, Workspace, decode_pattern, encode
from storage.codec import digest
from storage.ids import SessionId


def normal_form(pattern: str) -> str:
    joined = b" ".join(pattern.encode().lower().split())
    return joined[:PATTERN_BYTES_MAX].decode(errors="ignore")


def pattern_key(normal: str) -> bytes:
    return digest(normal.encode())


def note_patterns(work: Workspace, session_id: SessionId, found: list[str]) -> None:
    """Collects the patterns of one result; a spelling counts once a result."""
    noted = work.patterns
    for pattern in dict.fromkeys(found[:PATTERNS_PER_RESULT_MAX]):
        known = noted.get(pattern)
        noted[pattern] = (1, session_id) if known is None else (known[0] + 1, known[1])


def store_patterns(work: Workspace) -> None:
    """Writes what the command has collected: one row a pattern, however many results had it."""
    if not work.patterns:
        return
    merged: dict[str, tuple[int, SessionId]] = {}
    for pattern, (times, first) in work.patterns.items():
        normal = normal_form(pattern)
        if normal:
            before, earlier = merged.get(normal, (0, first))
            merged[normal] = (before + times, earlier)
    known = work.counters.patterns
    for normal, (times, first) in merged.items():
        key = pattern_key(normal)
        old = work.txn.get(PATTERNS, key)
        if old is not None:
            row = decode_pattern(old)
            changed = PatternCount(pattern=normal, count=row.count + times, first_session_id=row.first_session_id)
            work.replace(PATTERNS, key, old, encode(changed))
            continue
        if known >= PATTERNS_MAX:
            # Keys are hashes, so the next one in order is a random victim, and the same one on every replica.
            victim = next(work.txn.scan(PATTERNS, key, None, limit=1), None) or work.txn.first(PATTERNS)
            assert victim is not None, "a full table has rows"
            work.remove(PATTERNS, *victim)
        else:
            known += 1
        work.insert(PATTERNS, key, encode(PatternCount(pattern=normal, count=times, first_session_id=first)))
    if known != work.counters.patterns:
        work.counters = replace(work.counters, patterns=known)
