"""Tests of Containerfile, compose file and example configuration: every name in them exists, and they agree."""

from __future__ import annotations

import fnmatch
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig, sections

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
yaml = pytest.importorskip("yaml", reason="PyYAML isn't installed")


# -- example configuration -------------------------------------------------------------------------------------


def test_the_example_configuration_has_every_key_with_its_default(tmp_path: Path) -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))
    text = (DEPLOY / "diskcast.toml").read_text()
    assert text.rstrip() == reference["render_example"]().rstrip(), "run `make docs`"
    path = tmp_path / "diskcast.toml"
    path.write_text(text)
    assert load_config(path) == load_config(None, {"server.state_directory": "/var/lib/diskcast"})
    document = tomllib.loads(re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE))
    for name, section in sections().items():
        assert document[name].keys() == section.model_fields.keys()
        for key, field in section.model_fields.items():
            if not (field.json_schema_extra or {}):
                assert document[name][key] == field.default, key


def test_every_value_of_the_example_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "diskcast.toml"
    text = re.sub(r"^#(?=[a-z_]+ = )", "", (DEPLOY / "diskcast.toml").read_text(), flags=re.MULTILINE)
    (tmp_path / "password").write_text("hunter2\n")
    path.write_text(
        text.replace("/run/credentials/diskcast.service/database-password", str(tmp_path / "password"))
    )
    assert load_config(path).server.database_password_file == tmp_path / "password"


def test_the_reference_page_has_every_key() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    reference = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))
    assert page.partition("\n")[2].rstrip() == reference["render"]().rstrip(), "run `make docs`"


# -- container -------------------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace(
        "\\\n", " "
    )
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def _of(name: str) -> list[str]:
    return [rest for instruction, rest in _instructions() if instruction == name]


def _ignored(path: str) -> bool:
    ignored = False
    for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if (
            line
            and not line.startswith("#")
            and (fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"))
        ):
            ignored = not line.startswith("!")
    return ignored


def test_what_the_image_is_made_of_is_there_and_reaches_the_builder() -> None:
    sources = [part for rest in _of("COPY") if "--from=" not in rest for part in shlex.split(rest)[:-1]]
    assert "sender" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not _ignored(source), source
    for secret in (
        ".git/config",
        "deploy/secrets/database-password",
        "deploy/compose.yaml",
        ".venv/bin/python",
    ):
        assert _ignored(secret)


def test_the_image_is_made_of_locked_packages_and_runs_without_root() -> None:
    runs = " ".join(_of("RUN"))
    assert "--require-hashes" in runs
    assert "--no-index" in runs
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _of("USER")[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.search(r"'\.\[(\w+)\]'", runs)[1] in project["optional-dependencies"]  # type: ignore[index]
    assert yaml.safe_load(_of("ENTRYPOINT")[0])[0] in project["scripts"]


def test_images_are_named_without_a_registry() -> None:
    compose = _compose()
    names = [rest.split()[0] for rest in _of("FROM")] + [
        service["image"] for service in compose["services"].values()
    ]
    for name in names:
        first = name.split("/")[0] if "/" in name else ""
        assert "." not in first, name
        assert ":" not in first, name


def test_health_is_asked_where_the_container_listens() -> None:
    port = load_config(
        DEPLOY / "compose/diskcast.toml", {"server.database_password_file": __file__}
    ).server.endpoint[1]
    assert f"127.0.0.1:{port}/healthz" in _of("HEALTHCHECK")[0]
    assert _of("EXPOSE") == [f"{port}/tcp"]
    assert _of("CMD")[0] == '["serve", "--config", "/etc/diskcast/diskcast.toml"]'
    compile(yaml.safe_load(_of("HEALTHCHECK")[0].partition("CMD ")[2])[2], "healthcheck", "exec")


# -- compose ---------------------------------------------------------------------------------------------------


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_what_the_compose_file_mounts_is_there() -> None:
    compose = _compose()
    mounted = []
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source, target = re.match(r"(\$\{[^}]*\}|[^:]+):([^:]+)", volume).groups()  # type: ignore[union-attr]
            mounted.append(target)
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("$"):
                assert source in compose["volumes"]
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
    assert set(compose["volumes"]) == {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "$"))
    }
    build = compose["services"]["diskcast"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/diskcast.yml").read_text())[
        "providers"
    ][0]
    assert provider["options"]["path"] in mounted


def test_everything_speaks_to_everything_on_the_host_network() -> None:
    """Multicast needs the host's network, so local services must listen on the loopback address only."""
    services = _compose()["services"]
    assert {service["network_mode"] for service in services.values()} == {"host"}
    assert "listen_addresses=127.0.0.1" in services["database"]["command"]
    address = next(
        option.partition("=")[2]
        for option in services["prometheus"]["command"]
        if option.startswith("--web.listen-address=")
    )
    assert address.startswith("127.0.0.1:")
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/diskcast.yml").read_text())[
        "datasources"
    ]
    assert source["url"].split("//")[1].replace("localhost", "127.0.0.1") == address
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_the_daemon_of_the_compose_file_finds_its_database_images_and_metrics(tmp_path: Path) -> None:
    compose = _compose()
    (tmp_path / "password").write_text("hunter2\n")
    path = DEPLOY / "compose/diskcast.toml"
    config = load_config(path, {"server.database_password_file": str(tmp_path / "password")})
    named = _document(path)
    service = compose["services"]["diskcast"]
    secret = Path(named["server"]["database_password_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in service["secrets"]
    targets = [volume.rpartition(":ro")[0] or volume for volume in service["volumes"]]
    assert any(target.endswith(f":{config.library.folders[0]}") for target in targets)
    assert any(target.endswith(f":{config.server.state_directory}") for target in targets)
    database = compose["services"]["database"]["environment"]
    expected = (
        f"postgresql+psycopg://{database['POSTGRES_USER']}:hunter2@127.0.0.1:5432/{database['POSTGRES_DB']}"
    )
    assert config.server.database == expected
    assert config.metrics.public, "Prometheus has no token"
    prometheus = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    assert f"localhost:{config.server.endpoint[1]}" in str(prometheus)
    assert prometheus["scrape_configs"][0]["scheme"] == "https"
    assert not config.server.loopback
    assert ServerConfig().server.endpoint[1] == config.server.endpoint[1]


def _document(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: path.name)
def test_no_configuration_names_a_registry(path: Path) -> None:
    if path.is_file() and path.suffix != ".md":
        text = path.read_text()
        assert not re.search(r"(docker|quay|ghcr|gcr|pypi|registry)[.-]?\w*\.(io|com|org|dev)", text)
