"""Every cap of the storage layer, with its unit and its reason."""

MAP_BYTES_INITIAL = 64 * 1024 * 1024
"""First size of the memory map. Costs address space and a sparse file, not disk; doubles when 3/4 are used."""

MAP_BYTES_MAX = 1 << 40
"""1 TiB: far beyond what a mesh stores, well inside the 47 bits of user address space."""

MAP_HEADROOM_DIVISOR = 4
"""The map grows before a write transaction begins with less than 1/4 of it unused: a transaction must not fill it."""

DISK_RESERVE_BYTES = 16 * 1024 * 1024
"""No write begins with less free disk than this, so that a full disk is met before a commit, not inside one."""

DISK_FULL_BYTES = 1024 * 1024
"""A write that fails with less free disk than this failed because the disk is full, whatever error it reports."""

READERS_MAX = 512
"""Snapshots open at the same time (slots of LMDB's reader table). Snapshots are short; more is a leak."""

GROWTH_WAIT_S = 30.0
"""How long growing the map waits for open snapshots to end. A snapshot held longer is a bug of its holder."""

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
