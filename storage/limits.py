"""Every cap of the storage layer, with its unit and its reason."""

MAP_BYTES_INITIAL = 64 * 1024 * 1024
"""First size of the memory map. Costs address space and a sparse file, not disk; doubles when 3/4 are used."""

MAP_BYTES_MAX = 1 << 40
"""1 TiB: far beyond what a mesh stores, well inside the 47 bits of user address space."""

MAP_HEADROOM_DIVISOR = 4
"""The map is to grow when a write begins with less than 1/4 of it unused: a transaction must not fill it."""

MAP_ROOM_BYTES = 1024 * 1024
"""With less than this unused the next transaction may not fit: the map is exhausted, and growing no longer optional."""

DISK_RESERVE_BYTES = 16 * 1024 * 1024
"""No write begins with less free disk than this, so that a full disk is met before a commit, not inside one."""

DISK_LOW_BYTES = 64 * 1024 * 1024
"""With less free disk than this no new sessions are taken, so that what runs has room to finish: above the reserve, the
largest results of fifty branches, or the ordinary ones of some ten thousand."""

DISK_FULL_BYTES = 1024 * 1024
"""A write that fails with less free disk than this failed because the disk is full, whatever error it reports."""

DISK_CHECK_S = 0.25
"""How long the free space of the disk is taken for granted: asking costs as much as beginning a transaction."""

DISK_CHECK_BYTES = 64 * 1024 * 1024
"""How far the store may grow before the free space is looked at again; less when that would reach into the reserve."""

COPY_ROOM_BYTES = 256 * 1024 * 1024
"""Free in the map before the store is copied, as it cannot grow meanwhile: address space and a sparse file. At 5 MiB/s
of writing it lasts for 50 s, in which a disk copies some 10 GiB."""

READERS_MAX = 512
"""Snapshots open at the same time (slots of LMDB's reader table). Snapshots are short; more is a leak."""

GROWTH_SLICE_S = 0.03
"""How long new snapshots wait at once for the open ones to end, so that the map can grow: an event loop bears such a
pause. Longer than short snapshots last, so readers that overlap do not starve growth."""

GROWTH_SLICE_DIVISOR = 8
"""An exhausted map makes its pauses longer, up to 1/8 of the time it has waited: so readers that overlap cannot keep it
from growing, and one snapshot of a second keeps no other reader waiting for more than 1/8 of that."""

GROWTH_RETRY_S = 0.5
"""From one pause to the next while the map is not exhausted. Between them it grows only if no snapshot happens to be
open."""

GROWTH_WAIT_S = 30.0
"""How long an exhausted map waits for a moment without snapshots. A snapshot held longer is a bug of its holder."""

ADOPT_WAIT_S = 5.0
"""How long becoming another store waits for a moment without snapshots. Its writer does nothing else meanwhile."""

CLOSE_WAIT_S = 10.0
"""How long closing waits for open snapshots to end."""

KEY_BYTES_MAX = 511
"""LMDB's own limit (MDB_MAXKEYSIZE of the 0.9 format). Keys are never empty."""

SCAN_ROWS_FIRST = 16
"""Rows a scan fetches at first: most scans stop early. The number doubles from chunk to chunk."""

SCAN_ROWS_MAX = 1024
"""Rows a scan fetches at once at most: bounds RAM and the time other threads wait for the interpreter."""

SCAN_CHUNK_BYTES_MAX = 1024 * 1024
"""A scan stops a chunk after this many bytes of values, whatever the number of rows."""

JSON_DEPTH_MAX = 32
"""Nesting of lists and maps in values from outside, when the caller names no other limit."""

DUMP_CHUNK_BYTES = 256 * 1024
"""Of rows in one part of a dump: checked, sent and stored at once. Large enough that its overhead does not count, small
enough that nobody waits for one."""

DUMP_FRAME_BYTES_MAX = 16 * 1024 * 1024
"""Of one part of a dump: what a reader keeps in RAM at most. A chunk and one row; rows come from commands of 1 MiB."""
