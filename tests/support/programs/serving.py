"""A real daemon and its real agents on this machine's loopback interface, to be killed, restarted and robbed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from protocol.program.pinned_tls import unpinned_context
from sender.identity.certificate import find_certificate
from tests.support.network.lab import LIMIT_S, LabError, Program, diskcast, diskcast_agent, wait_until
from tests.support.network.ports import free_port_range

_CASTS_AT_ONCE: Final = 4
_draw: Final = random.Random(os.getpid())
_serial: Final = itertools.count()


def toml_of(sections: Mapping[str, Mapping[str, object]]) -> str:
    """A configuration: texts, numbers, truth and lists are written in TOML as in JSON."""
    lines: list[str] = []
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


class Daemon:
    """``diskcast serve`` with a state directory and ports of its own; a context manager that ends it.

    Args:
        directory: for its state and configuration; made if it isn't there.
        name: what it calls itself.
        settings: keys by section, beside those that are needed here.
        state_directory: elsewhere than in ``directory``.
        prefix: what runs it, e.g. as another user.
        environment: added to this process's.
        encrypted: whether it listens on all addresses, with TLS and tokens, instead of the loopback address alone.

    Attributes:
        api: a client of its API.
        programs: its runs so far, the last one being the present one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "",
        settings: Mapping[str, Mapping[str, object]] | None = None,
        state_directory: Path | None = None,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        encrypted: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name or f"daemon{next(_serial)}"
        self.state_directory = state_directory or directory / "state"
        self.config_path = directory / "diskcast.toml"
        self.images = directory / "images"
        self.images.mkdir(exist_ok=True)
        api_port, data_port, *control_ports = free_port_range(2 + _CASTS_AT_ONCE)
        self.url = f"{'https' if encrypted else 'http'}://127.0.0.1:{api_port}"
        sections: dict[str, dict[str, object]] = {
            "server": {
                "name": self.name,
                "listen": f"{'0.0.0.0' if encrypted else '127.0.0.1'}:{api_port}",
                "state_directory": str(self.state_directory),
            },
            "network": {
                "interface": "lo",
                "group_base": f"239.255.{_draw.randrange(100, 250)}.{_draw.randrange(1, 200)}",
                "data_port": data_port,
                "control_ports": f"{control_ports[0]}-{control_ports[-1]}",
            },
            "library": {"folders": [str(self.images)], "scan_interval_s": 0.2},
            "log": {"format": "json", "level": "debug"},
        }
        for section, keys in (settings or {}).items():
            sections.setdefault(section, {}).update(keys)
        self.config_path.write_text(toml_of(sections))
        self._prefix = prefix
        self._environment = environment
        self.programs: list[Program] = []
        self._secrets: dict[str, str] = {}
        self.api = httpx.Client(
            base_url=f"{self.url}/api/v1", timeout=LIMIT_S, trust_env=False, verify=unpinned_context()
        )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def program(self) -> Program:
        return self.programs[-1]

    @property
    def token_file(self) -> Path:
        """The first operator's."""
        return self.state_directory / "operator-token"

    def secret(self, role: str) -> str:
        """Return the secret of a token of ``role``, which is made on the first call."""
        if role not in self._secrets:
            made = self.ask("POST", "/tokens", {"name": f"{self.name} {role}", "role": role})
            self._secrets[role] = made["secret"]
        return self._secrets[role]

    @property
    def pin(self) -> str:
        """The pin of its certificate, once it has started."""
        certificate = find_certificate(self.state_directory)
        assert certificate is not None
        return certificate.pin

    def start(self, *, ready: bool = True) -> None:
        """Start it and, unless it isn't asked for, wait until it answers."""
        argv = diskcast("serve", "--config", self.config_path)
        self.programs.append(Program(argv, prefix=self._prefix, environment=self._environment))
        if ready:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = LIMIT_S) -> None:
        """Wait until its API answers."""

        def answers() -> bool:
            if self.program.exit_code is not None:
                raise LabError(f"the daemon has ended: {self.describe()}")
            with contextlib.suppress(httpx.TransportError):
                return self.api.get(f"{self.url}/healthz").is_success
            return False

        wait_until("the daemon answers", answers, timeout_s, describe=self.describe)
        if self.token_file.exists():
            self.api.headers["Authorization"] = f"Bearer {self.token_file.read_text().strip()}"

    def kill(self) -> None:
        """End it without a warning, as a power cut would, and wait until it is gone."""
        self.program.signal(signal.SIGKILL)
        self.program.wait(LIMIT_S)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.program.signal(signal.SIGTERM)
        return self.program.wait(LIMIT_S)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it and forget its connections."""
        self.api.close()
        for program in self.programs:
            program.close()

    def describe(self) -> str:
        """State and the end of the log: what a failed test wants to show."""
        return self.program.describe() if self.programs else "not started"

    # -- what tests ask of it -------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """The JSON that it answers.

        Raises:
            LabError: it refused.
        """
        response = self.api.request(method, path, json=body, params=query)
        if not response.is_success:
            raise LabError(f"{method} {path}: {response.status_code} {response.text}; {self.describe()}")
        return response.json() if response.content else None

    def check_in(self, check_in: Mapping[str, Any], token: str = "") -> dict[str, Any]:
        """Check in as an agent does that enrols first; the answer to the check-in with the machine's secret."""
        agent_id = str(check_in["agent_id"])
        headers = {"Authorization": f"Bearer {token or self.secret('enrol')}"}
        if agent_id not in self._secrets:
            enrolment = self.api.post("/check-in", json=check_in, headers=headers)
            self._secrets[agent_id] = enrolment.raise_for_status().json()["machine_secret"]
        headers = {"Authorization": f"Bearer {self._secrets[agent_id]}"}
        answer = self.api.post("/check-in", json=check_in, headers=headers)
        return dict(answer.raise_for_status().json())

    def server(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.ask("GET", "/server"))

    def problems(self) -> dict[str, str]:
        """Kind to text of what an operator should look at."""
        return {problem["kind"]: problem["text"] for problem in self.server()["problems"]}

    def add_image(self, path: Path) -> dict[str, Any]:
        """Put an image into its folder and wait until it is in the library."""
        shown = self.images / path.name
        if not shown.exists():
            os.link(path, shown)

        def found() -> dict[str, Any]:
            images = self.ask("GET", "/images")["items"]
            fitting = (i for i in images if i["location"] == str(shown) and i["state"] == "available")
            return next(fitting, {})

        return wait_until(f"{path.name} is in the library", found, describe=self.describe)

    def create_cast(self, image: str, **plan: Any) -> str:
        """Plan a cast; its id."""
        return str(self.ask("POST", "/casts", {"image": image, **plan})["cast_id"])

    def cast(self, cast_id: str) -> dict[str, Any]:
        """A cast's record now."""
        return dict(self.ask("GET", f"/casts/{cast_id}")["cast"])

    def machines_of(self, cast_id: str) -> dict[str, dict[str, Any]]:
        """Name to what a cast did to the machine."""
        return {row["name"]: row for row in self.ask("GET", f"/casts/{cast_id}/machines")["items"]}

    def live_machines(self, cast_id: str) -> dict[str, dict[str, Any]]:
        """Name to what the machine does now."""
        return {row["name"]: row for row in self.ask("GET", f"/casts/{cast_id}/live")["machines"]}

    def history(self, **query: str) -> list[dict[str, Any]]:
        """The lines of history, the newest first."""
        return list(self.ask("GET", "/history", **query)["items"])

    def wait_phase(self, cast_id: str, *phases: str, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """The cast once it is in one of ``phases``.

        Raises:
            LabError: it ended in another one, or ``timeout_s`` passed.
        """

        def reached() -> dict[str, Any]:
            cast = self.cast(cast_id)
            if cast["phase"] in phases:
                return cast
            if cast["ended_at"] is not None:
                raise LabError(f"cast {cast_id} is {cast['phase']}: {cast['reason']}; {self.describe()}")
            return {}

        return wait_until(
            f"cast {cast_id} is {' or '.join(phases)}", reached, timeout_s, describe=self.describe
        )

    def wait_joined(self, cast_id: str, count: int, timeout_s: float = LIMIT_S) -> None:
        """Wait until ``count`` machines have joined a cast."""

        def joined() -> bool:
            return bool(self.cast(cast_id)["joined_count"] >= count)

        wait_until(f"{count} machines have joined", joined, timeout_s, describe=self.describe)

    def wait_progress(
        self, cast_id: str, progress: float, names: Iterable[str] = (), timeout_s: float = LIMIT_S
    ) -> None:
        """Wait until every machine of a cast, or those of ``names``, have come so far.

        Raises:
            LabError: the cast ended before, or ``timeout_s`` passed.
        """
        wanted = set(names)

        def far() -> bool:
            live = self.ask("GET", f"/casts/{cast_id}/live")
            machines = [row for row in live["machines"] if not wanted or row["name"] in wanted]
            if machines and all(machine["progress"] >= progress for machine in machines):
                return True
            cast = live["live"]["cast"]
            if cast["ended_at"] is not None:
                raise LabError(
                    f"cast {cast_id} is {cast['phase']}: {cast['reason']}; {machines}; {self.describe()}"
                )
            return False

        wait_until(f"cast {cast_id} at {progress:.0%}", far, timeout_s, describe=self.describe)


class ServiceAgent:
    """``diskcast-agent run`` of a machine of its own, with a file as its disk; a context manager that ends it.

    Args:
        directory: of its disk; made if it isn't there.
        name: of the machine; its serial number follows from it.
        daemons: that it checks in with.
        target: elsewhere than in ``directory``.
        options: more of the command line.
        urls: other ways to the daemons.
        interface: network interface of the agent.
        prefix: what runs it, e.g. in another namespace.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        daemons: Iterable[Daemon],
        *,
        target: Path | None = None,
        options: Sequence[str] = (),
        urls: Sequence[str] = (),
        interface: str = "lo",
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.serial = f"SN-{name}"
        self.target = target or directory / f"{name}.disk"
        self._daemons = list(daemons)
        urls = urls or [daemon.url for daemon in self._daemons]
        servers = itertools.chain.from_iterable(("--server", url) for url in urls)
        identity = ("--identity", self.serial)
        where = ("--interface", interface, "--target", self.target)
        state = ("--state-directory", directory / f"{name}.state")
        self._argv = diskcast_agent(
            "run", *servers, *identity, *where, *state, "--name", name, "--json", *options
        )
        self._prefix = prefix
        self.program: Program | None = None

    def __enter__(self) -> Self:
        token = {"DISKCAST_TOKEN": self._daemons[0].secret("enrol")}
        self.program = Program(self._argv, prefix=self._prefix, environment=token)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        if self.program is not None:
            self.program.close()

    def kill(self) -> None:
        """End it without a warning."""
        assert self.program is not None
        self.program.signal(signal.SIGKILL)
        self.program.wait(LIMIT_S)

    def describe(self) -> str:
        """State and the end of its log."""
        return f"{self.name}: {self.program.describe() if self.program else 'not started'}"


def wait_online(daemon: Daemon, names: Iterable[str], timeout_s: float = LIMIT_S) -> dict[str, str]:
    """Name to machine id, once all of these have checked in."""
    wanted = list(names)

    def known() -> dict[str, str]:
        machines = daemon.ask("GET", "/machines", limit="500")["items"]
        seen = {row["name"]: row["machine_id"] for row in machines if row["address"]}
        return {name: seen[name] for name in wanted} if seen.keys() >= set(wanted) else {}

    return wait_until(f"{sorted(wanted)} have checked in", known, timeout_s, describe=daemon.describe)


def seconds_between(first: str, second: str) -> float:
    """Between two times of the API."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
