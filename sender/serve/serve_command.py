"""``diskcast serve``: its options, and its log."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import click

from protocol.errors import MissingDependencyError

_NEEDED_MODULES = (
    "alembic",
    "asyncio_dgram",
    "cronsim",
    "fastapi",
    "fsspec",
    "sqlalchemy",
    "structlog",
    "uvicorn",
)
CONFIG_DEFAULT = Path("/etc/diskcast/diskcast.toml")


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    show_default=f"{CONFIG_DEFAULT} if it exists",
    help="Configuration file (TOML).",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    show_default="127.0.0.1:7400",
    help="Address of the dashboard and the API.",
)
@click.option(
    "--interface",
    metavar="IF",
    show_default="the only one",
    help="Network interface of the rooms, e.g. eth1.",
)
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of images, watched; repeat for several.",
)
@click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="/var/lib/diskcast, or ~/.local/state/diskcast",
    help="Directory for the database and other state of the daemon.",
)
@click.option(
    "--database", metavar="URL", show_default="SQLite", help="PostgreSQL database, as postgresql://… URL."
)
@click.option(
    "--rate-ceiling",
    metavar="RATE",
    show_default="none",
    help="Limit of the rate of all casts together, e.g. 900M.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    show_default="info",
    help="Lowest level of messages in the log.",
)
@click.option(
    "--json", "json_lines", is_flag=True, help="Log JSON lines, and report readiness as JSON on stdout."
)
def serve(
    config_path: Path | None,
    listen: str | None,
    interface: str | None,
    images: tuple[Path, ...],
    state_directory: Path | None,
    database: str | None,
    rate_ceiling: str | None,
    log_level: str | None,
    json_lines: bool,
) -> int:
    """Run the daemon: images, rooms and casts, with dashboard, API, metrics and history.

    Options override the configuration file. Every request needs a token. The first one is in a file of the state
    directory; the commands of the same user find it there. An address that other machines can reach speaks only HTTPS,
    with the daemon's own certificate. Ctrl-C or SIGTERM stops the daemon; running casts resume when it is started
    again.

    \b
    Examples:
      diskcast serve
      diskcast serve --images /srv/images --interface eth1
      diskcast serve --listen 0.0.0.0:7400 --interface eth1 --images /srv/images
    """  # noqa: D301  \b is click's, for a paragraph that isn't wrapped
    _require_modules()
    from sender.config.config_file import load_config
    from sender.logs import configure_logging
    from sender.serve.daemon import run_daemon

    if config_path is None and CONFIG_DEFAULT.exists():
        config_path = CONFIG_DEFAULT
    config = load_config(
        config_path,
        {
            "server.listen": listen,
            "server.state_directory": state_directory,
            "server.database": database,
            "network.interface": interface,
            "network.rate_ceiling": rate_ceiling,
            "library.folders": images or None,
            "log.level": log_level,
            "log.format": "json" if json_lines else None,
        },
    )
    configure_logging(config.log, daemon=config.server.name)

    def report_ready(url: str, pin: str, login_url: str) -> None:
        if json_lines:
            click.echo(json.dumps({"event": "ready", "url": url, "pin": pin}))
            return
        click.echo(
            f"diskcast serves {url}  (Ctrl-C stops it; casts resume when it is started again)", err=True
        )
        if url.startswith("https:"):
            click.echo(
                f"agents and commands recognise it by --pin {pin}; browsers warn until they trust the certificate",
                err=True,
            )
        if sys.stderr.isatty():  # not in a journal: the link logs in
            click.echo(
                f"Open {login_url}  (logs in once; `diskcast dashboard` prints another link)", err=True
            )

    run_daemon(config, report_ready)
    if json_lines:
        click.echo(json.dumps({"event": "result", "ok": True, "exit_code": 0}))
    return 0


def _require_modules() -> None:
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"'diskcast serve' needs {', '.join(missing)}, not installed here: pip install 'diskcast[server]'"
        )
