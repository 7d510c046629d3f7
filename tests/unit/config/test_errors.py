# ruff: noqa: E501 - the lines are shown as a person reads them
"""Every way to get the configuration wrong, and the line a person reads then."""

from pathlib import Path

import pytest

from node.config import ConfigError, check_files, load, make_data_dir
from node.settings import CONFIG_BYTES_MAX, SECTIONS


def line(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> str:
    """The error line for a file of this text, without its folder."""
    path = tmp_path / "core.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


KEYS = {name: ", ".join(kind.__struct_fields__) for name, kind in SECTIONS.items()}

CASES = [
    (
        "[mesh]\nprot = 7781",
        f"core.toml: [mesh] prot: found an unknown key (7781), allowed: {KEYS['mesh']}; nearest valid key: [mesh] port",
    ),
    (
        "[mesh]\nslots = 2",
        f"core.toml: [mesh] slots: found an unknown key (2), allowed: {KEYS['mesh']}; "
        "nearest valid key: [execution] slots",
    ),
    (
        "[mesh]\nxyzzyx = 2",
        f"core.toml: [mesh] xyzzyx: found an unknown key (2), allowed: {KEYS['mesh']}",
    ),
    (
        "[http]\ntoken-file = 'x'",
        f"core.toml: [http] token-file: found an unknown key ('x'), allowed: {KEYS['http']}; "
        "nearest valid key: [http] token_file",
    ),
    (
        "[mseh]\nport = 1",
        "core.toml: [mseh]: found an unknown section, allowed: [node], [mesh], [http], [execution], [log]; "
        "nearest valid section: [mesh]",
    ),
    (
        "port = 7780",
        "core.toml: port: found a key outside a section (7780), allowed: sections [node], [mesh], [http], "
        "[execution], [log]; nearest valid key: [mesh] port",
    ),
    ("mesh = 3", "core.toml: mesh: found 3, allowed: a section [mesh]"),
    (
        "[node]\nlabels = { rack = '7', gpu = 1 }",
        "core.toml: [node] labels: found 'gpu' = 1, allowed: a table of names (letters, digits, `_.-`) and strings, "
        "each of at most 64 characters",
    ),
    ("[mesh]\nport = '7781'", "core.toml: [mesh] port: found '7781', allowed: a whole number from 0 to 65535"),
    ("[mesh]\nport = 70000", "core.toml: [mesh] port: found 70000, allowed: a whole number from 0 to 65535"),
    ("[mesh]\nport = 7781.0", "core.toml: [mesh] port: found 7781.0, allowed: a whole number from 0 to 65535"),
    ("[mesh]\nport = true", "core.toml: [mesh] port: found true, allowed: a whole number from 0 to 65535"),
    ("[mesh]\nport = 2026-01-01", "core.toml: [mesh] port: found a date, allowed: a whole number from 0 to 65535"),
    ("[mesh]\nzeroconf = 1", "core.toml: [mesh] zeroconf: found 1, allowed: true or false"),
    ("[mesh]\nbootstrap_expect = 2", "core.toml: [mesh] bootstrap_expect: found 2, allowed: 1, 3, 5 or 7"),
    ("[mesh]\nseeds = 'a:1'", "core.toml: [mesh] seeds: found 'a:1', allowed: a list of strings (64 at most)"),
    ("[mesh]\nseeds = [1]", "core.toml: [mesh] seeds: found 1 in a list, allowed: a list of strings (64 at most)"),
    ("[mesh]\ninterfaces = 'eth0'", "core.toml: [mesh] interfaces: found 'eth0', allowed: \"auto\" or a list of strings"),
    (
        "[mesh]\nname = 'My Mesh'",
        "core.toml: [mesh] name: found 'My Mesh', allowed: a string of 1 to 63 lower-case letters, digits and dashes",
    ),
    ("[node]\ntier = 'Core'", "core.toml: [node] tier: found 'Core', allowed: \"auto\", \"core\", \"edge\" or \"leaf\""),
    ("[node]\nname = \"a\\nb\"", r"core.toml: [node] name: found 'a\nb', allowed: a string of at most 63 characters"
     " without control characters"),
    ("[node]\ndata_dir = ''", "core.toml: [node] data_dir: found '', allowed: a string that is not empty"),
    ("[log]\nlevel = {}", "core.toml: [log] level: found a table, allowed: \"debug\", \"error\", \"info\" or \"warning\""),
    (
        "[mesh]\nbind = '0.0.0.0'",
        "core.toml: [mesh] bind: found '0.0.0.0' without [mesh] secret_file, allowed: a loopback address, or a "
        "secret_file made by `meshnode secret new`",
    ),
    ("[http]\nbind = '[::1]'", "core.toml: [http] bind: found '[::1]', allowed: an IP address or a host name"),
    ("[mesh]\nbind = '1.2.3.4.5'", "core.toml: [mesh] bind: found '1.2.3.4.5', allowed: `auto`, an IP address or a host name"),
    ("[mesh]\nseeds = ['a']", "core.toml: [mesh] seeds: found 'a', allowed: entries of the form \"host:port\", port 1 to 65535"),
    ("[mesh]\nseeds = ['::1:80']", "core.toml: [mesh] seeds: found '::1:80', allowed: entries of the form \"host:port\", "
     "port 1 to 65535"),
    ("[mesh]\nadvertise = 'a:0'", "core.toml: [mesh] advertise: found 'a:0', allowed: \"host:port\" with a port of "
     "1 to 65535, or empty"),
    ("[mesh]\ninterfaces = []", "core.toml: [mesh] interfaces: found an empty list, allowed: \"auto\", one or more names, "
     "or zeroconf = false"),
    (
        "[mesh]\nzeroconf = false",
        "core.toml: [mesh] zeroconf: found bootstrap_expect = 3 with zeroconf = false and no seeds: nobody could be "
        "found, allowed: bootstrap_expect = 1, zeroconf = true, or at least one of seeds",
    ),
    (
        "[http]\nbind = '0.0.0.0'",
        "core.toml: [http] bind: found '0.0.0.0' without [http] token_file, allowed: a loopback address, a token_file, "
        "or allow_unauthenticated = true",
    ),
    ("[http]\nport = 7781", "core.toml: [http] port: found 7781 for both [mesh] port and [http] port, allowed: two "
     "different ports"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text.replace("\n", " ") for text, _ in CASES])
def test_a_file_that_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    assert line(tmp_path, text) == expected


def test_a_file_that_is_no_toml_names_the_place(tmp_path: Path) -> None:
    assert line(tmp_path, "[mesh\n").startswith("core.toml: found invalid TOML:")
    assert "line 1" in line(tmp_path, "[mesh\n")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at 2"):
        load(path, {})


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="allowed: a smaller TOML file"):
        load(path, {})


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: found nothing to read \(no such file or directory\)"):
        load(tmp_path / "no.toml", {})


