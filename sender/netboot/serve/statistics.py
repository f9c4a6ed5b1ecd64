"""Counts of a boot service, and their metrics."""

from __future__ import annotations

import enum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from sender.http.rejections import HTTP_REJECTIONS

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class BootResult(enum.StrEnum):
    """Results of questions for a boot script; labels of a metric."""

    LIVE = "live"
    DISK = "disk"
    NO_DAEMON = "no_daemon"
    """The daemon didn't answer in time, or refused: the disk."""
    NO_ADDRESS = "no_address"
    """The daemon has no address for machines, or one that no boot loader passes on: the disk."""
    NO_MAC = "no_mac"
    """The boot loader didn't give the MAC address, and the ARP table doesn't have it: the disk."""
    WRONG_MAC = "wrong_mac"
    """Another machine asked: the disk."""


class TransferResult(enum.StrEnum):
    """Results of TFTP transfers; labels of a metric."""

    COMPLETE = "complete"
    ABORTED = "aborted"
    """The client ended it: UEFI asks for the size of a file in this way."""
    TIMED_OUT = "timed_out"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    """Too many transfers at once."""


class BootStatistics:
    """The counts of one process; its metrics have no MAC addresses."""

    def __init__(self) -> None:
        """Start with zeros: a counter that appears has no first increase."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(HTTP_REJECTIONS)
        self._boots = Counter(
            "diskcast_netboot_boots",
            "Boot scripts that machines asked for, by result.",
            ("result",),
            registry=self._registry,
        )
        self._replies = Counter(
            "diskcast_netboot_dhcp_replies", "DHCP replies with a boot file.", registry=self._registry
        )
        self._malformed = Counter(
            "diskcast_netboot_malformed_datagrams",
            "Datagrams that are no DHCP or TFTP message.",
            registry=self._registry,
        )
        self._transfers = Counter(
            "diskcast_netboot_tftp_transfers",
            "TFTP transfers, by result.",
            ("result",),
            registry=self._registry,
        )
        self._leases = Gauge(
            "diskcast_netboot_leases", "Addresses in use, in the mode dhcp.", registry=self._registry
        )
        for result in BootResult:
            self._boots.labels(result.value)
        for transfer in TransferResult:
            self._transfers.labels(transfer.value)

    def count(self, result: BootResult) -> None:
        """Count a boot script."""
        self._boots.labels(result.value).inc()

    def count_transfer(self, result: TransferResult) -> None:
        """Count an ended transfer."""
        self._transfers.labels(result.value).inc()

    def count_reply(self) -> None:
        """Count a DHCP reply with a boot file."""
        self._replies.inc()

    def count_malformed(self) -> None:
        """Count a datagram that couldn't be decoded."""
        self._malformed.inc()

    def set_leases(self, count: int) -> None:
        """Set the number of addresses in use."""
        self._leases.set(count)

    def render(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
