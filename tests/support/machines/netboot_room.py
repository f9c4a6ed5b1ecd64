"""A room that boots from the network: diskcast on one host, blank virtual PCs, and a DHCP server of somebody else."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import prometheus_client.samples
from prometheus_client.parser import text_string_to_metric_families

from sender.netboot.serve.boot_scripts import KERNEL_ARGUMENTS_DEFAULT
from tests.support.machines.boot_network import SERVER_ADDRESS, BootNetwork
from tests.support.machines.virtual_machine import NO_TIMER_CHECK, mac_of
from tests.support.network.lab import (
    INTERFACE,
    LIMIT_S,
    REPOSITORY,
    LabError,
    Program,
    diskcast,
    run,
    wait_until,
)
from tests.support.programs.serving import toml_of
from tests.support.signing import signing_environment

SERVER_URL: Final = f"https://{SERVER_ADDRESS}:7400"
AGENT_STARTED: Final = "diskcast: agent started"
"""Marker of the live system on the console."""
BOOT_LIMIT_S: Final = 600.0
"""Limit from power-on to the agent, or to the prompt of an installed system: firmware, download and start under TCG on
a machine with a load of 19 on two cores took half of it."""
CAST_LIMIT_S: Final = 600.0
"""Limit from the agent's start to the prompt of the new system."""
_BUILD_LIMIT_S: Final = 900.0
"""Limit of a build, most of which is downloading; a quick one takes a minute."""


