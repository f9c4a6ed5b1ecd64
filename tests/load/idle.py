"""Measure what a daemon's processor does for idle machines that check in over TLS: ``python -m tests.load.idle``.

A real ``diskcast serve`` on all addresses, and machines of :mod:`tests.load.machines` in a process of their own. Each
keeps its connection and its long poll, as an agent does. Nothing else happens while the daemon is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil

from tests.support.programs.serving import Daemon

ENROL_LIMIT_S = 300.0
SETTLE_S = 8.0
ALONE_S = 20.0


@click.command()
@click.option("--machines", "machine_count", default=1000, show_default=True)
@click.option(
    "--seconds", default=75.0, show_default=True, help="length of the measurement: three long polls"
)
@click.option("--json", "as_json", is_flag=True)
def main(machine_count: int, seconds: float, as_json: bool) -> None:
    """Print the share of a core that the daemon needs for idle machines."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Daemon(directory / "daemon", encrypted=True, settings={"log": {"level": "info"}}) as daemon:
            time.sleep(SETTLE_S)
            alone = _share(daemon, ALONE_S)
            share, checked_in = _measure(daemon, directory, machine_count, seconds)
    figures = {
        "machines": machine_count,
        "seconds": seconds,
        "cpu_share": share,
        "cpu_share_without_machines": alone,
        "online": checked_in,
    }
    text = (
        f"{machine_count} idle machines over TLS: {share - alone:.1%} of a core for {seconds:g} s, beside "
        f"{alone:.1%} of a daemon without machines (load average {os.getloadavg()[0]:.1f})"
    )
    click.echo(json.dumps(figures) if as_json else text)


def _measure(daemon: Daemon, directory: Path, machine_count: int, seconds: float) -> tuple[float, int]:
    argv = [sys.executable, "-m", "tests.load.machines"]
    argv += [daemon.url, str(machine_count), "1", str(directory / "log")]
    environment = {**os.environ, "DISKCAST_TOKEN": daemon.secret("enrol")}
    machines = subprocess.Popen(argv, env=environment)
    try:
        deadline_s = time.monotonic() + ENROL_LIMIT_S
        while daemon.server()["machines_online"] < machine_count:
            assert time.monotonic() < deadline_s, daemon.describe()
            time.sleep(2)
        time.sleep(30)  # each has checked in by its own secret, and waits
        share = _share(daemon, seconds)
        assert machines.poll() is None
        online = int(daemon.server()["machines_online"])
    finally:
        machines.terminate()
        machines.wait()
    return share, online


def _share(daemon: Daemon, seconds: float) -> float:
    """Return the share of a core that the daemon uses for so many seconds."""
    process = psutil.Process(daemon.program.pid)
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / seconds


if __name__ == "__main__":
    main()
