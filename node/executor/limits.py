"""Every cap of the executor, with unit and reason. Imported by workers: constants only. Those of results belong to the
replicated state, which refuses what is above them."""

from consensus.state.limits import CONSOLIDATION_KNOWLEDGE_BYTES_MAX as CONSOLIDATION_BYTES_MAX
from consensus.state.limits import JSON_DEPTH_MAX, KNOWLEDGE_BYTES_MAX

__all__ = ["CONSOLIDATION_BYTES_MAX", "JSON_DEPTH_MAX", "KNOWLEDGE_BYTES_MAX"]

INPUTS_CHUNK_BYTES = 128 * 1024
"""Inputs are sent in pieces of about this size, so that neither event loop is held for more than about 1 ms."""

FRAME_BYTES_MAX = 8 * 1024 * 1024
"""One frame between daemon and worker; a larger announced length means that the stream is not ours."""

BATCH_BYTES_SOFT = 512 * 1024
"""A batch is closed when it has grown to this."""

PENDING_MAX = 20_000
"""Attempts waiting for a slot; beyond it they are returned as lost, so that the mesh places them elsewhere."""

WAITING_S_MAX = 2.0
"""An attempt that all slots keep waiting for so long is returned as lost: another node may be free. The mesh gives a
node more than it has slots only of branches that take a second at most."""

RECENT_MAX = 20_000
"""Ended attempts remembered, so that a repeated submit does not execute them again."""

LIVE_INTERVAL_S = 0.1
"""Progress and log lines of an attempt leave its worker at most this often."""

LIVE_LINES_MAX = 50
"""Log lines in one update; older ones are dropped and counted."""

LOG_LINES_MAX = 1_000
"""Log lines of one attempt."""

LINE_CHARS_MAX = 500
"""One log line or progress message; longer ones are cut."""

SEEN_PHRASES_MAX = 1_000
"""Phrases in one question about what the mesh has seen."""

MESSAGE_CHARS_MAX = 1_000
"""Message of a failure."""

STDERR_TAIL_BYTES = 4_096
"""Kept of what a worker wrote to its standard error, as evidence of a crash."""

STDERR_BYTES_PER_READ = 64 * 1024
STDERR_PAUSE_S = 0.1
"""A worker that floods its standard error is read at 64 KiB every 100 ms and so slows down itself, not the daemon."""

CANCEL_GRACE_S = 1.0
"""An async ritual must obey its cancellation within this time, or its worker is killed."""

IDLE_KEEP_S = 60.0
"""A CPU worker is kept warm for this long after its last use."""

STOP_GRACE_S = 0.5
"""A worker that was told to go is killed after this time."""

START_TIMEOUT_S = 20.0
"""From starting a worker to its first message; a loaded small machine takes seconds."""

START_FAILURES_MAX = 5
"""Failed starts in a row before waiting attempts are returned as lost; starting goes on with back-off."""

START_BACKOFF_S_MIN = 0.1
START_BACKOFF_S_MAX = 5.0

SUSPECT_S = 300.0
"""An async ritual that was running when its worker crashed beside others, or when one of them passed its deadline and
did not obey, is executed alone for this long, so that a second time hits nobody else. A second crash names its cause:
the others are suspected no more."""
