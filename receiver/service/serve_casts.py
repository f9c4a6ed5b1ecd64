"""The agent in service mode, from its options to its end; for ``run`` and for the live system."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.metadata
import random
from typing import Final

import trio

from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError
from protocol.model.hardware import Hardware
from protocol.program.output_streams import let_output_fail
from protocol.program.peer_trust import PeerTrust
from receiver.capture.capture_runner import CaptureRunner
from receiver.hardware.hardware_watch import HardwareWatch
from receiver.hardware.read_hardware import read_hardware
from receiver.reception.machine_identity import describe_machine
from receiver.reception.machine_options import MachineOptions
from receiver.reception.network.interface import require_interface
from receiver.reception.options import ReceiveOptions
from receiver.reception.receive import receive_cast
from receiver.service.agent_service import AgentDescription, AgentService, ServiceEnd
from receiver.service.log import ServiceLog
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.restart import prepare_restart
from receiver.service.server_client import DaemonRing, ServerClient
from receiver.shared.signal_scope import run_until_signal
from receiver.target.options import TargetOptions
from receiver.target.selection import names_disk, names_file
from receiver.trust.accepted_images import TrustOptions

JOIN_TIMEOUT_S: Final = 60.0
SENDER_TIMEOUT_S: Final = 300.0
"""A restarted daemon, or another one that takes its casts over, needs seconds; replacing a rack's switch takes minutes,
after which nothing has to be scanned again."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Options of the agent in service mode.

    Attributes:
        machine: this machine.
        target: disk to write, as ``--target`` takes it.
        target_options: how to write it.
        trust: images that are accepted.
        servers: URLs of daemons of one database.
        certificates: certificates of daemons that are accepted.
        token: token that enrols this machine; empty if none was given.
        after: action after a successful cast.
        restart_when_idle: restart the machine when nothing has been planned for as long as the daemon says.
        allow_capture: let the daemon make images of this machine's disks.
    """

    machine: MachineOptions
    target: str
    target_options: TargetOptions
    trust: TrustOptions
    servers: tuple[str, ...]
    certificates: PeerTrust
    token: str = dataclasses.field(repr=False)
    after: AfterCast
    restart_when_idle: bool = False
    allow_capture: bool = False


def serve_casts(options: ServiceOptions, log: ServiceLog) -> None:
    """Receive casts until one has succeeded, or nothing is planned; then restart the machine if that was requested.

    Raises:
        ConfigurationError: an option is invalid, or this machine couldn't be restarted after the cast.
        EnrolmentRefusedError: a daemon refuses this agent.
    """
    let_output_fail()
    require_interface(options.machine.interface)
    restarts = {
        ServiceEnd.CAST_SUCCEEDED: prepare_restart(options.after),
        ServiceEnd.NOTHING_PLANNED: prepare_restart(AfterCast.REBOOT) if options.restart_when_idle else None,
    }

    async def serve() -> ServiceEnd:
        # Built here, since it needs trio's clock.
        service = _build_service(options, log)
        with options.machine.serve_metrics(service.status):
            return await service.run()

    gc.freeze()  # imported modules live on: spare the collector from traversing them while data arrives
    end = trio.run(run_until_signal, serve)
    log.stopped()
    restart = None if end is None else restarts[end]
    if restart is not None:
        restart()


def _build_service(options: ServiceOptions, log: ServiceLog) -> AgentService:
    """Build the service.

    Raises:
        ConfigurationError: a URL or the target's rule is invalid, or this machine has no identity.
    """
    machine = options.machine
    hardware = HardwareWatch(
        functools.partial(_read_hardware, options.target, options.target_options.partition)
    )
    credentials = MachineCredentials(options.token, options.trust.state_directory)
    clients = [ServerClient(url, credentials, options.certificates) for url in options.servers]
    return AgentService(
        DaemonRing(clients, random.Random()),
        describe_agent(machine, hardware.hardware),
        reception_options(options),
        credentials,
        receive=receive_cast,
        capture=CaptureRunner(options.certificates, options.target, allowed=options.allow_capture).run,
        log=log,
        exit_after_success=options.after is not AfterCast.WAIT,
        exit_when_idle=options.restart_when_idle,
        hardware=hardware,
    )


def _read_hardware(target: str, partition: int | None) -> Hardware:
    """Return this machine's hardware, with the disks that are the target or may be."""
    return read_hardware(
        is_candidate=(lambda _disk: False)
        if partition is not None
        else functools.partial(names_disk, target),
        target=target,
        target_is_file=names_file(target, partition),
    )


def describe_agent(machine: MachineOptions, hardware: Hardware) -> AgentDescription:
    """Return the facts that check-ins carry.

    Raises:
        ConfigurationError: this machine has no identity.
    """
    identity = machine.identity()
    if not any((identity.macs, identity.serial, identity.asset_tag)):
        raise ConfigurationError(
            f"this machine has no identity: {machine.interface} has no hardware address, and the firmware no serial "
            "number or asset tag; name it with --identity, for example --identity pc07"
        )
    return AgentDescription(
        name=machine.name,
        version=importlib.metadata.version("diskcast"),
        identity=identity,
        inventory=describe_machine(machine.interface, hardware),
    )


def reception_options(options: ServiceOptions) -> ReceiveOptions:
    """Return the options of every reception."""
    machine = options.machine
    return machine.receive_options(
        options.target,
        options.target_options,
        options.trust,
        join_timeout_s=JOIN_TIMEOUT_S,
        sender_timeout_s=SENDER_TIMEOUT_S,
        # One that the operator stated isn't read from the machine, and patches may be for it.
        identity=None if machine.stated_identity is None else machine.identity(),
    )
