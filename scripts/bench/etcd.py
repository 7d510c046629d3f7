"""etcd beside us: three members on loopback, TLS between them and to clients, in the same folder and the same call.

The load is put by a client of a few dozen lines that speaks gRPC over HTTP/2 on a blocking socket, because every other
that could be had here (the JSON gateway, a gRPC library for Python) costs more than etcd itself. What it costs is told:
it takes its share of the same cores, and our own callers, which sit in the leader, do not.
"""

import json
import os
import resource
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.testing import free_ports
from scripts.bench.commits_node import LOADS, PAYLOAD_BYTES

DEADLINE_S = 60.0
VARIABLES = {"ETCDCTL_API": "3", "PATH": os.environ.get("PATH", "")}


def is_installed() -> bool:
    return shutil.which("etcd") is not None and shutil.which("etcdctl") is not None


def one_run(folder: Path) -> list[dict[str, float]]:
    """As many puts as commands of ours, of the same size, in flight alike."""
    lines = []
    with members(folder) as (leader_port, context), Connection(leader_port, context) as connection:
        put_all(connection, 16, 500)  # warm
        for in_flight, count in LOADS:
            latencies, elapsed_s, client_s = put_all(connection, in_flight, count)
            line = {"per_s": count / elapsed_s, "p50_ms": statistics.median(latencies) * 1e3}
            lines.append({"in_flight": in_flight, **line, "client_share": client_s / elapsed_s})
    return lines


@contextmanager
def members(folder: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """The leader's client port, and how to reach it. Ends what it has started, whatever happens."""
    folder.mkdir(parents=True)
    make_certificates(folder)
    names, ports = ["a", "b", "c"], free_ports(6)
    peers = {name: f"https://127.0.0.1:{ports[i]}" for i, name in enumerate(names)}
    clients = {name: f"https://127.0.0.1:{ports[3 + i]}" for i, name in enumerate(names)}
    tls = {"cert-file": "node.pem", "key-file": "node.key", "trusted-ca-file": "ca.pem"}
    arguments = [f"--{kind}{name}={folder / file}" for kind in ("", "peer-") for name, file in tls.items()]
    processes = []
    try:
        for name in names:
            with (folder / f"{name}.log").open("ab") as log:
                command = ["etcd", f"--name={name}", f"--data-dir={folder / name}", *arguments]
                command += ["--client-cert-auth", "--peer-client-cert-auth", "--initial-cluster-state=new"]
                command += [f"--listen-peer-urls={peers[name]}", f"--initial-advertise-peer-urls={peers[name]}"]
                command += [f"--listen-client-urls={clients[name]}", f"--advertise-client-urls={clients[name]}"]
                command.append("--initial-cluster=" + ",".join(f"{one}={url}" for one, url in peers.items()))
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "node.pem", folder / "node.key")
        context.set_alpn_protocols(["h2"])
        yield wait_leader(folder, list(clients.values())), context
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_leader(folder: Path, endpoints: list[str]) -> int:
    keys = [f"--cacert={folder / 'ca.pem'}", f"--cert={folder / 'node.pem'}", f"--key={folder / 'node.key'}"]
    command = ["etcdctl", f"--endpoints={','.join(endpoints)}", *keys, "endpoint", "status", "-w", "json"]
    ends_at = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends_at:
        asked = subprocess.run(command, capture_output=True, env=VARIABLES, timeout=DEADLINE_S, check=False)
        told = json.loads(asked.stdout) if asked.returncode == 0 and asked.stdout else []
        for one in told:
            status = one["Status"]
            if len(told) == len(endpoints) and status["leader"] and status["leader"] == status["header"]["member_id"]:
                return int(one["Endpoint"].rpartition(":")[2])
        time.sleep(0.1)
    raise RuntimeError((folder / "a.log").read_text(errors="replace")[-2000:])


