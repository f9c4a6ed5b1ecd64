"""Read the daemon's configuration: defaults, checks, and errors that name file, key, cause and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "diskcast.toml"
    path.write_text(text)
    return path


def _refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(_written(tmp_path, text))
    return str(caught.value)


def test_without_a_file_the_daemon_serves_this_machine_only() -> None:
    config = load_config(None)
    assert config == ServerConfig()
    assert config.server.endpoint == ("127.0.0.1", 7400)
    assert config.server.loopback
    assert config.network.casts_at_once == 16


def test_the_state_directory_is_the_default_for_all_files(tmp_path: Path) -> None:
    config = load_config(_written(tmp_path, f'[server]\nstate_directory = "{tmp_path}/state"\n'))
    state = tmp_path / "state"
    assert config.server.database == f"sqlite:///{state}/diskcast.db"
    assert config.library.folders == (state / "images",)
    assert config.library.cache_directory == state / "cache"


def test_relative_paths_start_from_the_file_not_from_where_the_daemon_was_started(tmp_path: Path) -> None:
    config = load_config(
        _written(tmp_path, '[server]\nstate_directory = "s"\n[library]\nfolders = ["a", "/b"]\n')
    )
    assert config.server.state_directory == tmp_path / "s"
    assert config.library.folders == (tmp_path / "a", Path("/b"))


def test_a_user_keeps_state_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_config(None).server.state_directory == tmp_path / "diskcast"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the XDG specification: ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(None).server.state_directory == tmp_path / ".local/state/diskcast"


def test_units_are_as_on_the_command_line(tmp_path: Path) -> None:
    config = load_config(
        _written(tmp_path, '[network]\nrate_ceiling = "800M"\n[library]\ncache_size = "1GiB"\n')
    )
    assert config.network.rate_ceiling_bytes_per_s == 100e6
    assert config.library.cache_bytes == 1 << 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[server]\nlisen = "127.0.0.1:1"', ["server.lisen", "unknown key", "did you mean listen"]),
        ("[sever]\nname = 1", ["sever", "unknown table", "did you mean server"]),
        ("[server]\nfolders = []", ["server.folders", "belongs in [library]"]),
        ("[server]\nzzz = 1", ["use one of name, listen"]),
        ("folders = []", ["folders", "belongs in [library]"]),
        ('server = "a"', ["server", "write [server]"]),
        ('[server]\nlisten = "localhost:1"', ["server.listen", "numeric address"]),
        ('[server]\nlisten = ":7400"', ["server.listen", "0.0.0.0:7400"]),
        (
            "[server]\nrequire_tokens = false",
            ["require_tokens", "every daemon requires tokens: remove it"],
        ),
        ('[server]\nlisten = "127.0.0.1:7425"', ["7425", "network.control_ports", "change one of them"]),
        ('[server]\nname = "a/b"', ["server.name", "isn't a valid name"]),
        ('[server]\ndatabase = "mysql://x/y"', ["server.database", "only SQLite and PostgreSQL"]),
        ('[server]\nallowed_hosts = ["http://a"]', ["server.allowed_hosts[0]", "without scheme"]),
        ('[network]\ncontrol_ports = "9-7"', ["network.control_ports", "7421-7436"]),
        ('[network]\ncontrol_ports = "1-65"', ["network.control_ports", "at most 64"]),
        ("[network]\ndata_port = 7430", ["data_port 7430", "choose another data_port"]),
        ('[network]\ngroup_base = "10.0.0.1"', ["network.group_base", "multicast"]),
        ('[network]\ngroup_base = "239.255.255.255"', ["239.255.255.255", "choose a lower one"]),
        ('[network]\nrate_ceiling = "1"', ["network.rate_ceiling", "out of range"]),
        ('[network]\nttl = "many"', ["network.ttl", "integer"]),
        ('[library]\nremotes = ["s3://b/x.dci", "ftp://b/x.dci"]', ["library.remotes[1]", "https://"]),
        ('[library]\nremotes = ["https://b/x.img"]', ["library.remotes[0]", ".dci"]),
        ('[library]\ncache_size = "1K"', ["library.cache_size", "64MiB"]),
        ("[casts]\nresume_wait_s = inf", ["casts.resume_wait_s", "finite"]),
        ("[history]\nretention_days = 0", ["history.retention_days", "greater than or equal to 1"]),
        ('[log]\nlevel = "loud"', ["log.level", "'debug', 'info'"]),
        ("[server\n", ["isn't TOML", "line 1"]),
        ("[server]\nname = rack1\n", ["isn't TOML", "quotes"]),
    ],
)
def test_an_error_names_file_key_cause_and_fix(tmp_path: Path, text: str, words: list[str]) -> None:
    message = _refusal(tmp_path, text)
    for word in ["diskcast.toml", *words]:
        assert word in message


def test_one_error_lists_all_problems(tmp_path: Path) -> None:
    message = _refusal(tmp_path, "a=1\nb=1\nc=1\nd=1\ne=1\nf=1\ng=1\n")
    assert message.count("unknown table or key") == 5
    assert message.endswith("and 2 more")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't read .*none\.toml: No such file"):
        load_config(tmp_path / "none.toml")
    path = tmp_path / "diskcast.toml"
    path.write_bytes(b"[server]\nname = '\xff'\n")
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        load_config(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigurationError, match="isn't a configuration"):
        load_config(path)


def test_options_override_the_file_and_their_errors_name_the_command_line(tmp_path: Path) -> None:
    path = _written(tmp_path, '[server]\nname = "rack1"\nlisten = "127.0.0.1:1"\n')
    config = load_config(path, {"server.listen": "[::1]:7500", "network.interface": None})
    assert config.server.endpoint == ("::1", 7500)
    assert config.server.name == "rack1"
    with pytest.raises(ConfigurationError, match=r"^command line: server.listen"):
        load_config(path, {"server.listen": "x"})


def test_the_database_password_stays_out_of_the_file_and_of_messages(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s/e:c@ret\n")
    text = '[server]\ndatabase = "postgresql://diskcast@db/diskcast"\ndatabase_password_file = "password"\n'
    config = load_config(_written(tmp_path, text))
    assert config.server.database == "postgresql+psycopg://diskcast:s%2Fe%3Ac%40ret@db/diskcast"
    assert config.server.database_shown == "postgresql+psycopg://diskcast:***@db/diskcast"
    assert "ret" not in repr(config).replace("retention", "")
    (tmp_path / "password").write_text("\n")
    assert f"first line of {tmp_path}/password is empty" in _refusal(tmp_path, text)
    (tmp_path / "password").unlink()
    assert "can't read" in _refusal(tmp_path, text)
    assert "without a password" in _refusal(tmp_path, text.replace("diskcast@", "diskcast:secret@"))


def test_the_error_of_a_wrong_database_url_hides_its_password(tmp_path: Path) -> None:
    assert "hunter2" not in _refusal(tmp_path, '[server]\ndatabase = "mysql://u:hunter2@h/d"')
