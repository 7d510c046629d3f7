"""What a right configuration comes to."""

import socket
from pathlib import Path

import pytest

from node.config import describe, is_loopback, load


def test_nothing_given_is_a_node_on_loopback() -> None:
    config = load(None, {"HOME": "/home/ann"})
    assert config.node.name == socket.gethostname().partition(".")[0][:63]
    assert str(config.data_dir) == "/home/ann/.local/share/meshnode"
    assert config.mesh_bind == "127.0.0.1"
    assert config.secret_file is None
    assert config.slots >= 1


def test_file_then_environment(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text("[node]\nname = 'one'\n[mesh]\nport = 1000\n[execution]\nslots = 3\n")
    config = load(path, {"MESHNODE_MESH_PORT": "2000", "UNRELATED": "x", "MESHNODE_URL": "http://x"})
    assert (config.node.name, config.mesh.port, config.slots) == ("one", 2000, 3)
    assert config.source == str(path)


def test_every_type_can_come_from_the_environment() -> None:
    config = load(
        None,
        {
            "MESHNODE_NODE_NAME": "ann",
            "MESHNODE_MESH_ZEROCONF": "no",
            "MESHNODE_MESH_BOOTSTRAP_EXPECT": "5",
            "MESHNODE_MESH_SEEDS": "10.0.0.1:7781, [::1]:7781,",
            "MESHNODE_MESH_INTERFACES": "eth0,eth1",
            "MESHNODE_HTTP_ALLOW_UNAUTHENTICATED": "TRUE",
            "MESHNODE_LOG_LEVEL": "debug",
        },
    )
    assert config.node.name == "ann"
    assert config.mesh.zeroconf is False
    assert config.mesh.bootstrap_expect == 5
    assert config.mesh.seeds == ["10.0.0.1:7781", "[::1]:7781"]
    assert config.mesh.interfaces == ["eth0", "eth1"]
    assert config.http.allow_unauthenticated is True
    assert config.log.level == "debug"


def test_interfaces_may_be_set_back_to_auto() -> None:
    assert load(None, {"MESHNODE_MESH_INTERFACES": "auto"}).mesh.interfaces == "auto"


def test_scripts_have_variables_of_their_own() -> None:
    load(None, {"MESHNODE_TEST_SEEDS": "5", "MESHNODE_BENCH_RUNS": "3", "MESHNODE_DEMO_KEEP": "1"})


def test_paths_start_at_the_file_or_at_home_or_where_the_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "core.toml"
    path.write_text("[node]\ndata_dir = '../data'\n[mesh]\nsecret_file = '~/secret'\n[http]\ntoken_file = 'a'\n")
    monkeypatch.chdir(tmp_path)
    config = load(path, {"HOME": "/home/ann", "MESHNODE_HTTP_TOKEN_FILE": "token"})
    assert config.data_dir == tmp_path / "data"
    assert str(config.secret_file) == "/home/ann/secret"
    assert config.token_file == tmp_path / "token"


def test_readable_folders_are_absolute(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text("[execution]\nreadable_folders = ['texts', '~/notes']\n")
    folders = load(path, {"HOME": "/home/ann"}).execution.readable_folders
    assert folders == [str(tmp_path / "texts"), "/home/ann/notes"]


def test_with_a_secret_all_addresses_are_used() -> None:
    assert load(None, {"MESHNODE_MESH_SECRET_FILE": "/s"}).mesh_bind == "auto"


def test_equal_ports_are_fine_when_they_are_chosen_freely() -> None:
    config = load(None, {"MESHNODE_MESH_PORT": "0", "MESHNODE_HTTP_PORT": "0"})
    assert config.mesh.port == config.http.port == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("host", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_described_in_one_line() -> None:
    text = describe(load(None, {"MESHNODE_NODE_NAME": "ann", "MESHNODE_EXECUTION_SLOTS": "2", "HOME": "/h"}))
    assert text == (
        "node ann (core), mesh home founded with 3 core nodes, links on 127.0.0.1:7781, secret none (loopback only), "
        "discovery zeroconf, http on 127.0.0.1:7780, slots 2+100, data /h/.local/share/meshnode"
    )
