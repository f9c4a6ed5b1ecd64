"""The options of a machine that receives, the same for one cast (``receive``) and for all of a daemon's (``run``)."""

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
from protocol.shared.units import parse_size_bytes

if TYPE_CHECKING:
    from protocol.model.session_records import MachineIdentity
    from receiver.reception.reporting.status import ReceptionStatus

MEMORY_BYTES_MIN: Final = 4 * MIB
"""Eight blocks of the default size and some: less would drop most of what arrives."""

_OPTIONS: Final = (
    click.option("--interface", required=True, metavar="IF", help="Network interface that casts come in by."),
    click.option(
        "--name",
        metavar="NAME",
        help="This machine's name, unless a daemon's operator has given it one.  [default: the host name]",
    ),
    click.option(
        "--identity",
        metavar="TEXT",
        help="Say this as serial number, and no hardware addresses: for several agents on one machine.",
    ),
    click.option(
        "--memory",
        default=f"{ASSEMBLY_BYTES_DEFAULT // MIB}MiB",
        show_default=True,
        metavar="SIZE",
        help="Buffers for blocks on their way to the disk.",
    ),
    click.option(
        "--metrics-port", type=click.IntRange(1, 65535), metavar="P", help="Serve Prometheus metrics here."
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class MachineOptions:
    """What the operator said of the machine that receives.

    Attributes:
        interface: that casts come in by.
        name: for people: the host name unless the operator said otherwise.
        stated_identity: in place of what the machine itself would say; None for that.
        assembly_bytes: buffers for blocks on their way to the disk.
        metrics_port: where metrics are served; None for nowhere.
    """

    interface: str
    name: str
    stated_identity: str | None
    assembly_bytes: int
    metrics_port: int | None

    def identity(self) -> MachineIdentity:
        """By what a daemon's list of machines may know this one."""
        from protocol.model.session_records import MachineIdentity
        from receiver.reception.machine_identity import read_identity

        if self.stated_identity is not None:
            return MachineIdentity((), self.stated_identity, "")
        return read_identity(self.interface)

    def metrics(self, status: Callable[[], ReceptionStatus]) -> contextlib.AbstractContextManager[None]:
        """Metrics of ``status`` are served within, if the operator wants them."""
        if self.metrics_port is None:
            return contextlib.nullcontext()
        from receiver.reception.reporting.metrics import serve_metrics

        return serve_metrics(self.metrics_port, status)


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--interface`` to ``--metrics-port``; it gets them as ``machine``.

    Raises:
        ConfigurationError: when the command runs, and ``--memory`` isn't a size or is too little.
    """

    @functools.wraps(function)
    def with_machine(
        *args: object,
        interface: str,
        name: str | None,
        identity: str | None,
        memory: str,
        metrics_port: int | None,
        **kwargs: object,
    ) -> object:
        machine = MachineOptions(
            interface, name or platform.node() or "unnamed", identity, _memory_bytes(memory), metrics_port
        )
        return function(*args, machine=machine, **kwargs)

    decorated: Callable[..., Any] = with_machine
    for option in reversed(_OPTIONS):  # the last one applied is the first one in --help
        decorated = option(decorated)
    return decorated


def _memory_bytes(text: str) -> int:
    size_bytes = parse_size_bytes(text)
    if size_bytes < MEMORY_BYTES_MIN:
        raise ConfigurationError(f"--memory {text} is too little: give at least {MEMORY_BYTES_MIN // MIB}MiB")
    return size_bytes
