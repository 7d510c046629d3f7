"""Every cap and every time constant of agreement, with unit and reason."""

import msgspec

from consensus.state.limits import COMMAND_BYTES_MAX as COMMAND_BYTES_MAX

# The cap of one encoded command (1 MiB) is below the batch size, so that an entry never has to be cut.

BATCH_ENTRIES_MAX = 4096
"""Entries in one append message: bounds the work of one message when commands are tiny."""

FRAME_BYTES_MAX = 4 << 20
"""Of one frame from a peer: a full batch, or one command of the largest size, plus framing."""

FRAME_MESSAGES_MAX = 1024
"""Messages in one frame; a tick of an honest peer makes a handful."""

WINDOW_BYTES = 8 << 20
"""Entries sent to one peer and not yet acknowledged. Fills 1 Gbit/s at 60 ms; bounds what a slow peer can make us
queue."""

TAIL_BYTES_MAX = 16 << 20
"""Of the newest log entries kept in memory; older ones are read from the store. Twice the window, so that a peer that
keeps up is served from memory."""

TAIL_ENTRIES_MAX = 32768
"""Same, in entries: tiny commands cost more in Python objects than in bytes."""

SLICE_BYTES_MAX = 4 << 20
"""Answer to an open-ended read of the log: bounds what one tick applies."""

SLICE_ENTRIES_MAX = 2048
"""Same, in entries: about 50 ms of applying."""

TERM_MAX = 1 << 62
TERM_JUMP_MAX = 1 << 32
"""How far one message may raise the term. One election a second reaches it in 136 years; a lying peer would need a
thousand million messages to use up all terms."""

INDEX_MAX = 1 << 62

SNAPSHOT_BYTES_PER_WRITE = 4 << 20
"""Of a snapshot, written in one transaction while a new store is filled."""

LOG_HELD_S = 60.0
"""How long after a sign of life of whoever fetches a snapshot the log behind it is kept."""

PROPOSALS_IN_FLIGHT_MAX = 4096
"""Of one node, its own and forwarded ones together. Beyond it callers are told `overloaded`."""

READS_WAITING_MAX = 16384
"""Reads on one node that wait to hear how far they must see, and reads that wait at a leader for its proof. A waiting
read is a few hundred bytes; all of one node share one question."""

READ_ANSWER_S = 2.0
"""For a leader to say how far to read. One that cannot prove itself steps down sooner (`leader_fallback_s`); one that
was stopped is left as soon as another leads."""

CHECKPOINTS_MAX = 256
"""Digests kept of the newest checkpoints, to compare with those of peers."""

CHECKPOINT_PERIOD_S = 1.0
"""A replica tells its newest checkpoint to its peers at most this often."""

DISK_FULL_RETRY_S = 2.0
"""Pause before a replica that found the disk full tries again."""

INPUTS_PER_STEP_MAX = PROPOSALS_IN_FLIGHT_MAX
"""What one step takes in: bounds its transaction. All proposals that may be in flight fit into one."""

INPUTS_WAITING_MAX = 65536
"""Inputs waiting for the replica thread. Beyond it messages of peers are dropped, which Raft repairs; with frames of
ordinary size that is far more than a second of work."""

STATUS_DELAY_S = 0.005
"""How late the event loop may learn how far the replica is when nobody waits for it: without it every message of a peer
would wake the loop too."""

DISK_STALL_S = 1.0
"""A step of the replica that takes longer: the disk hangs. A sync takes milliseconds, of a busy SD card 0.3 s."""

LOOP_STALL_S = 1.0
"""A leader whose event loop has not come round for so long hands over: it could agree, but nobody could ask it. Twice
what the loop's own doubt allows (`mesh.limits.LAG_S`), half of what clients wait."""

DELIVERIES_MAX = 16384
"""Outputs the loop has not taken yet. Then the replica waits for it, and its peers do without it."""

FORWARDED_BYTES_MAX = COMMAND_BYTES_MAX + 1024
"""Of the proposals that travel to the leader in one request: at least one of the largest size."""

FORWARDED_COMMANDS_MAX = 512
"""Same, in proposals: about 10 ms of the leader's loop."""

FORWARDS_IN_FLIGHT_MAX = 4
"""Requests with proposals on their way to the leader. While they are, the next proposals gather; fewer would make a
caller wait for a commitment that is not its own."""

RESTARTS_MAX = 8
"""Unexplained failures of the replica in a row before its driver gives up."""


class RaftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. The defaults suit a LAN and tolerate a pause of almost half a second of any one machine.
    Replica threads beat for themselves, so a busy event loop is no pause."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.45
    """More than three heartbeats (the engine insists)."""
    election_max_s: float = 0.9
    leader_fallback_s: float = 1.1
    """A leader that has not heard of a majority for so long steps down: about two election timeouts."""
    failover_min_s: float = 0.02
    """After the link to the leader was closed by the leader's side: its process is gone."""
    failover_max_s: float = 0.12
    commit_notice_s: float = 0.001
    """How long a leader with nothing to send waits before it tells followers what is committed: longer than a caller
    needs to send its next command, shorter than anyone who waits for an event would notice."""
    learner_gather_s: float = 0.02
    """How long what is committed gathers for a learner, in the long run: each message costs it a write of its own and
    the leader an answer, and under load there are hundreds a second of as many learners. No agreement waits for one."""
    learner_burst: int = 16
    """Messages that need not wait, as many more after a rest: in a quiet mesh a learner hears of everything at once."""
    write_delay_s: float = 0.002
    """How long a leader waits for acknowledgements before it writes new entries without applying them: longer than
    followers on a LAN with a solid disk need."""
    batch_bytes: int = 2 << 20
    """Commands in one append message."""
    batch_entries: int = BATCH_ENTRIES_MAX
    window_bytes: int = WINDOW_BYTES
    tail_bytes_max: int = TAIL_BYTES_MAX
    tail_entries_max: int = TAIL_ENTRIES_MAX
    slice_bytes_max: int = SLICE_BYTES_MAX
    slice_entries_max: int = SLICE_ENTRIES_MAX
    log_keep_entries: int = 50_000
    """Applied entries kept for followers that were away: some seconds at full load, hours of a quiet mesh. Who needs
    older ones gets a snapshot, which costs as much as the state is large."""
    log_keep_bytes: int = 64 << 20
    """The same, in bytes: what is smaller counts."""
    log_hold_entries: int = 1_000_000
    """Kept while a follower that is connected or fetches a snapshot still needs them: minutes at full load."""
    log_hold_bytes: int = 1 << 30
    """The same, in bytes: disk that an operator can spare, since a follower that is slower than this would otherwise
    need one snapshot after the other."""
    compaction_entries: int = 1024
    """Deleted with one write: more than one write adds in the long run, few enough not to be felt."""
