"""Which interfaces may carry multicast: the real ones. Bridges, VPNs and container networks are skipped by default.

`choose` is pure; `read_interfaces` asks the system (ifaddr, which zeroconf brings along, and /sys/class/net on Linux).
"""

import fnmatch
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ifaddr

VIRTUAL = ("docker*", "br-*", "veth*", "virbr*", "vmnet*", "vboxnet*", "cni*", "flannel*", "cali*", "lxc*", "lxd*")
TUNNEL = ("tun*", "tap*", "wg*", "tailscale*", "zt*", "utun*", "ppp*", "ipsec*")

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_POINTOPOINT = 0x10
_IFF_MULTICAST = 0x1000  # all from linux/if.h


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface. `flags` are Linux's, None where they cannot be read."""

    name: str
    addresses: tuple[str, ...]
    flags: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What to use and why not the rest."""

    chosen: tuple[Interface, ...]
    skipped: tuple[tuple[str, str], ...]
    """(interface, reason)"""


def choose(interfaces: Sequence[Interface], wanted: Literal["auto"] | Sequence[str], bind_host: str) -> Choice:
    """Interfaces for multicast. An explicit list (names or addresses) overrides the rules for `auto`.

    A node bound to one address is announced on that address's interface only: elsewhere it could not be reached.
    """
    if bind_host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        bind_host = "auto"
    chosen: list[Interface] = []
    skipped: list[tuple[str, str]] = []
    found: set[str] = set()
    for interface in interfaces:
        if wanted != "auto":
            matches = [item for item in wanted if item == interface.name or item in interface.addresses]
            found.update(matches)
            if not matches:
                skipped.append((interface.name, "not in [mesh] interfaces"))
                continue
            named = tuple(address for address in interface.addresses if address in matches)
            kept = interface.addresses if interface.name in matches else named
            chosen.append(Interface(interface.name, kept, interface.flags))
        elif (reason := _objection(interface, bind_host)) is not None:
            skipped.append((interface.name, reason))
        elif bind_host == "auto":
            chosen.append(interface)
        else:
            chosen.append(Interface(interface.name, (bind_host,), interface.flags))
    if wanted != "auto":
        skipped += [(item, "no such interface or address here") for item in wanted if item not in found]
    return Choice(tuple(chosen), tuple(skipped))


def _objection(interface: Interface, bind_host: str) -> str | None:
    if bind_host != "auto":
        return None if bind_host in interface.addresses else f"the node listens on {bind_host} only"
    if all(ipaddress.ip_address(address).is_loopback for address in interface.addresses) or _has(
        interface, _IFF_LOOPBACK
    ):
        return "loopback"
    if any(fnmatch.fnmatch(interface.name, pattern) for pattern in VIRTUAL):
        return "a bridge or container network; name it in [mesh] interfaces to use it"
    if any(fnmatch.fnmatch(interface.name, pattern) for pattern in TUNNEL) or _has(interface, _IFF_POINTOPOINT):
        return "a tunnel or VPN; name it in [mesh] interfaces to use it, or use seeds"
    if interface.flags is not None and not interface.flags & _IFF_UP:
        return "down"
    if interface.flags is not None and not interface.flags & _IFF_MULTICAST:
        return "cannot multicast; use seeds"
    return None


def _has(interface: Interface, flag: int) -> bool:
    return interface.flags is not None and bool(interface.flags & flag)


def read_interfaces() -> tuple[Interface, ...]:
    """What the machine has now: IPv4 addresses, which every zeroconf network has. A few system calls."""
    interfaces: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        addresses = tuple(str(ip.ip) for ip in adapter.ips if ip.is_IPv4)
        if addresses:
            interfaces.append(Interface(adapter.name, addresses, _read_flags(adapter.name)))
    return tuple(interfaces)


def _read_flags(name: str) -> int | None:
    try:
        return int(Path("/sys/class/net", name, "flags").read_text(encoding="ascii"), 16)
    except (OSError, ValueError):
        return None
