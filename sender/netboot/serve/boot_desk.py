"""The boot service's decision about one machine: the daemon's, or the disk when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Final

import structlog

from protocol.control.boot_parameters import BootParameters, LiveMode
from protocol.errors import ConfigurationError, DiskcastError
from sender.netboot.serve.boot_files import ServiceAddress
from sender.netboot.serve.boot_query import BootQuery
from sender.netboot.serve.boot_scripts import DiskBoot, LiveBoot
from sender.netboot.serve.daemon_client import BootApiClient
from sender.netboot.serve.statistics import BootResult, BootStatistics
from sender.store.records.boots import BootAction, BootAnswer, BootFirmware, BootReport

_ARCHITECTURES: Final = {True: "arm64", False: "x86_64"}

_log = structlog.get_logger(__name__)


class BootDesk:
    """Decides boots, and logs each decision.

    Args:
        daemon: the daemon that decides.
        initrds: names of the initrds of the medium.
        kernel_arguments: further words of every kernel command line.
        room: room of this service, for unknown machines; None for no room.
        statistics: counts the decisions.
        find_mac: returns the hardware address of a neighbour, or an empty text.
    """

    def __init__(
        self,
        daemon: BootApiClient,
        *,
        initrds: Sequence[str],
        kernel_arguments: str,
        room: str | None,
        statistics: BootStatistics,
        find_mac: Callable[[IPv4Address], str],
    ) -> None:
        self._daemon = daemon
        self._initrds = tuple(initrds)
        self._kernel_arguments = kernel_arguments
        self._room = room
        self._statistics = statistics
        self._find_mac = find_mac

    async def decide(
        self, query: BootQuery, peer: IPv4Address, service: ServiceAddress, firmware: BootFirmware
    ) -> LiveBoot | DiskBoot:
        """Return the boot of the machine at ``peer``; never raises, and takes little more than two seconds."""
        neighbour = self._find_mac(peer)
        query = dataclasses.replace(query, mac=query.mac or neighbour)
        if not query.mac:
            return self._refuse(query, peer, BootResult.NO_MAC, "the boot loader gave no MAC address")
        if neighbour not in ("", query.mac):
            # The answer has a token that enrols this MAC address and ends its machine's earlier secret: only that
            # machine may get it. An attacker would have to forge frames, as for any attack on DHCP.
            return self._refuse(
                query, peer, BootResult.WRONG_MAC, f"the request came from {neighbour}, for another machine"
            )
        report = BootReport(
            mac=query.mac,
            uuid=query.uuid,
            serial=query.serial,
            address=str(peer),
            firmware=firmware,
            architecture=_ARCHITECTURES[query.arm64],
            room_id=self._room,
            menu=query.menu,
        )
        try:
            answer = await self._daemon.decide(report)
        except DiskcastError as error:
            self._statistics.count(BootResult.NO_DAEMON)
            _log.error("boot_undecided", mac=query.mac, address=str(peer), error=str(error))
            return DiskBoot("no answer from the daemon")
        if answer.action is not BootAction.LIVE:
            self._count(BootResult.DISK, query, peer, answer)
            return DiskBoot(answer.text, menu_offered=answer.menu_offered and not query.menu)
        return self._live(query, peer, service, answer)

    def _live(
        self, query: BootQuery, peer: IPv4Address, service: ServiceAddress, answer: BootAnswer
    ) -> LiveBoot | DiskBoot:
        if not answer.servers:
            return self._refuse(
                query,
                peer,
                BootResult.NO_ADDRESS,
                "machines can't reach the daemon: start it with --listen 0.0.0.0:7400",
            )
        boot = LiveBoot(
            service,
            self._initrds,
            BootParameters(
                servers=answer.servers,
                pins=answer.pins,
                boot_token=answer.boot_token,
                mode=LiveMode(answer.mode.value),
                boot_mac=query.mac,
            ),
            self._kernel_arguments,
            answer.machine,
        )
        try:
            boot.command_line  # noqa: B018  raises for values that no boot loader passes on
        except ConfigurationError as error:
            return self._refuse(query, peer, BootResult.NO_ADDRESS, str(error))
        self._count(BootResult.LIVE, query, peer, answer)
        return boot

    def _count(self, result: BootResult, query: BootQuery, peer: IPv4Address, answer: BootAnswer) -> None:
        self._statistics.count(result)
        _log.info(
            "boot_decided",
            boot=result.value,
            mac=query.mac,
            address=str(peer),
            machine=answer.machine,
            mode=answer.mode.value,
            reason=answer.text,
        )

    def _refuse(self, query: BootQuery, peer: IPv4Address, result: BootResult, reason: str) -> DiskBoot:
        self._statistics.count(result)
        _log.warning("boot_refused", mac=query.mac, address=str(peer), reason=reason)
        return DiskBoot(reason)
