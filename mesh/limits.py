"""Every cap of the mesh package in one place: value, unit and reason.

Full means refuse, shed or close, always counted (`Mesh.counters()`); nothing here ever grows without bound.
"""

FRAME_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of one frame after its length. Commands are capped at 1 MiB; a batch of results must fit with room to spare."""

HANDSHAKE_FRAME_BYTES_MAX = 16 * 1024
"""Bytes of a frame before the peer is welcome. A Hello is under 1 KiB; seven voters and eight addresses fit easily."""

NOTICE_BYTES_MAX = 1024 * 1024
"""Bytes of one notice. Frames are not split: this bounds how long bulk can hold up a heartbeat (8 ms at 1 Gb/s)."""

NAME_BYTES_MAX = 255
"""Bytes of a method or topic name: its length is one byte on the wire."""

CONTROL_FRAMES_MAX = 1024
"""Control frames waiting on one link. Tiny and rare: more means the peer has stopped reading; the link is closed."""

RAFT_FRAMES_MAX = 1024
RAFT_BYTES_MAX = 16 * 1024 * 1024
"""Raft frames waiting on one link. Raft repeats what is lost, so overflow drops the new frame and counts it."""

STREAM_UNSENT_BYTES_MAX = 16 * 1024 * 1024
"""The same for a stream: more than two windows of Raft (8 MiB), so only a peer that does not read meets it."""

STREAM_READ_BYTES = 256 * 1024
"""Read from one stream before the others have their turn."""

STREAM_RETRY_S = 1.0
"""Between attempts to open a stream to a linked peer; Raft frames take the link meanwhile."""

REQUEST_FRAMES_MAX = 4096
REQUEST_BYTES_MAX = 32 * 1024 * 1024
"""Requests and responses waiting on one link. Overflow fails the request at once: the caller must slow down."""

NOTICE_FRAMES_MAX = 4096
NOTICE_BYTES_QUEUED_MAX = 8 * 1024 * 1024
"""Notices waiting on one link (progress, log lines). Overflow sheds the new one: the newest state follows anyway."""

REQUESTS_SERVED_MAX = 4096
REQUESTS_SERVED_BYTES_MAX = 32 * 1024 * 1024
"""Requests of one peer being served at once; more are answered `busy`. Bounds what one peer can make us hold."""

REQUESTS_PENDING_MAX = 8192
"""Our own requests waiting for an answer on one link."""

WRITE_BUFFER_HIGH_BYTES = 64 * 1024
WRITE_BUFFER_LOW_BYTES = 16 * 1024
"""Above high water frames wait in the priority queues, where a heartbeat can still overtake a bulk frame."""

UNSENT_LOW_WATER_BYTES = 128 * 1024
"""TCP_NOTSENT_LOWAT: what the kernel may hold unsent. Without it megabytes of bulk queue below our priorities."""

HANDSHAKES_PENDING_MAX = 64
HANDSHAKES_PENDING_PER_ADDRESS_MAX = 16
"""Inbound connections not yet welcome, in all and from one address (of IPv6, from one /64): strangers cost us this many
sockets, no more. When all are taken, who has fewer takes a place of who has most."""

HANDSHAKE_TIMEOUT_S = 5.0
"""TLS and Hello together. A Raspberry Pi needs 50 ms; a slow loris gets no longer than this."""

DIAL_TIMEOUT_S = 5.0
"""TCP connect: one lost SYN (1 s) and its retry (3 s) on a bad Wi-Fi."""

LOOKUPS_MAX = 64
"""Names being looked up, each on a thread of its own: seeds and what peers tell of, while no name server answers."""

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
BACKOFF_REFUSED_S = 60.0
"""Waits between dials, each jittered down to half. A refusal does not change by itself: once a minute is enough."""

HEARD_LASTS_S = 200.0
"""A node that only strangers speak of, and that never answered, is dialled no more so long after it was heard last:
three times as long as it takes until it is heard again (`discovery/lan.py`)."""

DIAL_DEFERENCE_S = 0.1
"""The node with the higher id lets the other dial first, so that crossing dials, though harmless, are rare."""

HEARTBEAT_S = 1.0
"""Both ends ping, so a link is heard at least once in it, and at most a second old when its peer dies."""

SUSPECT_S = 2.5
"""Two heartbeats and a half without a word: the peer is `suspect`."""

SILENCE_S = 4.5
"""A link on which nothing was heard for so long is half-open and closed; EOF and reset are noticed at once. Work of a
node that was cut off is elsewhere within five seconds, and one that was stopped for three keeps it."""

EXTRA_S_MAX = 5.5
"""Added to both at most for a peer that came back from longer silences: a dead one is found after ten seconds."""

EXTRA_HALVES_S = 60.0
"""A peer that has become regular is treated as such after some minutes."""

LAG_NOISE_S = 0.05
"""Timers are late by this much on any machine."""

LAG_S = 0.5
"""An own event loop later than this doubts itself."""

DOUBT_S = 3.0
"""After the last sign that this node is not well: nobody is accused. The peers' next heartbeats, and some more."""

