"""An image of a daemon's library: sign in, choose, confirm, and receive a cast for this machine alone."""

from __future__ import annotations

import functools
import random
from typing import Final

import trio

from protocol.control.image_requests import LibraryImage, RequestState
from protocol.errors import ConfigurationError, ServerRefusedError, leaf_errors
from protocol.model.session_records import CastId
from protocol.shared.units import format_bytes
from protocol.trust.image_policy import AcceptedImage
from receiver.disk.inventory.block_devices import DeviceKind
from receiver.hardware.hardware_watch import HardwareWatch
from receiver.hardware.read_hardware import read_hardware
from receiver.live.menu.choices import Row, disk_text, selector_of
from receiver.live.menu.console import ConsoleLostError, GoBackError
from receiver.live.menu.daemon_api import DaemonApi, MachineApi, OperatorApi
from receiver.live.menu.daemon_session import DaemonSession, ObservedRing, Registration, SessionLog
from receiver.live.menu.dialog import Dialog, accept
from receiver.live.menu.preflight import ImageFacts
from receiver.restore.listed_disks import ListedDisk
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.serve_casts import ServiceOptions, describe_agent, reception_options
from receiver.service.server_client import ServerClient
from receiver.shared.nursery_errors import single_error
from receiver.target.eligibility import ImageNeeds
from receiver.trust.image_gate import ImageGate

POLL_S: Final = 3.0
"""Interval at which a waiting machine asks for the operator's decision; each is one row of the daemon's database."""


