"""The session of a leased cast: its policy, interface, multicast group and control port."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import ipaddress
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from protocol.errors import AddressInUseError, ConfigurationError, InterfaceError
from protocol.model.cast_policy import CastPolicy, SlowPolicy
from protocol.model.session_records import CastId
from sender.cast.cast_run import CastRun
from sender.cast.cast_settings import CastSettings
from sender.cast.network.interfaces import find_interface, list_interfaces
from sender.cast.open_cast import open_cast
from sender.cast.session.admission import CastAccess
from sender.config.server_config import ServerConfig
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.machine_matcher import MachineMatcher
from sender.daemon.jobs.multicast_groups import choose_group
from sender.daemon.jobs.ticket_admission import TicketAdmission
from sender.identity.certificate import Certificate
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.store.records.casts import Cast, StartMode
from sender.store.records.machines import Room
from sender.store.store import Store


class SessionOpener:
    """The opener of sessions on this daemon's network. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        registry: CastRegistry,
        certificate: Certificate,
        *,
        is_revoked: Callable[[str], bool],
    ) -> None:
        """Open sessions.

        Args:
            config: network and limits.
            store: has the names of machines.
            registry: casts whose groups are taken.
            certificate: of every cast's control API.
            is_revoked: returns whether a machine is revoked.
        """
        self._config = config
        self._certificate = certificate
        self._store = store
        self._registry = registry
        self._is_revoked = is_revoked

    def policy(
        self, cast: Cast, *, still_required: int, expected_back: int | None, waking_s: float = 0.0
    ) -> CastPolicy:
        """Return the session's policy.

        Args:
            cast: the record, as leased.
            still_required: required machines that haven't ended in an earlier run.
            expected_back: machines that an earlier run left unfinished; None if none had sent data.
            waking_s: time until the last machine of the plan is called by Wake-on-LAN.
        """
        plan, casts = cast.plan, self._config.casts
        common = CastPolicy(
            receiver_timeout_s=casts.receiver_timeout_s,
            rate_bytes_per_s=plan.rate_bytes_per_s,
            rate_max_bytes_per_s=plan.rate_max_bytes_per_s,
            share=plan.share,
            slow_policy=SlowPolicy(plan.slow),
            slow_below=plan.slow_below,
            slow_for_s=plan.slow_for_s,
        )
        if expected_back is not None:
            return dataclasses.replace(common, wait_for=max(1, expected_back), max_wait_s=casts.resume_wait_s)
        return dataclasses.replace(
            common,
            wait_for=max(1, still_required),
            max_wait_s=None if plan.max_wait_s is None else plan.max_wait_s + waking_s,
            by_hand=plan.start is StartMode.MANUAL,
        )

    @contextlib.contextmanager
    def open(
        self,
        job: CastJob,
        image: ImageFile,
        path: Path,
        signature: ImageSignature,
        policy: CastPolicy,
        room: Room | None,
        join_key: bytes,
    ) -> Iterator[CastRun]:
        """Open the cast's sockets: its own group and a free control port, preferably those of its last run.

        Only machines with a ticket that ``join_key`` verifies are admitted.

        Raises:
            AddressInUseError: no group or no port is free.
            ConfigurationError: the interface can't be used.
        """
        cast, network = job.cast, self._config.network
        interface = (room.interface if room is not None else "") or self._default_interface()
        group = self._choose_group(cast)
        try:
            address = find_interface(interface).address_for(ipaddress.ip_address(group))
        except InterfaceError as error:
            raise ConfigurationError(f"the cast can't start: {error}") from error
        matcher = MachineMatcher(self._store, job)
        host = f"[{address}]" if address.version == 6 else str(address)
        with contextlib.ExitStack() as stack:
            for port in _preferred_first(network.control_port_range, cast.control_url):
                settings = CastSettings(
                    image=path,
                    interface=interface,
                    policy=policy,
                    group=group,
                    port=network.data_port,
                    control=f"{host}:{port}",
                    ttl=network.ttl,
                    cast_id=CastId(int(cast.cast_id, 16)),
                    signature=signature,
                    encrypt=cast.plan.encrypt or self._config.casts.encrypt,
                )
                try:
                    run = stack.enter_context(
                        open_cast(
                            settings,
                            image,
                            job.reporter,
                            functools.partial(self._access, job, join_key),
                            matcher.match,
                            job.patches,
                        )
                    )
                except AddressInUseError:
                    continue
                yield run
                return
        raise AddressInUseError(
            f"every port of network.control_ports ({network.control_ports}) is taken at {address}: wait for a cast to "
            "end, or configure more ports"
        )

    def _access(self, job: CastJob, join_key: bytes, cast_id: CastId) -> CastAccess:
        certificate = self._certificate
        admission = TicketAdmission(
            join_key, cast_id, is_revoked=self._is_revoked, audit=job.records.audit_refusal
        )
        return CastAccess(admission, certificate.server_context(), certificate.pin)

    def _choose_group(self, cast: Cast) -> str:
        others = [other for key, other in self._registry.unfinished.items() if key != cast.cast_id]
        taken = {other.group for other in others if other.group and other.phase.live}
        if cast.group and cast.group not in taken:
            return cast.group
        return choose_group(self._config.network.group_base, cast.cast_id, taken)

    def _default_interface(self) -> str:
        """Return the configured interface, or the only possible one.

        Raises:
            ConfigurationError: several are possible, and chance must not decide where a disk image goes.
        """
        configured = self._config.network.interface
        if configured is not None:
            return configured
        usable = [item for item in list_interfaces().values() if item.up and _has_own_address(item.addresses)]
        host = ipaddress.ip_address(self._config.server.endpoint[0])
        usable = [item for item in usable if host in item.addresses] or usable
        if not usable:
            return "lo"
        if len(usable) > 1:
            names = ", ".join(item.name for item in usable)
            raise ConfigurationError(
                f"several network interfaces could reach the room ({names}): choose one with network.interface, "
                "--interface, or the room's own interface"
            )
        return usable[0].name


def _has_own_address(addresses: Collection[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    return any(not address.is_loopback and not address.is_link_local for address in addresses)


def _preferred_first(ports: Collection[int], control_url: str) -> list[int]:
    """Return ``ports`` with the port of ``control_url`` first, if it is one of them."""
    last_port = int(control_url.rpartition(":")[2] or 0) if control_url else 0
    return sorted(ports, key=lambda port: port != last_port)
