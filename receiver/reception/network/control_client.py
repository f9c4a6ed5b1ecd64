"""Client of a sender's control API: one HTTPS exchange per call, and a helper that retries."""

from __future__ import annotations

import functools
import http.client
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.constants import METADATA_BYTES_MAX, MIB
from protocol.control.control_messages import (
    COMPLETION,
    CastDescription,
    JsonObject,
    cast_from_json_untrusted,
    casts_from_json_untrusted,
    grant_from_json_untrusted,
    join_to_json,
    need_to_json,
)
from protocol.errors import (
    JoinRefusedError,
    NoSenderError,
    ProtocolError,
    SessionError,
)
from protocol.image.manifest_format import ManifestLayout, block_count_of
from protocol.model.session_records import CastId, CompletionReport, JoinGrant, JoinRequest
from protocol.patch.machine_patch import PATCH_BYTES_MAX
from protocol.patch.patch_set import PATCH_SET_BYTES_MAX
from protocol.receiving.manifest_reception import ManifestStore
from receiver.reception.network.http_client import EXCHANGE_TIMEOUT_S, HttpPeer, Unreachable, authorization
from receiver.reception.network.sender_access import SenderAccess

RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 2.0
"""Longest pause between retries: receivers rejoin a restarted sender within seconds."""

_READ_BYTES: Final = MIB
_Result = TypeVar("_Result")


