"""``diskcast casts watch``: a cast watched until it ends, through restarts of its daemon."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Final, Protocol, Self

import pydantic
from rich.console import Group
from rich.live import Live
from rich.text import Text

from protocol.errors import EXIT_OK, CastNotDoneError, ServerRefusedError, ServerUnreachableError
from protocol.shared.units import format_bytes, format_duration, format_rate
from sender.cast.reporting.machine_table import machine_table
from sender.cast.reporting.reporter import JSON_INTERVAL_S, LIVE_INTERVAL_S, PLAIN_INTERVAL_S, ProgressClock
from sender.console.client import EVENTS_SILENCE_S, Client, server_events, to_json
from sender.console.live_records import LiveCastUpdate
from sender.console.lookup import path
from sender.console.output import Output, emit, new_console, print_message, printable, state_text
from sender.console.tables import print_cast_machines
from sender.labels import CAST_PHASES, MACHINE_STATES
from sender.store.records.casts import Cast, CastEvent, CastMachine, CastPhase
from sender.store.records.live import CastLive, LiveCast, LiveMachine
from sender.store.records.machine_states import ACTIVE_STATES, MachineState

_SILENT_MAX_S: Final = 120.0
"""Longer than a restart of the daemon takes."""
_TRANSIENT: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
"""Responses of a daemon that is starting, or whose database is unavailable."""
_RECONNECT_INTERVAL_S: Final = 1.0
_HEADER_LINES: Final = 6


def watch_cast(client: Client, output: Output, cast_id: str) -> int:
    """Show a cast until it ends.

    Raises:
        CastNotDoneError: it ended, but isn't done.
        ServerUnreachableError: the daemon was unavailable for too long.
        ServerRefusedError: there is no such cast, or the token may not see it.
    """
    try:
        with _choose_view(output) as view:
            watched = _WatchedCast()
            for update in _updates(client, cast_id, view.show_outage):
                for event in watched.apply(update):
                    view.show_event(event)
                view.show_progress(watched.live, watched.machines)
    except KeyboardInterrupt:
        if not output.json_lines:
            print_message(f"the cast continues: `diskcast casts watch {cast_id}` shows it again")
        raise
    cast = watched.live.cast
    if not output.json_lines:
        _show_end(client, output, cast)
    if cast.phase is not CastPhase.DONE:
        error = CastNotDoneError(
            f"cast {cast.cast_id} of {cast.image_name} is {cast.phase.value}: {cast.reason or 'no reason recorded'} "
            f"({cast.complete_count} of {cast.required_count} machines complete; `diskcast casts machines "
            f"{cast.cast_id}` lists the others with their errors)"
        )
        error.details = to_json(cast)
        raise error
    if output.json_lines:
        emit("result", ok=True, exit_code=EXIT_OK, **to_json(cast))
    return EXIT_OK


class _WatchedCast:
    """The state of a cast after all updates so far."""

    live: LiveCast

    def __init__(self) -> None:
        self._machines: dict[str, LiveMachine] = {}
        self._last_event: CastEvent | None = None

    @property
    def machines(self) -> list[LiveMachine]:
        return list(self._machines.values())

    def apply(self, update: LiveCastUpdate) -> list[CastEvent]:
        """Apply an update; return its new events."""
        self.live = update.live
        if update.full:
            self._machines.clear()
        self._machines.update({machine.machine_id or machine.name: machine for machine in update.machines})
        events = list(update.events)
        if update.full and self._last_event in events:
            events = events[events.index(self._last_event) + 1 :]
        if events:
            self._last_event = events[-1]
        return events


def _updates(client: Client, cast_id: str, on_outage: Callable[[str], None]) -> Iterator[LiveCastUpdate]:
    """Yield the cast's updates until it has ended; the first and the last are full. Report each outage once."""
    heard_at = time.monotonic()
    known = reported = False
    while True:
        try:
            # A refused or ended cast is noticed at once.
            now = client.get(path("casts", cast_id, "live"), CastLive)
            if now.live.cast.phase.ended:
                yield LiveCastUpdate(cast_id, full=True, live=now.live, machines=now.machines)
                return
            known, reported = True, False
            with client.stream(
                "/events", {"topics": f"cast:{cast_id}"}, silence_s=EVENTS_SILENCE_S
            ) as response:
                for event in server_events(response.iter_lines()):
                    heard_at = time.monotonic()
                    if event is None or event.name != "cast" or event.data.get("cast_id") != cast_id:
                        continue
                    update = pydantic.TypeAdapter(LiveCastUpdate).validate_python(event.data)
                    if update.live.cast.phase.ended:
                        break
                    yield update
        except (ServerUnreachableError, ServerRefusedError) as error:
            transient = isinstance(error, ServerUnreachableError) or error.details["status"] in _TRANSIENT
            if not (known and transient) or time.monotonic() - heard_at > _SILENT_MAX_S:
                raise
            if not reported:
                reported = True
                on_outage(f"daemon unavailable, retrying for {_SILENT_MAX_S:.0f} s: {error}")
            time.sleep(_RECONNECT_INTERVAL_S)


