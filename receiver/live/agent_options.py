"""The options of the agent in the live system: those of ``diskcast-agent run``, from the settings of this boot."""

from __future__ import annotations

from protocol.constants import ASSEMBLY_BYTES_DEFAULT
from protocol.control.boot_parameters import AfterCast, BootParameters
from protocol.program.peer_trust import PeerTrust
from receiver.disk.fit.fit_target import FitOptions
from receiver.live.network_setup import Lease
from receiver.reception.machine_options import MachineOptions
from receiver.service.serve_casts import ServiceOptions
from receiver.target.options import TargetOptions
from receiver.trust.accepted_images import TrustOptions


def agent_options(parameters: BootParameters, lease: Lease, name: str, token: str) -> ServiceOptions:
    """Return the options.

    Args:
        parameters: settings of this boot.
        lease: the interface for casts.
        name: name of this machine.
        token: token that enrols this machine; empty if there is none.

    Raises:
        ConfigurationError: a pin is invalid.
    """
    return ServiceOptions(
        machine=MachineOptions(lease.interface, name, None, ASSEMBLY_BYTES_DEFAULT, None),
        target=parameters.target,
        target_options=TargetOptions(
            fit=FitOptions(
                grow=parameters.grow,
                efi_label=parameters.efi_label or None,
                boot_next=parameters.after is AfterCast.REBOOT,
            )
        ),
        trust=TrustOptions(version_min=parameters.version_min, tags=parameters.tags),
        servers=parameters.servers,
        certificates=PeerTrust.of_options(parameters.pins, None),
        token=token,
        after=parameters.after,
        allow_capture=True,
        # A boot service sends this machine to its disk when nothing is planned; a stick would boot this system again.
        restart_when_idle=bool(parameters.boot_token) and parameters.after is not AfterCast.WAIT,
    )
