"""Every cap of a Leaf, with unit and reason; those of its uplink are in `node.uplinks.limits`."""

from typing import Final

ATTACH_S: Final = 5.0
REGISTER_S: Final = 15.0
REPORT_S: Final = 75.0
"""For answers of a parent; a little longer than it takes itself before it says that there is no majority."""

PING_S_MIN: Final = 1.0
PING_S_MAX: Final = 4.0
"""For a node to answer a ping before it is asked to be the parent. It doubles while nobody answers: one that hangs must
not hold up the others, and a way of seconds is better than none."""

PAUSE_S: Final = 0.5
"""Before a parent is asked again for what it could not do."""

ORPHAN_JITTER_S: Final = 0.2
"""A Leaf that has lost its parent looks for another one within this time, not at once: so do the others."""

MOVE_RTT_FACTOR: Final = 2.0
MOVE_RTT_SLACK_S: Final = 0.01
"""A Leaf does not move to a parent that is so much further away."""

OUTCOMES_WAITING_MAX: Final = 2_000
"""In memory, while there is no room for them on the disk; the oldest go first."""

KEEP_AFTER_S: Final = 1.0
"""An outcome that has waited so long for its answer goes to the disk: the parent may be gone without a word."""

KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
KEPT_FILES_MAX: Final = 4_096
"""Of outcomes on the disk. When it is full the oldest go: their leases have run out first."""

CONSOLIDATIONS_MAX: Final = 16
"""Whose inputs are arriving in parts."""

SEEN_S: Final = 5.0
"""For asking what the mesh has seen before; without an answer a pattern counts as new."""

HEAD_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 64
"""Of a request's head."""

BODY_BYTES_MAX: Final = 1024 * 1024
"""As the nodes accept it."""

CONNECTIONS_MAX: Final = 128
"""Clients at once: event streams and long-polls of a few people; more than a parent answers for a Leaf."""

IDLE_S: Final = 75.0
BODY_S: Final = 20.0
WRITE_S: Final = 20.0
"""As on other nodes: an idle or half-sent request, a body, a client that takes nothing."""

HTTP_ANSWER_S: Final = 75.0
"""For the beginning of an answer through the parent, long-polls of 60 s included."""

WARM_AFTER_S: Final = 10.0
"""So long after it has registered a Leaf without work starts its workers, work at once: what it needs to be in the mesh
goes first, which counts where a machine is slow, or has a hundred nodes."""

MULTICAST_PAUSE_S: Final = 5.0
"""Between two searches by multicast, each in a process of its own."""