class _View(Protocol):
    """A display of a watched cast."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show_event(self, event: CastEvent) -> None: ...

    def show_outage(self, text: str) -> None: ...

    def show_progress(self, live: LiveCast, machines: list[LiveMachine]) -> None: ...


def _choose_view(output: Output) -> _View:
    if output.json_lines:
        return _JsonView()
    return _LiveView() if sys.stderr.isatty() else _PlainView()


class _StreamView:
    """A view that needs no cleanup."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class _JsonView(_StreamView):
    def __init__(self) -> None:
        self._clock = ProgressClock(JSON_INTERVAL_S)

    def show_event(self, event: CastEvent) -> None:
        fields = to_json(event)
        emit(fields.pop("kind"), **fields)

    def show_outage(self, text: str) -> None:
        emit("daemon_away", text=text)

    def show_progress(self, live: LiveCast, machines: list[LiveMachine]) -> None:
        if self._clock.due() or live.cast.phase.ended:
            emit("progress", **to_json(live), machines=[to_json(machine) for machine in machines])


class _PlainView(_StreamView):
    def __init__(self) -> None:
        self._clock = ProgressClock(PLAIN_INTERVAL_S)

    def show_event(self, event: CastEvent) -> None:
        print_message(event.text or event.kind)

    def show_outage(self, text: str) -> None:
        print_message(text)

    def show_progress(self, live: LiveCast, machines: list[LiveMachine]) -> None:
        if self._clock.due():
            print_message(_status_text(live, len(machines)))


class _LiveView:
    def __init__(self) -> None:
        self._console = new_console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._clock = ProgressClock(LIVE_INTERVAL_S)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show_event(self, event: CastEvent) -> None:
        self._console.print(Text(printable(event.text or event.kind)))

    def show_outage(self, text: str) -> None:
        self._console.print(Text(printable(text), style="yellow"))

    def show_progress(self, live: LiveCast, machines: list[LiveMachine]) -> None:
        if not self._clock.due():
            return
        room = max(1, self._console.height - _HEADER_LINES)
        title = f"cast {live.cast.cast_id} of {live.cast.image_name} ({format_bytes(live.cast.raw_bytes)})"
        parts: list[object] = [Text(printable(title), style="bold"), Text(_status_text(live, len(machines)))]
        if live.bottleneck and live.cast.phase.live:
            parts.append(Text(printable(f"bottleneck: {live.bottleneck}")))
        if machines:
            rows = [_Row.of(machine) for machine in machines]
            parts.append(machine_table(rows, room, noun="machine", state_text=_machine_state_text))
        if len(machines) > room:
            parts.append(Text(f"… and {len(machines) - room} more"))
        self._live.update(Group(*parts), refresh=True)  # type: ignore[arg-type]  # texts and tables


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """A machine as :class:`sender.cast.reporting.machine_table.MachineRow`."""

    name: str
    standing: str
    active: bool
    progress: float
    rate_bytes_per_s: float
    loss: float
    bottleneck: str
    error: str
    nacks_count: int | None = None

    @classmethod
    def of(cls, machine: LiveMachine) -> _Row:
        return cls(
            name=printable(machine.name),
            standing=machine.state,
            active=machine.state in ACTIVE_STATES,
            progress=machine.progress,
            rate_bytes_per_s=machine.rate_bytes_per_s,
            loss=machine.loss,
            bottleneck=printable(machine.bottleneck),
            error=printable(machine.error),
        )


def _machine_state_text(standing: str) -> Text:
    return state_text(MACHINE_STATES[MachineState(standing)])


def _status_text(live: LiveCast, machine_count: int) -> str:
    """Return ``casting, 812 Mbit/s, pass 1 at 42%, 12.3 s, ETA 20.0 s; 3 of 30 complete``."""
    cast = live.cast
    phase = CAST_PHASES[cast.phase].text.lower()
    parts = [f"{phase}, paused" if cast.paused else phase]
    if cast.phase in (CastPhase.CASTING, CastPhase.TAIL):
        parts.append(format_rate(live.achieved_bytes_per_s))
        parts += [f"pass {live.pass_index + 1} at {live.pass_progress:.0%}", format_duration(live.elapsed_s)]
        if live.eta_s is not None:
            parts.append(f"ETA {format_duration(live.eta_s)}")
    required_count = max(cast.required_count, machine_count)
    if cast.phase is CastPhase.GATHERING:
        return f"{', '.join(parts)}; {cast.joined_count} of {required_count} joined"
    failed = f", {cast.failed_count} failed" if cast.failed_count else ""
    return f"{', '.join(parts)}; {cast.complete_count} of {required_count} complete{failed}"


def _show_end(client: Client, output: Output, cast: Cast) -> None:
    took = f", {format_duration(cast.seconds)}" if cast.seconds else ""
    output.done(
        f"{cast.image_name}: {cast.phase.value}, {cast.complete_count} of {cast.required_count} machines complete{took}"
    )
    machines = list(client.listed(path("casts", cast.cast_id, "machines"), CastMachine))
    if machines:
        print_cast_machines(output, machines, limit=None)
