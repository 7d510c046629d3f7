"""Of which tier a node is when the mesh chooses (`tier = "auto"`), and why. Pure.

1. A machine that is too small for a replica is a Leaf. What is looked at does not change between two starts, and one
   that has a replica is not asked again.
2. Any other is a Core node until its mesh is founded: it founds one with the others that wait.
3. Then it is Core while it votes, by its own copy of the configuration, and Edge otherwise. So those that founded the
   mesh are Core and who comes later is Edge, also after a restart: the configuration is durable.
4. When a Core node is lost for good, or more voters are wanted, autopilot promotes standby Core nodes first, and then
   such Edge nodes. One that is configured as an Edge is never promoted.
"""

from typing import Final

import msgspec

from consensus.state.rows import Tier

RAM_BYTES_MIN: Final = 1 << 30
"""Of a machine with a replica: the daemon takes 70 MB, its rituals more, and pages of the store should stay cached."""

RAM_BYTES_MIN_ONE_CORE: Final = 2 << 30
"""With a single core: less is a small board, and its core is better given to rituals."""

DISK_BYTES_MIN: Final = 4 << 30
"""Size of the file system of `data_dir`, free or not: smaller ones are no place to keep sessions."""

CONFIGURED: Final = "configured"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    ram_bytes: int
    """What this process may use: of the machine, or of its control group."""
    cores: int
    disk_bytes: int
    """Of the file system of `data_dir`."""
    is_disk_lasting: bool
    """Not in RAM."""


class Decided(msgspec.Struct, frozen=True):
    tier: Tier
    why: str


def leaf_for(machine: Machine) -> Decided | None:
    """If the machine is too small for a replica."""
    ram, cores, disk = machine.ram_bytes, machine.cores, machine.disk_bytes
    if ram < RAM_BYTES_MIN:
        why = f"RAM of {ram >> 20} MiB is less than {RAM_BYTES_MIN >> 20} MiB"
    elif cores < 2 and ram < RAM_BYTES_MIN_ONE_CORE:
        why = f"one core and RAM of {ram >> 20} MiB, less than {RAM_BYTES_MIN_ONE_CORE >> 20} MiB"
    elif not machine.is_disk_lasting:
        why = "data_dir is in RAM, so a replica would be gone after a restart"
    elif disk < DISK_BYTES_MIN:
        why = f"the disk of data_dir has {disk >> 20} MiB, less than {DISK_BYTES_MIN >> 20} MiB"
    else:
        return None
    return Decided("leaf", f"auto: this machine is too small for a replica: {why}")


def candidate() -> Decided:
    return Decided("core", "auto: no mesh is founded yet, and this node can found one")


def in_mesh(*, is_voter: bool) -> Decided:
    if is_voter:
        return Decided("core", "auto: it is one of the mesh's voters")
    return Decided("edge", "auto: the mesh has voters; this node takes the place of one that is lost for good")