def make_certificates(folder: Path) -> None:
    """`ca.pem`, and `node.pem` with `node.key` for all members and clients."""
    now = datetime.now(UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
        builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")]))
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))

    authority_key, node_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    is_authority = x509.BasicConstraints(ca=True, path_length=None)
    authority = certificate("bench", authority_key).add_extension(is_authority, critical=True)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    node = certificate("node", node_key).add_extension(loopback, critical=False)
    for file, builder in (("ca.pem", authority), ("node.pem", node)):
        signed = builder.sign(authority_key, hashes.SHA256())
        (folder / file).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = node_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "node.key").write_bytes(pem)


# -- a client: RFC 9113 and gRPC's framing, as far as puts need them --

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4


def _literal(name: bytes, value: bytes) -> bytes:
    return name + bytes([len(value)]) + value


_REQUEST_HEADERS = b"".join(
    [
        b"\x83\x87",  # :method POST, :scheme https
        _literal(b"\x04", b"/etcdserverpb.KV/Put"),  # :path
        _literal(b"\x01", b"127.0.0.1"),  # :authority
        _literal(b"\x0f\x10", b"application/grpc"),  # content-type
        _literal(b"\x00\x02te", b"trailers"),
    ]
)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


class Connection:
    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(raw, server_hostname="127.0.0.1")
        wide = _frame(_WINDOW_UPDATE, 0, 0, struct.pack("!I", 1 << 30))
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"") + wide)
        self._received = bytearray()
        self._next_stream = 1
        self._answered: set[int] = set()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def put(self, puts: list[tuple[bytes, bytes]]) -> list[int]:
        """Sends them together; their streams."""
        data, streams = bytearray(), []
        for key, value in puts:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            message = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
            data += _frame(_HEADERS, _END_HEADERS, stream, _REQUEST_HEADERS)
            data += _frame(_DATA, _END_STREAM, stream, b"\0" + struct.pack("!I", len(message)) + message)
            streams.append(stream)
        self._socket.sendall(data)
        return streams

    def wait(self) -> list[int]:
        """Streams that ended with an answer, one at least. Raises RuntimeError when one ended without."""
        ended: list[int] = []
        while not ended:
            data = self._socket.recv(1 << 16)
            if not data:
                raise RuntimeError("etcd closed the connection")
            self._received += data
            ended = self._parse()
        return ended

    def _parse(self) -> list[int]:
        received, position, ended = self._received, 0, []
        while len(received) - position >= 9:
            size = int.from_bytes(received[position : position + 3], "big")
            end = position + 9 + size
            if len(received) < end:
                break
            kind, flags = received[position + 3], received[position + 4]
            stream = int.from_bytes(received[position + 5 : position + 9], "big")
            if kind == _DATA and size:
                self._answered.add(stream)
            elif kind in (_RESET, _GOAWAY):
                raise RuntimeError("etcd gave up a request")
            elif kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._socket.sendall(_frame(_PING, _ACK, 0, bytes(received[position + 9 : end])))
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                if stream not in self._answered:
                    raise RuntimeError("etcd refused a put")
                self._answered.discard(stream)
                ended.append(stream)
            position = end
        del received[:position]
        return ended


def put_all(connection: Connection, in_flight: int, count: int) -> tuple[list[float], float, float]:
    """Latencies, seconds it took, and seconds of CPU that this client used."""

    def put(many: int) -> None:
        now = time.perf_counter()
        for stream in connection.put([(os.urandom(8), os.urandom(PAYLOAD_BYTES)) for _ in range(many)]):
            begun[stream] = now

    begun: dict[int, float] = {}
    latencies: list[float] = []
    used_s = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    put(in_flight)
    while len(latencies) < count:
        ended = connection.wait()
        now = time.perf_counter()
        latencies.extend(now - begun.pop(stream) for stream in ended)
        more = min(len(ended), count - len(latencies) - len(begun))
        if more > 0:
            put(more)
    elapsed_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return latencies, elapsed_s, after.ru_utime + after.ru_stime - used_s.ru_utime - used_s.ru_stime
