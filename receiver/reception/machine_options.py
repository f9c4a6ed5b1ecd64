"""Command-line options of the receiving machine, shared by ``receive`` and ``run``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.constants import ASSEMBLY_BYTES_DEFAULT, MIB
from protocol.errors import ConfigurationError
from protocol.program.options import Share, WholeNumber
from protocol.shared.units import parse_size_bytes

if TYPE_CHECKING:
    from protocol.model.session_records import MachineIdentity
    from receiver.reception.options import ReceiveOptions
    from receiver.reception.reporting.status import ReceptionStatus
    from receiver.target.options import TargetOptions
    from receiver.trust.accepted_images import TrustOptions

MEMORY_BYTES_MIN: Final = 4 * MIB
"""A little more than eight blocks of the default size: with less, most of the data would be dropped."""


_OPTIONS: Final = (
    click.option("--interface", required=True, metavar="IF", help="Network interface to receive on."),
    click.option(
        "--name", metavar="NAME", help="Name of this machine in lists and logs.  [default: host name]"
    ),
    click.option(
        "--identity",
        metavar="TEXT",
        help="Serial number to report instead of this machine's identity.",
    ),
    click.option(
        "--memory",
        default=f"{ASSEMBLY_BYTES_DEFAULT // MIB}MiB",
        show_default=True,
        metavar="SIZE",
        help="Buffers for blocks on their way to the disk.",
    ),
    click.option(
        "--metrics-port",
        type=WholeNumber(1, 65535),
        metavar="P",
        help="Serve Prometheus metrics on this TCP port.",
    ),
    click.option(
        "--rehearse-loss",
        default="0",
        show_default=True,
        type=Share(),
        metavar="SHARE",
        help="Share of datagrams to drop, as on a lossy network (5% or 0.05).",
    ),
    click.option(
        "--rehearse-seed",
        default=1,
        show_default=True,
        help="Seed that selects the datagrams to drop.",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class MachineOptions:
    """Options of the receiving machine.

    Attributes:
        interface: the network interface to receive on.
        name: name for people: the host name by default.
        stated_identity: replaces the identity read from the machine; None to read it.
        assembly_bytes: size of the buffers for blocks on their way to the disk.
        metrics_port: TCP port of the metrics; None to serve none.
        injected_loss: share of arriving datagrams to drop, 0..1.
        injected_loss_seed: selects them.
    """

    interface: str
    name: str
    stated_identity: str | None
    assembly_bytes: int
    metrics_port: int | None
    injected_loss: float = 0.0
    injected_loss_seed: int = 0

    def identity(self) -> MachineIdentity:
        """Return the identity by which a daemon recognises this machine."""
        from protocol.model.session_records import MachineIdentity
        from receiver.reception.machine_identity import read_identity

        if self.stated_identity is not None:
            return MachineIdentity((), self.stated_identity, "")
        return read_identity(self.interface)

    def receive_options(
        self,
        target: str,
        target_options: TargetOptions,
        trust: TrustOptions,
        *,
        join_timeout_s: float,
        sender_timeout_s: float,
        identity: MachineIdentity | None = None,
    ) -> ReceiveOptions:
        """Return the options of a reception on this machine."""
        from receiver.reception.options import CastReceiverOptions, ReceiveOptions
        from receiver.trust.image_gate import ImageGate

        return ReceiveOptions(
            target=target,
            target_options=target_options,
            interface=self.interface,
            gate=ImageGate(trust),
            receiver=CastReceiverOptions(
                name=self.name,
                inventory={},
                assembly_bytes=self.assembly_bytes,
                join_timeout_s=join_timeout_s,
                sender_timeout_s=sender_timeout_s,
                injected_loss=self.injected_loss,
                injected_loss_seed=self.injected_loss_seed,
                identity=identity,
            ),
        )

    def serve_metrics(self, status: Callable[[], ReceptionStatus]) -> contextlib.AbstractContextManager[None]:
        """Return a context that serves the metrics of ``status`` if ``--metrics-port`` was given."""
        if self.metrics_port is None:
            return contextlib.nullcontext()
        from receiver.reception.reporting.metrics import serve_metrics

        return serve_metrics(self.metrics_port, status)


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--interface`` to ``--rehearse-seed`` to a command, which gets them as ``machine``.

    Raises:
        ConfigurationError: when the command runs: ``--memory`` isn't a size or is too small.
    """

    @functools.wraps(function)
    def with_machine(
        *args: object,
        interface: str,
        name: str | None,
        identity: str | None,
        memory: str,
        metrics_port: int | None,
        rehearse_loss: float,
        rehearse_seed: int,
        **kwargs: object,
    ) -> object:
        machine = MachineOptions(
            interface,
            name or platform.node() or "unnamed",
            identity,
            _memory_bytes(memory),
            metrics_port,
            rehearse_loss,
            rehearse_seed,
        )
        return function(*args, machine=machine, **kwargs)

    decorated: Callable[..., Any] = with_machine
    for option in reversed(_OPTIONS):  # the last one applied is the first one in --help
        decorated = option(decorated)
    return decorated


def _memory_bytes(text: str) -> int:
    size_bytes = parse_size_bytes(text)
    if size_bytes < MEMORY_BYTES_MIN:
        raise ConfigurationError(f"--memory {text} is too small: give at least {MEMORY_BYTES_MIN // MIB}MiB")
    return size_bytes
