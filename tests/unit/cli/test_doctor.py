"""Doctor: every verdict can be reached and says what to do. Multicast is tried on loopback only."""

import json
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from mesh.discovery.interfaces import Interface
from mesh.secrets import MeshSecret
from node.cli.doctor import clocks, host, network
from node.cli.doctor.finding import Finding, worst
from node.cli.exits import Exit
from node.cli.main import main
from node.config import Config, load
from tests.unit.cli.conftest import FakeNode


def config_in(tmp_path: Path, **variables: str) -> Config:
    return load(None, {"MESHNODE_NODE_DATA_DIR": str(tmp_path / "data"), **variables})


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "solo.toml"
    path.write_text(
        "[node]\ndata_dir = 'data'\n[mesh]\nport = 0\nbootstrap_expect = 1\nzeroconf = false\n[http]\nport = 0\n"
    )
    words = ["doctor", "--config", str(path), "--interface", "lo", "--url", "http://127.0.0.1:1"]
    assert main([*words, "--json"]) in (Exit.OK, Exit.FAILED)
    document = json.loads(capsys.readouterr().out)
    checks = {one["check"]: one for one in document["checks"]}
    assert checks["multicast lo"]["verdict"] == "ok"
    assert checks["data folder"]["detail"].endswith("will be made at first start")
    assert {"python", "libraries", "disk sync", "disk space", "ram", "open files", "clock", "mesh port"} <= set(checks)
    assert all(one["fix"] or one["verdict"] == "ok" for one in document["checks"])
    main(words)
    assert "ok    multicast lo: 127.0.0.1 sends and receives" in capsys.readouterr().out


def test_a_wrong_configuration_is_wrong_usage(tmp_path: Path) -> None:
    assert main(["doctor", "--config", str(tmp_path / "none.toml")]) == Exit.USAGE


def test_a_port_taken_by_another_program(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = config_in(tmp_path, MESHNODE_MESH_PORT=str(server.getsockname()[1]), MESHNODE_HTTP_PORT="0")
        assert by_check(network.check_ports(config, None))["mesh port"].verdict == "fail"
        running = by_check(network.check_ports(config, "ann"))["mesh port"]
    assert running.verdict == "ok"
    assert running.detail.endswith("is used by the running meshnode ann")


def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = network.check_multicast(config_in(tmp_path), ["nope0"])
    assert finding.verdict == "fail"
    assert "known: " in finding.fix


def test_multicast_is_tried_where_the_daemon_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = network.check_multicast(config_in(tmp_path), None)
    assert (alone.check, alone.verdict) == ("multicast lo", "ok")  # without a secret it stays on this machine
    monkeypatch.setattr(network, "read_interfaces", lambda: (Interface("docker0", ("172.17.0.1",)),))
    (finding,) = network.check_multicast(config_in(tmp_path, MESHNODE_MESH_SECRET_FILE=str(tmp_path / "s")), None)
    assert finding.verdict == "warn"
    assert "docker0 (a bridge or container network" in finding.detail


def test_multicast_is_not_asked_for_without_zeroconf(tmp_path: Path) -> None:
    config = config_in(tmp_path, MESHNODE_MESH_ZEROCONF="no", MESHNODE_MESH_BOOTSTRAP_EXPECT="1")
    assert network.check_multicast(config, None) == [Finding("multicast", "ok", "not needed: zeroconf = false")]


def test_rights(tmp_path: Path) -> None:
    config = config_in(tmp_path, MESHNODE_MESH_SECRET_FILE=str(tmp_path / "secret"))
    findings = by_check(host.check_rights(config))
    assert findings["secret"].verdict == "fail"
    MeshSecret.new().save(tmp_path / "secret")
    config.data_dir.mkdir(mode=0o755)
    config.data_dir.chmod(0o755)
    findings = by_check(host.check_rights(config))
    assert findings["data folder"].fix == f"chmod -R go= {config.data_dir}"
    assert findings["secret"].verdict == "ok"
    (tmp_path / "secret").write_text("mesh1-broken")
    assert by_check(host.check_rights(config))["secret"].verdict == "fail"


@pytest.mark.parametrize(("sync_s", "verdict"), [(0.001, "ok"), (0.05, "warn"), (0.5, "fail")])
def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_s: float, verdict: str) -> None:
    monkeypatch.setattr(host, "_sync_times", lambda folder: [sync_s] * 60)
    assert by_check(host.check_disk(config_in(tmp_path)))["disk sync"].verdict == verdict


def test_disk_probe_leaves_nothing(tmp_path: Path) -> None:
    host.check_disk(config_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_ram_that_is_promised_twice(tmp_path: Path) -> None:
    config = config_in(tmp_path, MESHNODE_EXECUTION_MEMORY_MB_MAX="1048576")
    assert by_check(host.check_limits(config))["ram"].verdict == "warn"


@pytest.mark.parametrize(("apart_s", "verdict"), [(0, "ok"), (-60, "warn"), (3600, "fail")])
def test_skew(apart_s: float, verdict: str) -> None:
    (finding,) = clocks.check_skew({"http://a": formatdate(time.time() + apart_s), "http://b": None})
    assert finding.verdict == verdict


def test_clocks_of_nodes_are_asked(start_node: Callable[[], FakeNode], tmp_path: Path) -> None:
    from node.cli.doctor.command import examine

    node = start_node()
    node.on("/healthz", {"ok": True, "checks": []})
    config = config_in(tmp_path, MESHNODE_MESH_PORT="0", MESHNODE_HTTP_PORT=node.url.rpartition(":")[2])
    findings = by_check(examine(config, None, ["lo"]))
    assert findings[f"clock of {node.url}"].verdict == "ok"
    assert findings["http port"].detail.endswith(f"is used by the running meshnode {config.node.name}")


def test_the_worst_verdict_counts() -> None:
    assert worst([]) == "ok"
    assert worst([Finding("a", "ok", ""), Finding("b", "warn", "")]) == "warn"
    assert worst([Finding("a", "fail", ""), Finding("b", "warn", "")]) == "fail"