class ControlClient:
    """Client of the control API at one base URL; every method is one exchange, which :func:`retry_until` can repeat."""

    def __init__(
        self,
        url: str,
        access: SenderAccess,
        current_bearer: Callable[[], str] | None = None,
        *,
        timeout_s: float = EXCHANGE_TIMEOUT_S,
    ) -> None:
        """Parse the URL ``https://HOST:PORT``, from an ANNOUNCE, from a daemon or from the operator.

        Args:
            url: the URL.
            access: the certificate to expect there, and the bearer that admits this machine.
            current_bearer: returns the bearer, if it is renewed during the cast.
            timeout_s: timeout of connecting and of each read.

        Raises:
            ConfigurationError: the URL is invalid, or ``access`` accepts no certificate.
        """
        self._peer = HttpPeer(url, access.trust, server_kind="a sender", example="https://192.0.2.1:7411")
        self._timeout_s = timeout_s
        self._bearer = current_bearer or (lambda: access.bearer)
        self.url = self._peer.url

    async def casts(self) -> list[CastDescription]:
        """Return the casts of this sender.

        Raises:
            Unreachable: no answer.
            CertificateError: another program answers.
            JoinRefusedError: the bearer doesn't admit this machine.
            ProtocolError: the answer isn't one of a diskcast sender.
        """
        return casts_from_json_untrusted(await self._json("GET", "/casts"))

    async def cast(self, cast_id: CastId) -> CastDescription:
        """Return the description of a cast.

        Raises:
            Unreachable: no answer.
            CertificateError: another program answers.
            JoinRefusedError: the bearer doesn't admit this machine.
            NoSenderError: this sender has no such cast.
            ProtocolError: the answer isn't one of a diskcast sender.
        """
        return cast_from_json_untrusted(await self._json("GET", f"/casts/{cast_id:08x}"))

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        """Join, or rejoin in the same place.

        Raises:
            Unreachable: no answer; joining again with the same ``agent_id`` is safe.
            JoinRefusedError: the sender refuses this receiver.
            NoSenderError: this sender has no such cast.
            ProtocolError: the answer isn't one of a diskcast sender.
        """
        answer = await self._json("POST", f"/casts/{cast_id:08x}/receivers", body=join_to_json(request))
        return grant_from_json_untrusted(answer)

    async def set_need(self, grant: JoinGrant, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        """Report the blocks that the target needs; the sender casts nothing for this receiver before.

        Args:
            grant: the grant of the join.
            need: ``bool[block_count]``.
            heard_sequence: number after the last datagram that was taken into account; None if none was heard.

        Raises:
            Unreachable: no answer; reporting it again is safe.
            JoinRefusedError: the sender no longer knows this receiver.
            SessionError: the sender refuses the report.
        """
        await self._json(
            "PUT", f"{_receiver_path(grant)}/need", body=need_to_json(need, heard_sequence), key=grant.key
        )

    async def complete(self, grant: JoinGrant, report: CompletionReport) -> None:
        """Report the end of the reception.

        Raises:
            Unreachable: no answer; reporting it again is safe.
            SessionError: the sender refuses the report.
        """
        path = f"{_receiver_path(grant)}/completion"
        await self._json("POST", path, body=COMPLETION.encode(report), key=grant.key)

    async def manifest(self, cast_id: CastId, into: ManifestStore) -> None:
        """Fetch the manifest into a store of exactly its size.

        Raises:
            Unreachable: no answer, or a truncated one.
            ProtocolError: the manifest's length isn't the announced one.
            StorageError: the store failed.
        """
        fetch = functools.partial(self._fetch_manifest, f"/casts/{cast_id:08x}/manifest", into)
        await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)

    async def block(self, grant: JoinGrant, block: int, cast_bytes: int) -> memoryview:
        """Fetch an image block as cast: its stored bytes, encrypted with a tag if the cast is.

        Args:
            grant: the grant of the join.
            block: number of the block.
            cast_bytes: its length.

        Raises:
            Unreachable: no answer, or the sender limits fetches at the moment.
            JoinRefusedError: the sender no longer knows this receiver.
            ProtocolError: the answer has another length.
        """
        headers = {"Authorization": f"Bearer {grant.key.hex()}"}

        def read(response: http.client.HTTPResponse) -> memoryview:
            if response.length != cast_bytes:
                raise ProtocolError(
                    f"{self.url} sends {response.length} bytes of block {block} instead of {cast_bytes}"
                )
            data = response.read(cast_bytes)
            if len(data) < cast_bytes:
                raise Unreachable(f"{self.url}: the connection ended in the middle of block {block}")
            return memoryview(data)

        path = f"{_receiver_path(grant)}/blocks/{block}"
        fetch = functools.partial(
            self._peer.exchange, "GET", path, None, headers, read, refusal=self._refusal
        )
        return await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)

    async def patch(self, grant: JoinGrant) -> bytes:
        """Fetch this machine's patch, unchecked.

        Raises:
            Unreachable: no answer, or a truncated one.
            SessionError: the sender refuses it.
            ProtocolError: it is larger than a patch can be.
        """
        return await self._small_file(grant, "patch", PATCH_BYTES_MAX)

    async def patch_set(self, grant: JoinGrant) -> bytes:
        """Fetch the signed set of the room's patches, unchecked; empty if they aren't signed.

        Raises:
            Unreachable, SessionError, ProtocolError: as :meth:`patch`.
        """
        return await self._small_file(grant, "patch-set", PATCH_SET_BYTES_MAX)

    async def _small_file(self, grant: JoinGrant, name: str, bytes_max: int) -> bytes:
        """Fetch a file of at most ``bytes_max``, whose length the sender announces."""

        def read(response: http.client.HTTPResponse) -> bytes:
            length = response.length
            if length is None or length > bytes_max:
                raise ProtocolError(
                    f"{self.url} sends a {name} of {length} bytes, at most {bytes_max} expected"
                )
            data = response.read(length)
            if len(data) < length:
                raise Unreachable(f"{self.url}: the connection ended in the middle of the {name}")
            return data

        headers = authorization(grant.key.hex())
        path = f"{_receiver_path(grant)}/{name}"
        fetch = functools.partial(
            self._peer.exchange, "GET", path, None, headers, read, refusal=self._refusal
        )
        return await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)

    async def _json(
        self, method: str, path: str, *, body: JsonObject | None = None, key: bytes | None = None
    ) -> object:
        bearer = self._bearer() if key is None else key.hex()
        return await self._peer.exchange_json(
            method, path, body=body, bearer=bearer, refusal=self._refusal, timeout_s=self._timeout_s
        )

    # -- in a thread ------------------------------------------------------------------------------------------

    def _fetch_manifest(self, path: str, into: ManifestStore) -> None:
        def read(response: http.client.HTTPResponse) -> None:
            if response.length is not None and response.length != len(into):
                raise ProtocolError(
                    f"{self.url} sends a manifest of {response.length} bytes, but announced {len(into)}"
                )
            buffer = memoryview(bytearray(_READ_BYTES))
            done = 0
            while done < len(into):
                count = response.readinto(buffer[: len(into) - done])
                if count == 0:
                    raise Unreachable(f"{self.url}: the connection ended in the middle of the manifest")
                into.write(done, buffer[:count])
                done += count

        headers = authorization(self._bearer())
        self._peer.exchange(
            "GET", path, None, headers, read, refusal=self._refusal, timeout_s=self._timeout_s
        )

    def _refusal(self, status: int, detail: str) -> Exception:
        match status:
            case 404:
                return NoSenderError(f"the sender at {self.url} doesn't have this cast: {detail}")
            case 429:
                return Unreachable(f"{self.url}: {detail}")
            case 401:
                return JoinRefusedError(
                    f"the sender at {self.url} refused this machine: {detail}; give the join code of this cast, as "
                    "diskcast send prints it"
                )
            case 403 | 409:
                return JoinRefusedError(f"the sender at {self.url} refused this receiver: {detail}")
            case _:
                return SessionError(f"the sender at {self.url} answered {status}: {detail}")


def _receiver_path(grant: JoinGrant) -> str:
    return f"/casts/{grant.parameters.cast_id:08x}/receivers/{grant.receiver_id}"


async def retry_until(deadline: float, exchange: Callable[[], Awaitable[_Result]]) -> _Result:
    """Repeat ``exchange`` with growing pauses until there is an answer, and return or raise that.

    Args:
        deadline: time by trio's clock.
        exchange: calls a method of :class:`ControlClient`.

    Raises:
        NoSenderError: no answer before the deadline.
    """
    pause_s = RETRY_FIRST_S
    while True:
        try:
            return await exchange()
        except Unreachable as error:
            if trio.current_time() + pause_s > deadline:
                raise NoSenderError(
                    f"the sender doesn't answer: {error}; check that it is running and that no firewall blocks its "
                    "control port"
                ) from error
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RETRY_MAX_S)


def require_plausible_manifest(raw_bytes: int, block_bytes: int, manifest_bytes: int) -> None:
    """Raise :class:`ProtocolError` unless an image of that size can have a manifest of that size."""
    count = block_count_of(raw_bytes, block_bytes)
    if manifest_bytes > ManifestLayout(count, METADATA_BYTES_MAX).manifest_bytes:
        raise ProtocolError(
            f"the sender announces an implausible manifest: {manifest_bytes} bytes for {count} blocks"
        )
