"""A client must not send its token to a program that merely answers at the right address."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from protocol.errors import CertificateError, ConfigurationError
from protocol.program.pinned_tls import (
    PIN_COUNT_MAX,
    PinMismatchError,
    ca_context,
    certificate_error,
    pinned_context,
    unpinned_context,
)
from protocol.trust.pin import PIN_CHARACTERS_MIN
from sender.identity.certificate import Certificate
from tests.support.network.tls_peer import TlsPeer, make_certificate, tls_peer

SECRET = "dct_enrol_secret"
OTHER_PIN = "a" * 52


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


def by_http_client(peer: TlsPeer, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", peer.port, timeout=5, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Authorization": f"Bearer {SECRET}"})
        return connection.getresponse().status


def by_httpx(peer: TlsPeer, context: ssl.SSLContext) -> int:
    with httpx.Client(verify=context, trust_env=False) as client:
        return client.get(peer.url, headers={"Authorization": f"Bearer {SECRET}"}).status_code


def by_asyncio(peer: TlsPeer, context: ssl.SSLContext) -> int:
    async def request() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port, ssl=context)
        try:
            writer.write(f"GET / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
            return int((await reader.readline()).split()[1])
        finally:
            writer.close()
            await writer.wait_closed()

    return asyncio.run(request())


CLIENTS = [by_http_client, by_httpx, by_asyncio]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("length", [PIN_CHARACTERS_MIN, 52])
def test_the_pinned_peer_gets_the_request(certificate: Certificate, client, length: int) -> None:
    with tls_peer(certificate) as peer:
        assert client(peer, pinned_context([certificate.pin[:length]])) == 200
    assert SECRET.encode() in peer.heard


@pytest.mark.parametrize("client", CLIENTS)
def test_another_peer_gets_nothing(certificate: Certificate, client) -> None:
    with tls_peer(certificate) as peer:
        with pytest.raises(Exception) as caught:
            client(peer, pinned_context([OTHER_PIN]))
        error = certificate_error(peer.url, caught.value)
        assert isinstance(error, CertificateError)
        assert certificate.pin in str(error)
        assert OTHER_PIN in str(error)
    assert peer.connection_count == 1
    assert not peer.heard


def test_the_error_is_typed_and_the_socket_closed(certificate: Certificate) -> None:
    """An unclosed socket would be a ResourceWarning, which fails this test."""
    with tls_peer(certificate) as peer, pytest.raises(PinMismatchError, match=OTHER_PIN):
        by_http_client(peer, pinned_context([OTHER_PIN]))


def test_either_of_two_pins_is_enough_during_a_rotation(certificate: Certificate) -> None:
    with tls_peer(certificate) as peer:
        assert by_http_client(peer, pinned_context([OTHER_PIN, certificate.pin])) == 200


def test_an_open_cast_accepts_every_certificate(certificate: Certificate) -> None:
    with tls_peer(certificate) as peer:
        assert by_http_client(peer, unpinned_context()) == 200


def test_an_older_tls_version_is_refused(certificate: Certificate) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.load_cert_chain(certificate.certificate_file)
    peer = TlsPeer(server)
    try:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol version"):
            by_http_client(peer, pinned_context([certificate.pin]))
    finally:
        peer.close()
    assert not peer.heard


def test_a_ca_vouches_for_names_not_for_others(certificate: Certificate, tmp_path: Path) -> None:
    stranger = make_certificate(tmp_path / "stranger")
    with tls_peer(certificate) as peer:
        assert by_http_client(peer, ca_context(certificate.certificate_file)) == 200
        peer.heard.clear()
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            by_http_client(peer, ca_context(stranger.certificate_file))
        assert "no CA vouches" in str(certificate_error(peer.url, caught.value))
    assert not peer.heard


def test_other_errors_are_no_certificate_errors() -> None:
    assert certificate_error("https://h", ConnectionRefusedError("refused")) is None
    assert certificate_error("https://h", ssl.SSLError("bad record")) is None


def test_a_context_needs_pins(tmp_path: Path) -> None:
    for pins in ([], [OTHER_PIN] * (PIN_COUNT_MAX + 1)):
        with pytest.raises(ConfigurationError, match="pins"):
            pinned_context(pins)
    with pytest.raises(ConfigurationError, match="as a CA"):
        ca_context(tmp_path / "missing.pem")


def test_a_wrong_pin_is_noticed_before_the_peer_is_heard(certificate: Certificate) -> None:
    """The check belongs to the handshake, so that a library that writes right after it can't be too early."""
    with (
        tls_peer(certificate) as peer,
        socket.create_connection(("127.0.0.1", peer.port)) as plain,
        pytest.raises(PinMismatchError),
    ):
        pinned_context([OTHER_PIN]).wrap_socket(plain)
    assert not peer.heard