class NetbootRoom:
    """A boot network with the daemon and, once started, the boot services; a context manager that ends everything.

    Commands run as an operator would type them, on the host of the daemon, without ``--server``, ``--pin`` or
    ``--token-file``: they find the daemon of their user.
    """

    def __init__(self, folder: Path, tap_count: int = 2) -> None:
        self.folder = folder
        self.network = BootNetwork(folder / "network", tap_count)
        self.images = folder / "images"
        self.images.mkdir()
        self.environment = {"XDG_STATE_HOME": str(folder / "state"), **signing_environment()}
        self._config = folder / "diskcast.toml"
        self._boot_log = folder / "boot-services.log"
        self.daemon: Program | None = None
        self._machines: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            self.dhcp = self.network.start_dhcp()
            self.start_daemon()
        except BaseException:
            self.network.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.network.__exit__(kind, error, traceback)

    # -- the operator's commands ------------------------------------------------------------------------------

    def command(self, *arguments: str | Path) -> str:
        """Run a ``diskcast`` command on the daemon's host and return its standard output.

        Raises:
            LabError: it failed.
        """
        return self._run(self.network.server_prefix, arguments, LIMIT_S)

    def _run(self, prefix: Sequence[str], arguments: Sequence[str | Path], timeout_s: float) -> str:
        done = subprocess.run(
            [*prefix, *diskcast(*arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
        )
        if done.returncode:
            raise LabError(
                f"`diskcast {' '.join(map(str, arguments))}` ended with {done.returncode}:\n{done.stdout[-4000:]}"
                f"{done.stderr[-4000:]}"
            )
        return done.stdout

    def ask(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """Run a command with ``--json`` and return its lines."""
        return [json.loads(line) for line in self.command(*arguments, "--json").splitlines() if line.strip()]

    def metrics(self) -> Iterator[prometheus_client.samples.Sample]:
        """Yield the daemon's metrics."""
        text = run(
            *(*self.network.server_prefix, "curl", "--silent", "--fail", "--insecure"),
            *("--header", "@-", f"{SERVER_URL}/metrics"),
            text=f"Authorization: Bearer {self.operator_token}",
        )
        for family in text_string_to_metric_families(text):
            yield from family.samples

    def start(self, *arguments: str | Path) -> Program:
        """Start a ``diskcast`` command that runs until the end of the room."""
        return self.network.start(self.network.server_prefix, diskcast(*arguments), self.environment)

    def restart_dhcp(self, *options: str) -> None:
        """Replace the network's DHCP server by one with these additional lines of configuration."""
        self.dhcp.stop()
        self.dhcp = self.network.start_dhcp(*options)

    def secure_boot_dhcp_options(self) -> list[str]:
        """Return the lines for dnsmasq with Secure Boot, as ``netboot print-config`` prints them."""
        text = self.command(
            "netboot", "print-config", "dnsmasq", "--address", SERVER_ADDRESS, "--secure-boot"
        )
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    # -- parts ------------------------------------------------------------------------------------------------

    def start_daemon(self, settings: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Start ``diskcast serve`` for the whole network, and wait until it answers."""
        sections: dict[str, dict[str, object]] = {
            "server": {
                "listen": "0.0.0.0:7400",
                "state_directory": str(self.folder / "state/diskcast"),
            },
            "network": {"interface": INTERFACE},
            "library": {"folders": [str(self.images)], "scan_interval_s": 0.5},
        }
        for section, keys in (settings or {}).items():
            sections.setdefault(section, {}).update(keys)
        self._config.write_text(toml_of(sections))
        daemon = self.daemon = self.start("serve", "--config", self._config)

        def ready() -> bool:
            if daemon.exit_code is not None:
                raise LabError(f"the daemon has ended: {daemon.describe()}")
            return "diskcast serves " in daemon.stderr_text()

        wait_until("the daemon serves", ready, describe=daemon.describe)

    @property
    def pin(self) -> str:
        """The pin of the daemon's certificate."""
        return str(json.loads((self.folder / "state/diskcast/api.json").read_text())["pin"])

    @property
    def operator_token(self) -> str:
        """The token that the daemon made for its operator."""
        return (self.folder / "state/diskcast/operator-token").read_text().strip()

    def build_medium(self, folder: Path, *options: str) -> Path:
        """Build a boot medium, which trusts this room's daemon and signing key, into ``folder``.

        It runs outside of the room's network, from which no package can be downloaded.
        """
        self._run(("nice", "-n", "10"), ("netboot", "build", "-o", folder, *options), _BUILD_LIMIT_S)
        return folder

    def start_boot_services(self, medium: Path, *options: str, words: Sequence[str] = ()) -> Program:
        """Start ``diskcast netboot serve`` beside the foreign DHCP server, and wait until it serves.

        Its log goes into a file: the decisions of a long run are more than :class:`Program` keeps.

        Args:
            medium: the boot medium.
            options: of the command.
            words: more words of the live system's kernel command line.
        """
        line = " ".join((KERNEL_ARGUMENTS_DEFAULT, NO_TIMER_CHECK, *words))
        serve = ("netboot", "serve", medium, "--interface", INTERFACE, "--kernel-arguments", line)
        command = diskcast(*serve, *options)
        shell = ["sh", "-c", 'exec "$@" 2>> "$0"', str(self._boot_log), *command]
        earlier_bytes = len(self.boot_log)
        services = self.network.start(self.network.server_prefix, shell, self.environment)

        def ready() -> bool:
            if services.exit_code is not None:
                raise LabError(f"the boot services have ended: {self.boot_log[-2000:]}")
            return "diskcast serves boots" in self.boot_log[earlier_bytes:]

        wait_until("the boot services serve", ready, describe=lambda: self.boot_log[-2000:])
        return services

    @property
    def boot_log(self) -> str:
        """The log of the boot services."""
        return self._boot_log.read_text(errors="replace") if self._boot_log.exists() else ""

    def add_image(self, raw: Path, name: str, *options: str) -> None:
        """Pack a raw disk into the library, and wait until the daemon lists it."""
        packed = self.images / f"{name}.dci"
        self.command("pack", raw, "-o", packed, "--name", name, *options)
        wait_until(
            f"{name} is in the library",
            lambda: any(
                i.get("name") == name and i.get("state") == "available" for i in self.ask("images", "list")
            ),
        )

    def create_room(self, name: str, machines: Mapping[str, int], *options: str) -> None:
        """Create a room with machines, given as names and taps."""
        self.command("rooms", "create", name, *options)
        self._machines[name] = tuple(machines)
        if machines:
            text = io.StringIO()
            rows: Iterable[tuple[str, str]] = ((machine, mac_of(tap)) for machine, tap in machines.items())
            csv.writer(text).writerows([("name", "mac"), *rows])
            listing = self.folder / f"{name}.csv"
            listing.write_text(text.getvalue())
            self.command("rooms", "import", name, listing)

    def cast_to(self, image: str, room: str, *options: str) -> Program:
        """Plan a cast and watch it; the program ends with the cast."""
        return self.start("casts", "create", image, "--room", room, "--watch", *options)

    def remove_room(self, name: str) -> None:
        """Remove a room and its machines, so that another test can use their MAC addresses."""
        for machine in self._machines.pop(name):
            self.command("machines", "remove", machine)
        self.command("rooms", "remove", name)