class ImageFromDaemon:
    """One visit to a daemon; :meth:`run` once."""

    def __init__(self, dialog: Dialog, service: ServiceOptions, credentials: MachineCredentials) -> None:
        """Args:
        dialog: the questions.
        service: how to reach the daemon.
        credentials: kept between visits: a boot token enrols only once.
        """
        self._dialog = dialog
        self._service = service
        self._credentials = credentials
        self._gate = ImageGate(service.trust)

    async def run(self) -> bool:
        """Image this machine; return whether an image is on a disk.

        Raises:
            GoBackError: the technician goes back; nothing was written.
            DiskcastError: the daemon refuses, or the cast failed.
        """
        api = DaemonApi(self._service.servers, self._service.certificates)
        operator = await self._sign_in(api)
        token_id = ""
        if operator is not None and not self._credentials.bearer:
            token_id, token = await operator.new_enrolment_token(self._service.machine.name)
            self._credentials.use_token(token)
        if not self._credentials.bearer:
            raise ConfigurationError(
                "this machine was started without a boot token: sign in with an operator's token, or start the machine "
                "over the network once more"
            )
        try:
            return await self._with_session(api, operator, token_id)
        except BaseExceptionGroup as group:
            raise _cause(group) from group

    async def _sign_in(self, api: DaemonApi) -> OperatorApi | None:
        rows = [
            Row("An operator approves in the dashboard", ("this machine shows a code to compare",)),
            Row(
                "Type an operator's token", ("it isn't shown, and kept in memory until the machine restarts",)
            ),
        ]
        if await self._dialog.choose("How do you sign in?", rows) == 0:
            return None
        token = await self._dialog.ask_secret("Token:")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ServerRefusedError("that isn't a token: type it as 'diskcast tokens create' printed it")
        return await OperatorApi.sign_in(api, token)

    async def _with_session(self, api: DaemonApi, operator: OperatorApi | None, token_id: str) -> bool:
        service, credentials = self._service, self._credentials
        log = SessionLog(self._dialog.say)
        ring = ObservedRing(
            [ServerClient(url, credentials, service.certificates) for url in service.servers], random.Random()
        )
        # The technician chooses any of the disks.
        hardware = HardwareWatch(
            functools.partial(read_hardware, is_candidate=lambda disk: disk.kind is DeviceKind.DISK)
        )
        session = DaemonSession(
            ring,
            describe_agent(service.machine, hardware.hardware),
            reception_options(service),
            credentials,
            log,
            hardware,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            registration = await session.registration(operator)
            if operator is not None and token_id:
                await operator.revoke_token(token_id)
            own = MachineApi(api, registration.machine_id, session.secret)
            imaged = await self._image(session, own, operator, registration)
            if not imaged:
                nursery.cancel_scope.cancel()
            # After a success the session ends by itself, as soon as the daemon has recorded the result.
        return imaged

    async def _image(
        self, session: DaemonSession, own: MachineApi, operator: OperatorApi | None, machine: Registration
    ) -> bool:
        images = await own.images()
        if not images:
            raise ServerRefusedError(
                "the daemon's library has no image: put one into a folder of library.folders"
            )
        disks = await self._dialog.disks(ImageNeeds())
        accepted = [accept(self._gate, image.offered_image) for image in images]
        rows = [_row(image, one, disks) for image, one in zip(images, accepted, strict=True)]
        index = await self._dialog.choose("Which image?", rows)
        image = images[index]
        confirmed = await self._dialog.confirm_disk(
            ImageNeeds(image.raw_bytes), ImageFacts(image.name, image.raw_bytes), accepted[index]
        )
        if confirmed is None:
            return False
        chosen, others = confirmed
        if operator is not None:
            cast_id = await operator.plan_cast(machine.machine_id, machine.name, image.image_id)
        else:
            approved = await self._approved_cast(own, image, chosen)
            if approved is None:
                return False
            cast_id = approved
        session.expect(image.image_id, cast_id, selector_of(chosen.disk, others))
        self._dialog.say()
        self._dialog.say(f"Waiting for the cast of {image.name}. The disk isn't opened before it arrives.")
        try:
            await session.outcome()
        finally:
            session.expect_nothing()
        return True

    async def _approved_cast(self, own: MachineApi, image: LibraryImage, chosen: ListedDisk) -> CastId | None:
        """Request the image and wait for an operator; None if the request doesn't become a cast."""
        status = await own.request(image.image_id, disk_text(chosen.disk))
        self._dialog.say()
        self._dialog.say(
            f"    An operator has to approve. The code of this request:   {' '.join(status.code)}"
        )
        self._dialog.say("    Ask the operator to compare it under All machines in the dashboard.")
        self._dialog.say("    Press Enter to give up.")
        while status.state is RequestState.WAITING or (
            status.state is RequestState.APPROVED and status.cast_id is None
        ):
            if await self._dialog.stopped_within(POLL_S):
                self._dialog.say("Given up. Nothing was written.")
                return None
            status = await own.request_status(status.code)
        if status.state is not RequestState.APPROVED:
            by = f" by {status.decided_by}" if status.decided_by else ""
            self._dialog.say(f"The request was {status.state.value}{by}. Nothing was written.")
            return None
        self._dialog.say(f"Approved by {status.decided_by}.")
        return status.cast_id


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the technician's decision, or else the error, inside ``group``."""
    decisions = [error for error in leaf_errors(group) if isinstance(error, GoBackError | ConsoleLostError)]
    return decisions[0] if decisions else single_error(group)


def _row(image: LibraryImage, accepted: AcceptedImage | str, disks: list[ListedDisk]) -> Row:
    fitting = [
        str(one.disk.path) for one in disks if one.refusal is None and one.disk.size_bytes >= image.raw_bytes
    ]
    fits = f"fits {', '.join(fitting)}" if fitting else "fits no disk of this machine"
    details = [fits]
    if isinstance(accepted, str):
        details.append(f"can't be used: {accepted}")
    elif accepted.verified is not None:
        statement, key = accepted.verified.statement, accepted.verified.key
        details.append(f"version {statement.version}, signed by {key.name} ({key.key.id_text})")
    return Row(f"{image.name}, {format_bytes(image.raw_bytes)}", tuple(details))
