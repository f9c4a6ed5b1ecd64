"""The client of an upload: each step is an exchange on a kept connection, which blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, TypeVar

from protocol.control.capture_messages import (
    BATCH_TYPE,
    CAPTURE_END,
    CAPTURE_FAILURE,
    CAPTURE_POSITION,
    CAPTURE_RESULT,
    CAPTURE_START,
    SPAN_ANSWER,
    CaptureAssignment,
    CaptureEnd,
    CaptureFailure,
    CapturePosition,
    CaptureResult,
    CaptureStart,
    ProofBatch,
    SpanAnswer,
    upload_path,
)
from protocol.control.control_messages import JSON_TYPE, parse_json_untrusted
from protocol.errors import CaptureFailedError, CertificateError, ProtocolError
from protocol.schema.json_fields import JsonRecord
from receiver.reception.network.http_client import HttpPeer, Unreachable, authorization, read_answer

_TIMEOUT_S: Final = 60.0
"""Timeout of connecting and of each answer: with a rate limit a batch waits for its turn."""
_COMMIT_TIMEOUT_S: Final = 600.0
"""The daemon hashes the manifest and flushes the image to its disk."""

_R = TypeVar("_R")

Body = Sequence[bytes] | dict[str, object]
"""A batch in pieces, which are sent without being joined, or JSON."""


class OutOfStep(Exception):  # noqa: N818 - a state between retries, never shown as an error
    """The daemon expects another batch: start again."""


class SecretReplaced(Exception):  # noqa: N818 - not an error of this run: another one has the new secret
    """The secret is no longer valid: a check-in gives a new one, if the capture is still this machine's."""


class UploadClient:
    """The upload of one capture; its methods block, and may be called from several threads.

    All of them raise ``Unreachable`` if a retry may succeed, :class:`OutOfStep`, :class:`SecretReplaced`, and
    :class:`CaptureFailedError` once the capture has ended.
    """

    def __init__(self, peer: HttpPeer, assignment: CaptureAssignment) -> None:
        self._peer = peer
        self._assignment = assignment

    def start(self, message: CaptureStart) -> CapturePosition:
        """Start the upload, or continue it."""
        return self._post("", CAPTURE_START.encode(message), CAPTURE_POSITION)

    def send_spans(self, head: bytes, payload: Sequence[bytes]) -> SpanAnswer:
        """Send a batch, see :class:`protocol.control.capture_messages.SpanBatch`; safe to repeat."""
        return self._post("spans", (head, *payload), SPAN_ANSWER)

    def send_proof(self, batch: ProofBatch) -> CapturePosition:
        """Send a batch of the proof; safe to repeat."""
        return self._post("proof", (batch.to_bytes(),), CAPTURE_POSITION)

    def commit(self, message: CaptureEnd) -> CaptureResult:
        """Complete the image; safe to repeat."""
        return self._post("commit", CAPTURE_END.encode(message), CAPTURE_RESULT, _COMMIT_TIMEOUT_S)

    def report_failure(self, message: CaptureFailure) -> None:
        """Report the reason for which this machine can't make the capture."""
        self._exchange("failure", CAPTURE_FAILURE.encode(message), _TIMEOUT_S)

    def _post(
        self,
        step: str,
        body: Body,
        record: JsonRecord[_R],
        timeout_s: float = _TIMEOUT_S,
    ) -> _R:
        answer = self._exchange(step, body, timeout_s)
        try:
            return record.decode_untrusted("answer", parse_json_untrusted(answer))
        except ProtocolError as error:
            raise Unreachable(f"{self._peer.url}: an answer that isn't understood: {error}") from error

    def _exchange(self, step: str, body: Body, timeout_s: float) -> bytes:
        payload = (json.dumps(body).encode(),) if isinstance(body, dict) else body
        headers = {
            "Accept": JSON_TYPE,
            "Content-Type": JSON_TYPE if isinstance(body, dict) else BATCH_TYPE,
            "Content-Length": str(sum(map(len, payload))),
            **authorization(self._assignment.secret),
        }
        path = upload_path(self._assignment.capture_id, step)
        try:
            return self._peer.exchange(
                "POST", path, payload, headers, read_answer, refusal=_refusal, timeout_s=timeout_s
            )
        except CertificateError as error:
            # Another program may only be answering for the moment; it got nothing.
            raise Unreachable(str(error)) from error


def _refusal(status: int, detail: str) -> Exception:
    match status:
        case 409:
            return OutOfStep(detail)
        case 401 | 403:
            return SecretReplaced(detail)
        case 408 | 429:
            return Unreachable(detail)
        case _:
            return CaptureFailedError(detail)
