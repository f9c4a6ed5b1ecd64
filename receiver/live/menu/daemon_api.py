"""The part of the daemon's API that the menu uses: the machine's own paths, and an operator's when one signs in."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Sequence
from typing import Any, Final

from protocol.control.image_requests import (
    IMAGE_CHOICE,
    LIBRARY_IMAGES,
    REQUEST_STATUS,
    ImageChoice,
    LibraryImage,
    RequestStatus,
    images_path,
    requests_path,
)
from protocol.errors import DiskcastError, EnrolmentRefusedError, ProtocolError, ServerRefusedError
from protocol.model.session_records import CastId
from protocol.program.peer_trust import PeerTrust
from protocol.schema.json_fields import HexInteger, JsonRecord, PrintableText
from receiver.reception.network.http_client import HttpPeer, Unreachable
from receiver.service.server_client import EXAMPLE_URL

TOKEN_LIFETIME: Final = datetime.timedelta(minutes=10)
"""Lifetime of the token by which a machine without a boot token enrols; it is revoked as soon as it was used."""

OPERATE: Final = "operate"
_NAME_CHARACTERS_MAX: Final = 64
"""Longest name of a token or a cast."""


def _cast_id_of(cast_id: int) -> CastId:
    return CastId(cast_id)


_ROLE: JsonRecord[str] = JsonRecord(lambda role: role, {"role": PrintableText(32)})
_TOKEN_ID: JsonRecord[str] = JsonRecord(
    lambda token_id: token_id, {"token_id": PrintableText(64, bytes_min=1)}
)
_NEW_TOKEN: JsonRecord[tuple[str, str]] = JsonRecord(
    lambda token, secret: (token, secret), {"token": _TOKEN_ID, "secret": PrintableText(128, bytes_min=1)}
)
_NEW_CAST: JsonRecord[CastId] = JsonRecord(_cast_id_of, {"cast_id": HexInteger()})


class DaemonApi:
    """Exchanges with the daemons of one database, of which the first that answers is used."""

    def __init__(self, urls: Sequence[str], trust: PeerTrust) -> None:
        """Prepare.

        Args:
            urls: URLs of the daemons, at least one.
            trust: accepted certificates.

        Raises:
            ConfigurationError: a URL is invalid, or no certificate is accepted.
        """
        self._peers = [
            HttpPeer(url, trust, server_kind="a diskcast daemon", example=EXAMPLE_URL, loopback_http=True)
            for url in urls
        ]

    async def exchange(
        self, method: str, path: str, bearer: str, body: dict[str, Any] | None = None
    ) -> object:
        """Return the answer to a request.

        Raises:
            ServerRefusedError: the daemon can't be reached, or refuses.
            CertificateError: another program answers.
        """
        for _ in self._peers:
            peer = self._peers[0]
            refusal = functools.partial(_refusal, peer.url)
            try:
                return await peer.exchange_json(method, path, body=body, bearer=bearer, refusal=refusal)
            except Unreachable as error:
                unreachable = ServerRefusedError(f"the daemon can't be reached: {error}; try again")
                unreachable.__cause__ = error
                self._peers.append(self._peers.pop(0))
                if method != "GET":  # it may have been carried out
                    break
            except ProtocolError as error:
                raise _not_understood(peer.url, error) from error
        raise unreachable

    def decode(self, record: JsonRecord[Any], answer: object) -> Any:
        """Return the record in an answer.

        Raises:
            ServerRefusedError: there is none.
        """
        try:
            return record.decode_untrusted("answer", answer)
        except ProtocolError as error:
            raise _not_understood(self._peers[0].url, error) from error


class MachineApi:
    """The machine's own rights: it reads the list of images, and requests one. Raises as :meth:`DaemonApi.exchange`."""

    def __init__(self, api: DaemonApi, machine_id: str, secret: str) -> None:
        self._api = api
        self._machine_id = machine_id
        self._secret = secret

    async def images(self) -> tuple[LibraryImage, ...]:
        """Return the images that this machine may request."""
        answer = await self._api.exchange("GET", images_path(self._machine_id), self._secret)
        images: tuple[LibraryImage, ...] = self._api.decode(LIBRARY_IMAGES, answer).images
        return images

    async def request(self, image_id: bytes, disk: str) -> RequestStatus:
        """Request an image for a disk; an operator decides."""
        body = IMAGE_CHOICE.encode(ImageChoice(image_id, disk))
        answer = await self._api.exchange("POST", requests_path(self._machine_id), self._secret, body)
        status: RequestStatus = self._api.decode(REQUEST_STATUS, answer)
        return status

    async def request_status(self, code: str) -> RequestStatus:
        """Return the state of a request."""
        answer = await self._api.exchange("GET", requests_path(self._machine_id, code), self._secret)
        status: RequestStatus = self._api.decode(REQUEST_STATUS, answer)
        return status


class OperatorApi:
    """An operator's rights, by a token that was typed; it is kept here alone, until the menu ends.

    Raises as :meth:`DaemonApi.exchange`.
    """

    def __init__(self, api: DaemonApi, token: str) -> None:
        """Use :meth:`sign_in`."""
        self._api = api
        self._token = token

    @classmethod
    async def sign_in(cls, api: DaemonApi, token: str) -> OperatorApi:
        """Check a token.

        Raises:
            EnrolmentRefusedError: it has another role.
            ServerRefusedError: it is wrong, or the daemon can't be reached.
        """
        role = api.decode(_ROLE, await api.exchange("GET", "/server", token))
        if role != OPERATE:
            raise EnrolmentRefusedError(f"the token has the role {role}: type one of the role {OPERATE}")
        return cls(api, token)

    async def approve(self, machine_id: str, code: str) -> None:
        """Approve the machine that shows ``code``: this one."""
        await self._api.exchange("POST", f"/machines/{machine_id}/approve", self._token, {"code": code})

    async def new_enrolment_token(self, machine_name: str) -> tuple[str, str]:
        """Create a token that enrols this machine; return its id and its secret."""
        now = datetime.datetime.now(datetime.UTC)
        body = {
            "name": f"menu {now:%Y-%m-%d %H:%M:%S} {machine_name}"[:_NAME_CHARACTERS_MAX].rstrip(),
            "role": "enrol",
            "expires_at": (now + TOKEN_LIFETIME).isoformat(),
        }
        answer = await self._api.exchange("POST", "/tokens", self._token, body)
        created: tuple[str, str] = self._api.decode(_NEW_TOKEN, answer)
        return created

    async def revoke_token(self, token_id: str) -> None:
        """Revoke the token of :meth:`new_enrolment_token`; one that can't be revoked expires in minutes."""
        with contextlib.suppress(DiskcastError):
            await self._api.exchange("DELETE", f"/tokens/{token_id}", self._token)

    async def plan_cast(self, machine_id: str, machine_name: str, image_id: bytes) -> CastId:
        """Plan a cast of an image for this machine alone."""
        body = {
            "image": image_id.hex(),
            "machine_ids": [machine_id],
            "name": f"console of {machine_name}"[:_NAME_CHARACTERS_MAX].rstrip(),
            "wait_for": 1,
        }
        answer = await self._api.exchange("POST", "/casts", self._token, body)
        cast_id: CastId = self._api.decode(_NEW_CAST, answer)
        return cast_id


def _refusal(url: str, status: int, detail: str) -> Exception:
    return ServerRefusedError(f"the daemon at {url} refuses ({status}): {detail}")


def _not_understood(url: str, error: ProtocolError) -> ServerRefusedError:
    return ServerRefusedError(
        f"{url} gives an answer that this version of diskcast doesn't understand: {error}"
    )