ENVIRONMENT_CASES = [
    (
        {"MESHNODE_MESH_PROT": "1"},
        "environment: MESHNODE_MESH_PROT: found an unknown variable, allowed: MESHNODE_<SECTION>_<KEY>; "
        "nearest valid variable: MESHNODE_MESH_PORT",
    ),
    (
        {"MESHNODE_MESH_PORT": "many"},
        "environment: MESHNODE_MESH_PORT: found 'many', allowed: a whole number from 0 to 65535",
    ),
    (
        {"MESHNODE_MESH_ZEROCONF": "maybe"},
        "environment: MESHNODE_MESH_ZEROCONF: found 'maybe', allowed: true or false",
    ),
    (
        {"MESHNODE_MESH_BOOTSTRAP_EXPECT": "4"},
        "environment: MESHNODE_MESH_BOOTSTRAP_EXPECT: found 4, allowed: 1, 3, 5 or 7",
    ),
    (
        {"MESHNODE_HTTP_BIND": "10.0.0.1"},
        "environment: MESHNODE_HTTP_BIND: found '10.0.0.1' without [http] token_file, allowed: a loopback address, a "
        "token_file, or allow_unauthenticated = true",
    ),
]


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENT_CASES, ids=[next(iter(e)) for e, _ in ENVIRONMENT_CASES])
def test_a_variable_that_is_wrong(environ: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    assert str(caught.value) == expected


def test_files_that_are_missing_or_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text("[mesh]\nsecret_file = 'secret'\n")
    config = load(path, {})
    secret = tmp_path / "secret"
    with pytest.raises(
        ConfigError, match=r"\[mesh\] secret_file: found .* \(no such file or directory\), allowed: a file "
    ):
        check_files(config)
    secret.mkdir()
    with pytest.raises(ConfigError, match="not a file"):
        check_files(config)
    secret.rmdir()
    secret.write_text("x")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match=f"permissions 644.*run: chmod 600 {secret}"):
        check_files(config)
    secret.chmod(0o600)
    check_files(config)


@pytest.mark.parametrize(("folder", "reason"), [("file", "not a folder"), ("file/below", "not a folder")])
def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "core.toml").write_text(f"[node]\ndata_dir = '{folder}'")
    with pytest.raises(ConfigError, match=rf"core.toml: \[node\] data_dir: found '{tmp_path}/{folder}' \({reason}\)"):
        make_data_dir(load(tmp_path / "core.toml", {}))
