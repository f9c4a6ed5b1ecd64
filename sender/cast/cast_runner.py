"""One cast from its options to its account: what is made, who runs, how it ends.

::

    event loop:   control API ─┐                        ┌─ timers: ANNOUNCE, FLUSH, EOT, timeouts, progress
                  feedback ────┴──► session (one lock) ─┤
                                                        └─► encoder thread ──► 2 batches ──► transmitter thread
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from protocol.constants import (
    CONTROL_PORT_DEFAULT,
    DATA_HEADER_BYTES,
    DATA_PORT_DEFAULT,
    GROUP_IPV4_DEFAULT,
    MULTICAST_TTL_DEFAULT,
    SOURCE_SYMBOLS_MAX,
)
from protocol.errors import ConfigurationError, DiskcastError
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId, CastParameters
from protocol.sending.events import (
    CastingStarted,
    SenderEvent,
)
from protocol.sending.sender_session import SenderSession
from protocol.shared.units import format_bytes, format_duration
from protocol.wire.messages import END_CANCELLED, END_FAILED, STATE_ENDED
from sender.blocking_calls import start_blocking_call
from sender.cast.batches import BatchQueue
from sender.cast.block_loader import BlockLoader
from sender.cast.control_api import ControlApi, ControlServer, Recognise, as_said
from sender.cast.datagram_output import typed_send_error
from sender.cast.encoder_thread import Encoder
from sender.cast.feedback import FeedbackPort
from sender.cast.locked_session import SharedSession
from sender.cast.network import (
    Interface,
    IpAddress,
    choose_symbol_bytes,
    find_interface,
    parse_endpoint,
    parse_group,
)
from sender.cast.progress import CastIntroduction, ProgressClock, Reporter
from sender.cast.sender_conflicts import RivalWatch
from sender.cast.snapshot import CastSummary, CastView
from sender.cast.sockets import bind_control_sockets, open_announce_listener, open_data_socket
from sender.cast.transmitter import Transmitter
from sender.imaging.image_file import ImageFile
from sender.metrics.metrics_server import CastCollector, metrics_server

_THREADS_END_S: Final = 2.0
"""What the threads get to finish a batch when the cast has ended. One that takes longer is stuck in a read of the
image, which nothing can interrupt, and the program ends without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastOptions:
    """What the operator asked for."""

    image: Path
    interface: str
    policy: CastPolicy
    group: str = GROUP_IPV4_DEFAULT
    port: int = DATA_PORT_DEFAULT
    control: str = f":{CONTROL_PORT_DEFAULT}"
    ttl: int = MULTICAST_TTL_DEFAULT
    symbol_bytes: int | None = None
    cast_id: CastId | None = None
    metrics_address: str = "0.0.0.0"  # noqa: S104  asked for by naming a port, and Prometheus runs elsewhere
    metrics_port: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CastResult:
    """How a cast ended; an error of the sender itself is raised instead."""

    summary: CastSummary
    cancelled: bool
    abandoned: bool = False
    """It wasn't ended: it goes on elsewhere or later."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Sockets:
    data: socket.socket
    control: socket.socket
    feedback: socket.socket
    announcements: socket.socket


def derive_cast_id(image_id: bytes, group: IpAddress, port: int, sender_address: IpAddress) -> CastId:
    """The same for the same command run again, so that a room waits through a restart of its sender."""
    identity = image_id + f"{group}|{port}|{sender_address}".encode()
    return CastId(int.from_bytes(blake3(identity).digest(length=4)))


def run_cast(options: CastOptions, reporter: Reporter) -> CastResult:
    """Run one cast to its end, from the main thread, which gets SIGINT and SIGTERM.

    Raises:
        ConfigurationError: the options can't work; nothing was sent.
        ImageError: the image can't be used, or was altered meanwhile.
        StorageError: the image can't be read any more.
    """
    return asyncio.run(_run_interruptible(options, reporter))


async def _run_interruptible(options: CastOptions, reporter: Reporter) -> CastResult:
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(ImageFile.open(options.image))
        cast = stack.enter_context(open_cast(options, image, reporter))
        metrics_port = None
        if options.metrics_port is not None:
            collector = CastCollector(cast.shared, cast.transmitter.statistics, cast.feedback)
            metrics_port = stack.enter_context(
                metrics_server(collector, options.metrics_address, options.metrics_port)
            )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cast.interrupt)
            stack.callback(loop.remove_signal_handler, number)
        return await cast.run(metrics_port=metrics_port)


@contextlib.contextmanager
def open_cast(
    options: CastOptions, image: ImageFile, reporter: Reporter, recognise: Recognise = as_said
) -> Iterator[CastRun]:
    """A cast with its sockets, to be run in the event loop that runs now.

    Args:
        options: what the operator asked for.
        image: the image of ``options``, opened; the caller closes it.
        reporter: is told how it goes.
        recognise: says who it is that joins, if that is known better than the machine itself knows it.

    Raises:
        ConfigurationError: the options can't work; nothing was sent.
    """
    interface = find_interface(options.interface)
    group = parse_group(options.group)
    address = interface.address_for(group)
    symbol_bytes = choose_symbol_bytes(interface, group.version, options.symbol_bytes)
    _check_block_bytes(image.manifest.block_bytes, symbol_bytes)
    with contextlib.ExitStack() as stack:
        # All ports before a word: a second sender by mistake must fail before the group hears it.
        sockets = _open_sockets(options, interface, group, address, stack)
        parameters = _parameters(options, image, group, address, symbol_bytes, sockets)
        yield CastRun(options, image, parameters, sockets, reporter, recognise)


def _open_sockets(
    options: CastOptions,
    interface: Interface,
    group: IpAddress,
    address: IpAddress,
    stack: contextlib.ExitStack,
) -> _Sockets:
    host, port = parse_endpoint(options.control, CONTROL_PORT_DEFAULT)
    control, feedback = bind_control_sockets(host, port, interface, address)
    stack.enter_context(control)
    stack.enter_context(feedback)
    data = stack.enter_context(open_data_socket(interface, address, group, options.port, ttl=options.ttl))
    announcements = stack.enter_context(open_announce_listener(interface, group, options.port))
    return _Sockets(data, control, feedback, announcements)


def _check_block_bytes(block_bytes: int, symbol_bytes: int) -> None:
    if block_bytes > SOURCE_SYMBOLS_MAX * symbol_bytes:
        largest = 1 << (SOURCE_SYMBOLS_MAX * symbol_bytes).bit_length() - 1
        raise ConfigurationError(
            f"blocks of {format_bytes(block_bytes)} don't fit {SOURCE_SYMBOLS_MAX} symbols of {symbol_bytes} bytes: "
            f"pack the image with --block-size {format_bytes(largest).replace(' ', '')} or smaller, or cast with a "
            f"--symbol-size of at least {-(-block_bytes // SOURCE_SYMBOLS_MAX)} on an interface with a larger MTU"
        )


def _parameters(
    options: CastOptions,
    image: ImageFile,
    group: IpAddress,
    address: IpAddress,
    symbol_bytes: int,
    sockets: _Sockets,
) -> CastParameters:
    manifest = image.manifest
    host, _port = parse_endpoint(options.control, CONTROL_PORT_DEFAULT)
    if host is None or host.is_unspecified:
        host = address
    url_host = f"[{host}]" if host.version == 6 else str(host)
    cast_id = options.cast_id
    if cast_id is None:
        cast_id = derive_cast_id(manifest.image_id, group, options.port, address)
    return CastParameters(
        cast_id=cast_id,
        incarnation=secrets.randbits(32),
        session_token=1 + secrets.randbelow(2**64 - 1),  # 0 stands for "not joined" on the wire
        image_id=manifest.image_id,
        image_name=manifest.name,
        raw_bytes=manifest.raw_bytes,
        block_bytes=manifest.block_bytes,
        manifest_bytes=len(manifest.data),
        symbol_bytes=symbol_bytes,
        group=str(group),
        port=options.port,
        sender_address=str(address),
        feedback_port=sockets.feedback.getsockname()[1],
        control_url=f"http://{url_host}:{sockets.control.getsockname()[1]}",
    )


class CastRun:
    """One cast in an event loop: gather, cast, account. Everything that it starts ends with :meth:`run`.

    All of it belongs to the event loop; only ``shared`` may be looked at from other threads.

    Attributes:
        parameters: what every receiver is told.
        shared: the session.
        transmitter: what puts datagrams on the wire.
        feedback: where NACKs and REPORTs arrive.
    """

    def __init__(
        self,
        options: CastOptions,
        image: ImageFile,
        parameters: CastParameters,
        sockets: _Sockets,
        reporter: Reporter,
        recognise: Recognise,
    ) -> None:
        """Prepare; see :func:`open_cast`."""
        self.parameters = parameters
        self._options = options
        self._image = image
        self._sockets = sockets
        self._reporter = reporter
        self._recognise = recognise
        self._queue = BatchQueue()
        self._cancelled = False
        self._aborted = False
        self._abandoned = False
        self._failure: DiskcastError | None = None
        self._wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        session = SenderSession(
            parameters,
            image.manifest,
            policy=options.policy,
            rng=random.Random(secrets.randbits(64)),
            secrets=secrets.token_bytes,
            now=time.monotonic(),
        )

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self.shared = SharedSession(session, wake)
        self.transmitter = Transmitter(sockets.data, parameters, self.shared, self._queue)
        self.feedback = FeedbackPort(sockets.feedback, self.shared)
        self._blocks = BlockLoader(image, parameters)

    @property
    def read_waiting_s(self) -> float:
        """For how long the read of the image that goes on now has lasted; 0 if none does."""
        return self._blocks.waiting_s

    async def run(self, *, metrics_port: int | None = None) -> CastResult:
        """Gather, cast, account.

        Args:
            metrics_port: where this cast's metrics are, to be told to the operator.

        Raises:
            DiskcastError: the sender itself failed, and the room was told.
        """
        encoder = Encoder(self.parameters, self.shared, self._blocks, self._queue)
        api = ControlApi(self.shared, self.parameters, self._image.manifest, self._fail, self._recognise)
        server = ControlServer(api.application(), self._sockets.control)
        rivals = RivalWatch(
            self._sockets.announcements,
            self.parameters,
            on_conflict=self._fail,
            on_foreign=self._reporter.note,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            stack.callback(self._reporter.close)
            self._reporter.started(
                CastIntroduction(
                    parameters=self.parameters,
                    interface=self._options.interface,
                    wait_for=self._options.policy.wait_for,
                    send_mode=self.transmitter.mode.value,
                    metrics_port=metrics_port,
                )
            )
            async with asyncio.TaskGroup() as group:
                threads = [
                    group.create_task(self._run_thread(encoder.run, "encoder")),
                    group.create_task(self._run_thread(self.transmitter.run, "transmitter")),
                ]
                serving = group.create_task(server.run_until_stopped())
                receiving = group.create_task(self.feedback.run())
                self._listening = group.create_task(rivals.run())
                await self._run_timers()
                self._close()
                self._listening.cancel()
                receiving.cancel()
                server.stop()
                if self._aborted:
                    serving.cancel()
                await self._await_threads(threads)
        return self._account()

    # -- the operator -----------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Cancel and let the room know; a second time: without waiting for that."""
        with self.shared.look() as (session, _now):
            ended = session.state == STATE_ENDED
        if self._cancelled or ended:
            self._aborted = True
            self._wake.set()
        else:
            self.cancel("cancelled by the operator")

    def cancel(self, reason: str) -> None:
        """End the cast; the room is told."""
        self._cancelled = True
        with self.shared.change() as (session, now):
            session.end(END_CANCELLED, reason, now)
        self._wake.set()

    def abandon(self) -> None:
        """Stop without a word to the room: the cast goes on elsewhere, or when this program is started again."""
        self._abandoned = True
        self._close()
        self._wake.set()

    def begin(self) -> None:
        """Don't wait for more receivers."""
        with self.shared.change() as (session, _now):
            session.begin()
        self._wake.set()

    def excuse(self, count: int) -> None:
        """Don't wait for so many of the receivers."""
        with self.shared.change() as (session, _now):
            session.excuse(count)
        self._wake.set()

    def pause(self) -> None:
        """Send no data until :meth:`resume`."""
        with self.shared.change() as (session, _now):
            session.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        with self.shared.change() as (session, now):
            session.resume(now)
        self._wake.set()

    def set_rate_ceiling(self, bytes_per_s: float) -> None:
        """Send no faster than this from now on."""
        with self.shared.change() as (session, _now):
            session.set_rate_ceiling(bytes_per_s)

    # -- inside -----------------------------------------------------------------------------------------------

    def _account(self) -> CastResult:
        with self.shared.look() as (session, now):
            summary = CastSummary.of(session, now)
        if self._abandoned:
            return CastResult(summary, cancelled=False, abandoned=True)
        self._reporter.finished(summary)
        if self._failure is not None:
            self._failure.details = dataclasses.asdict(summary)
            raise self._failure
        return CastResult(summary, self._cancelled)

    async def _run_timers(self) -> None:
        """Speak to the group when it is time, and tell the operator how it goes, until the last EOT is sent."""
        clock = ProgressClock(self._reporter.interval_s)
        finished = False
        while not (finished or self._abandoned):
            self._wake.clear()
            with self.shared.change() as (session, now):
                if self._aborted:
                    session.end(END_CANCELLED, "cancelled by the operator", now)
                    while not session.finished:  # the rest of the EOTs, without the pauses between them
                        self._multicast(session.control_datagrams(session.next_timer(now)))
                session.note_read(self._blocks.waiting_s)
                self._multicast(session.control_datagrams(now))
                events = [(event, self._receiver_name(session, event)) for event in session.next_events()]
                finished = session.finished
                view = CastView.of(session, now) if clock.due() else None
            for event, receiver in events:
                self._reporter.happened(event, receiver)
                if isinstance(event, CastingStarted):
                    self._listening.cancel()  # a member of the group hears all of our own data as well
            if view is not None:
                self._reporter.progress(view)
            if not finished:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self.shared.arm_timer())

    @staticmethod
    def _receiver_name(session: SenderSession, event: SenderEvent) -> str | None:
        receiver_id = getattr(event, "receiver_id", None)
        return None if receiver_id is None else session.receivers[receiver_id].name

    def _multicast(self, datagrams: list[bytes]) -> None:
        """Send control datagrams at once or not at all: each kind is repeated anyway."""
        for datagram in datagrams:
            try:
                self._sockets.data.send(datagram, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                destination = f"{self.parameters.group} port {self.parameters.port}"
                frame_bytes = DATA_HEADER_BYTES + self.parameters.symbol_bytes
                self._fail(typed_send_error(error, destination, frame_bytes))

    async def _run_thread(self, function: Callable[[], None], name: str) -> None:
        try:
            await start_blocking_call(function, name)
        except DiskcastError as error:
            self._fail(error)
        finally:
            self._close()  # the two threads need each other

    async def _await_threads(self, threads: list[asyncio.Task[None]]) -> None:
        """See both threads end, or end without one that is stuck: it only reads."""
        _, stuck = await asyncio.wait(threads, timeout=_THREADS_END_S)
        for thread in stuck:
            thread.cancel()
        if stuck:
            self._image.leave_open()
            self._reporter.note(
                f"a read of {self._image.path} hasn't returned for {format_duration(self._blocks.waiting_s)} and isn't "
                "waited for any longer: check the disk or server that the image is on"
            )

    def _fail(self, error: DiskcastError) -> None:
        """An error of the sender ends the cast; the room is told, and the first error is raised at the end."""
        if self._failure is None:
            self._failure = error
            with self.shared.change() as (session, now):
                session.end(END_FAILED, str(error), now)

    def _close(self) -> None:
        """Let both threads go."""
        self.shared.close()
        self._queue.close()
