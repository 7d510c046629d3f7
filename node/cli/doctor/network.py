"""Can other nodes be found and reached: multicast on each interface, and the ports.

A packet is sent to a multicast group of our own and must come back on the same interface. That proves address, route
and local firewall; that a switch or an access point passes multicast on can only be seen from two machines.
"""

import errno
import secrets
import socket
from contextlib import closing

from mesh.discovery.interfaces import choose, read_interfaces
from node.cli.doctor.finding import Finding
from node.config import Config, is_loopback

GROUP = "239.255.77.81"
"""Organisation-local scope (RFC 2365), so that the packet stays on site and no mDNS responder sees it."""

RECEIVE_S = 1.0
MDNS_PORT = 5353


def check_multicast(config: Config, only: list[str] | None) -> list[Finding]:
    if not config.mesh.zeroconf and only is None:
        return [Finding("multicast", "ok", "not needed: zeroconf = false")]
    present = read_interfaces()
    wanted = only or config.mesh.interfaces
    choice = choose(present, wanted, config.mesh_bind)  # as the daemon does
    findings = [_multicast_on(interface.name, interface.addresses[0]) for interface in choice.chosen]
    if wanted != "auto":
        found = {word for interface in choice.chosen for word in (interface.name, *interface.addresses)}
        known = ", ".join(interface.name for interface in present)
        return findings + [
            Finding(f"multicast {word}", "fail", "no such interface with an IPv4 address", f"known: {known}")
            for word in wanted
            if word not in found
        ]
    if not findings:
        why = ", ".join(f"{name} ({reason})" for name, reason in choice.skipped) or "this machine has no address"
        fix = "connect this machine to a network, or name an interface in [mesh] interfaces"
        findings.append(Finding("multicast", "warn", f"there is no suitable interface: {why}", fix))
    return findings


def check_ports(config: Config, running: str | None) -> list[Finding]:
    """`running`: name of the meshnode that answers on the configured HTTP port, if one does."""
    findings = [
        _tcp("mesh port", config.mesh_bind, config.mesh.port, "[mesh] port", running),
        _tcp("http port", config.http.bind, config.http.port, "[http] port", running),
    ]
    if config.mesh.zeroconf:
        findings.append(_mdns())
    return findings


def _multicast_on(name: str, address: str) -> Finding:
    check = f"multicast {name}"
    token = secrets.token_bytes(16)
    try:
        with (
            closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
            closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            receiver.bind((GROUP, 0))
            membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(RECEIVE_S)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sender.sendto(token, (GROUP, receiver.getsockname()[1]))
            while receiver.recv(64) != token:
                pass
    except TimeoutError:
        return Finding(
            check,
            "fail",
            f"a packet sent from {address} did not come back",
            "allow multicast in the firewall (UDP 5353 and 224.0.0.251), or use [mesh] seeds and zeroconf = false",
        )
    except OSError as error:
        return Finding(
            check, "fail", f"{address}: {error.strerror}", "enable multicast on the interface, or use [mesh] seeds"
        )
    return Finding(check, "ok", f"{address} sends and receives")


def _tcp(check: str, bind: str, port: int, key: str, running: str | None) -> Finding:
    if port == 0:
        return Finding(check, "ok", "any free port")
    host = "0.0.0.0" if bind == "auto" else bind.strip("[]")  # noqa: S104 - bound for a moment, never listened on
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and running is not None:
            return Finding(check, "ok", f"{port} is used by the running meshnode {running}")
        if error.errno == errno.EADDRINUSE:
            return Finding(check, "fail", f"{port} is used by another program", f"stop it (ss -ltnp), or change {key}")
        where = "loopback" if is_loopback(host) else host
        return Finding(check, "fail", f"{where}:{port}: {error.strerror}", f"change {key} or the bind address")
    return Finding(check, "ok", f"{port} is free")


def _mdns() -> Finding:
    try:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("", MDNS_PORT))
    except OSError as error:
        return Finding(
            "mdns port",
            "fail",
            f"{MDNS_PORT}/udp cannot be shared: {error.strerror}",
            "stop the program that holds it alone (ss -lunp), or use [mesh] seeds and zeroconf = false",
        )
    return Finding("mdns port", "ok", f"{MDNS_PORT}/udp can be shared")
