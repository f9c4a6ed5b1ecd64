"""Check everything that the daemon needs: configuration, files, database, ports, network and system limits.

Changes nothing and doesn't disturb a running daemon.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from protocol.program.pinned_tls import unpinned_context
from sender.addresses import parse_group
from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig
from sender.doctor.certificate_doctor import judge_daemon_certificate
from sender.doctor.files_doctor import judge_library, judge_permissions, judge_state_directory
from sender.doctor.system_doctor import clock_is_synchronised, judge_clock, judge_limits

SERVER_MODULES = (
    "aiohttp",
    "alembic",
    "cronsim",
    "fsspec",
    "httpx",
    "pydantic",
    "s3fs",
    "sqlalchemy",
    "structlog",
)
"""Modules that the daemon needs besides those of ``diskcast send``."""

HEALTH_TIMEOUT_S: Final = 3.0
"""Time for a daemon on this machine to answer its health check."""


def examine_server(config_path: Path | None, interface: str | None = None) -> list[Finding]:
    """Check everything that the daemon of a configuration needs; takes seconds and changes nothing.

    Args:
        config_path: as for ``diskcast serve --config``.
        interface: network interface to check instead of the configured one.
    """
    from sender.doctor.database_doctor import examine_database

    found = [_modules()]
    try:
        config = load_config(config_path, {"network.interface": interface})
    except ConfigurationError as error:
        fix = "correct the file; docs/reference/configuration.md lists all keys"
        return [*found, fail("configuration", str(error), fix)]
    found.append(ok("configuration", str(config_path) if config_path else "no file; using the defaults"))
    found += judge_permissions(config, config_path)
    found += judge_state_directory(config.server.state_directory)
    found += judge_daemon_certificate(config.server)
    found += examine_database(config)
    found += judge_library(config)
    running = _daemon_answers(config)
    found += judge_ports(config, running)
    found += _network(config)
    found.append(judge_clock(clock_is_synchronised()))
    found += judge_limits()
    return found


def _modules() -> Finding:
    missing = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        detail = f"not installed: {', '.join(missing)}"
        return fail("daemon", detail, "pip install 'diskcast[server]'")
    return ok("daemon", "all required modules are installed")


def _daemon_answers(config: ServerConfig) -> bool:
    """Return True if a diskcast daemon answers at the configured address."""
    address, port = config.server.endpoint
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  it's compared, not bound
    scheme = "http" if config.server.loopback else "https"
    url = f"{scheme}://[{host}]:{port}/healthz" if ":" in host else f"{scheme}://{host}:{port}/healthz"
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unpinned_context())
    )
    try:
        with opener.open(url, timeout=HEALTH_TIMEOUT_S) as answer:
            body = json.loads(answer.read(4096))
    except (OSError, ValueError):  # no answer, another program, or no JSON
        return False
    return isinstance(body, dict) and {"status", "database"} <= body.keys()


def judge_ports(config: ServerConfig, running: bool) -> list[Finding]:
    """Check that the daemon's ports are free, or held by the daemon itself.

    Args:
        config: the configuration with the ports.
        running: True if a daemon already answers.
    """
    address, port = config.server.endpoint
    check = f"port {config.server.listen}"
    if running:
        found = [ok(check, "in use by a diskcast daemon")]
    elif (problem := _tcp_problem(address, port)) is not None:
        found = [
            fail(check, problem, f"ss -ltnp 'sport = :{port}' shows the program; or change server.listen")
        ]
    else:
        reach = "only from this machine" if config.server.loopback else "from other machines, with tokens"
        found = [ok(check, f"free; the daemon will be reachable {reach}")]
    ports = config.network.control_port_range
    held = [port for port in ports if _tcp_problem("0.0.0.0", port) or _udp_held(port)]  # noqa: S104
    check = f"ports {config.network.control_ports} of casts"
    if not held:
        found.append(ok(check, f"free: {len(ports)} casts can run at once"))
    elif running:
        found.append(ok(check, f"{len(held)} of {len(ports)} in use by running casts"))
    else:
        detail = f"in use by another program: {', '.join(map(str, held))}"
        judge = fail if len(held) == len(ports) else warn
        found.append(
            judge(check, detail, f"ss -lptun 'sport = :{held[0]}' shows it; or change network.control_ports")
        )
    return found


def _tcp_problem(address: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the daemon does: a closed connection lingers
        try:
            sock.bind((address, port))
            sock.listen(1)
        except OSError as error:
            return f"can't listen on {address} port {port}: {os.strerror(error.errno or 0)}"
    return None


def _udp_held(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return True
    return False


def _network(config: ServerConfig) -> list[Finding]:
    """Run the checks of ``diskcast doctor`` with the daemon's groups and the first free port."""
    from sender.doctor.sender_doctor import examine

    network = config.network
    ports = network.control_port_range
    free = next((port for port in ports if not _tcp_problem("0.0.0.0", port) and not _udp_held(port)), 0)  # noqa: S104
    group = parse_group(network.group_base)
    return examine(network.interface, group=group, port=network.data_port, control=(None, free))