DOUBT_S_MAX = 30.0
"""Doubt that lasts longer is believed no more: a node that is never well must still find the dead."""

LOOK_S_MIN = 0.1
"""Between two looks at who is silent, whatever happens."""

CONFLICT_PING_S = 1.0
"""How long an existing link may take to prove that it is alive when a second one claims its place."""

COPY_PROOF_S = 5.0
"""How long the proof of another instance may take, through the node that is linked to it."""

COPY_REFUSED_S = 60.0
"""How long the lesser of two instances is refused, unless the greater one is linked meanwhile, which refuses it too."""

RETIRE_S = 1.0
"""How long a duplicate link stays open so that answers under way on it still arrive."""

LINKS_MAX = 256
"""Links at once. Whoever holds the secret can make identities at will; this bounds what that costs us."""

PEERS_KNOWN_MAX = 256
"""Peers in the address book, in gossip and in the remembered file. A mesh of Core and Edge nodes is far smaller."""

ADDRESSES_PER_PEER_MAX = 8
"""Addresses kept for one peer, newest first."""

ADDRESS_BYTES_MAX = 262
"""A host name of 255 bytes, a colon, and a port."""

REFUSAL_REASONS_MAX = 64
"""Reasons counted apart; those of others are their words. We know of a third as many."""

REFUSALS_REMEMBERED_MAX = 1024
"""(reason, address) pairs that were already logged; the oldest is forgotten first."""

DIARY_ENTRIES_MAX = 200
"""Entries of the discovery diary shown in `/status`."""

PROMISE_UNREACHABLE_S = 10.0
"""How long a proposer must be out of reach before the other members of its proposal complete it without it."""

FOUNDING_TICK_S = 1.0
"""Founding messages are repeated at this pace until answered."""

FOUNDING_SETTLE_S = 0.3
"""How long exactly `bootstrap_expect` Core nodes wait for another before they found: gossip and mDNS take 0.1 s."""

FOUNDING_CROWD_S = 3.0
"""The same when there are more, or others are being dialled: a lost SYN is repeated after 1 s and after 3 s."""

PROBES_AT_ONCE = 16
"""Threads that ask addresses at once while a tool looks for the voters of a mesh: seven voters at two addresses."""

DAY_S = 86400

CERTIFICATE_LIFE_S = 90 * DAY_S
"""From its issue to its end. Renewal at a third of it leaves two months to notice that renewing fails."""

CERTIFICATE_RENEW_S = 30 * DAY_S
"""From its issue to the issue of the next one, which makes every link anew: rare enough to cost nothing."""

CERTIFICATE_DATED_BACK_S = 30 * DAY_S
"""A peer's clock may be behind by this much: that of a board without a battery starts where it stopped."""

CERTIFICATE_WARN_DAYS = (14, 7, 1)
"""Days before the end of a certificate that could not be renewed at which this is said again, once each."""

SECRET_WINDOW_DAYS = 14
"""How long a second secret may be accepted before this is warned about: a former secret that leaked still opens."""

TRUST_LOOK_S = 2.0
"""How often the secret file and the certificate are looked at: a stat."""

TRUST_RETRY_S = 60.0
"""Before a certificate that could not be renewed is tried again."""

REMAKE_PAUSE_S = 0.2
"""Between two links that are made anew under a new certificate: one at a time."""

REMAKE_RETRY_S = 15.0
"""Before those that could not be made anew are tried again."""

SHUT_OUT_AFTER_S = 10.0
"""From the end of a secret to that of the links it admitted: a peer with the new one has made its link anew by then."""

PARENTS_KNOWN_MAX = 64
"""Candidates that a Leaf remembers: a handful is enough, and each costs a dial when nobody answers."""

PARENTS_PROBED_AT_ONCE = 3
"""Asked at the same time by a Leaf without a parent: enough to compare, and a hundred orphans make 300 handshakes."""

PARENT_RETRY_FIRST_S = 0.2
PARENT_RETRY_MAX_S = 10.0
"""Before a candidate that did not answer, or refused, is asked again; doubled each time."""

PARENT_PATIENCE_MAX_S = 3.0
"""A Leaf whose candidates answer and take nobody waits so long at most, as they will soon: their mesh is forming. A
hundred Leaf nodes make 45 handshakes a second then, a fifth of a slow core; without it they keep it from forming."""

LEAVES_PER_DOUBLING = 8
"""Leaf nodes that weigh as much as a way twice as long: an uplink costs its parent little."""

MOVES_AT_ONCE_MAX = 4
"""Leaf nodes that a parent sends elsewhere at a time: each registers anew, and none of its work is touched."""
