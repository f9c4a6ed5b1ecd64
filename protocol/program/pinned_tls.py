"""TLS contexts of clients: TLS 1.3 only, to the holder of a pinned certificate or to one that a CA vouches for.

The pin is compared when the handshake is done and before anything else is sent, in the objects that the context makes:
``http.client``, ``httpx`` and ``asyncio`` therefore all check it, and none of them can send a token first. A pinned
certificate's dates and names aren't checked: netbooted machines have wrong clocks, and the pin says more than a name.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from protocol.errors import CertificateError, ConfigurationError
from protocol.trust.pin import pin_matches, pin_of

PIN_COUNT_MAX: Final = 8
"""Most pins of one peer: a site rotates from one certificate to the next, and has a few daemons with one each."""


class PinMismatchError(CertificateError, ssl.SSLError):
    """The peer's certificate doesn't match the pin.

    It is an ``SSLError`` too, because asyncio and http.client close the connection properly only for those.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class _PinnedContext(ssl.SSLContext):
    """A client's context with its pins.

    Attributes:
        pins: whole pins or prefixes; empty to accept every certificate.
    """

    pins: tuple[str, ...] = ()

    def check(self, certificate_der: bytes | None) -> None:
        """Raise :class:`PinMismatchError` unless the peer's certificate has one of the pins."""
        if not self.pins:
            return
        if certificate_der is None or not any(pin_matches(pin, certificate_der) for pin in self.pins):
            found = "no certificate" if certificate_der is None else pin_of(certificate_der)
            raise PinMismatchError(
                f"the certificate has the pin {found}, but {' or '.join(self.pins)} is expected: another program "
                "answers in its place, or its certificate was renewed; compare the pin with the one that the sender or "
                "'diskcast certificate show' prints there"
            )


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        assert isinstance(self.context, _PinnedContext)
        self.context.check(self.getpeercert(binary_form=True))


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        assert isinstance(self.context, _PinnedContext)
        self.context.check(self.getpeercert(binary_form=True))


def pinned_context(pins: Collection[str]) -> ssl.SSLContext:
    """Return a context for a peer whose certificate has one of these pins.

    Args:
        pins: pins or prefixes of pins, as :func:`protocol.trust.pin.parse_pin` returns them.

    Raises:
        ConfigurationError: there is no pin, or there are too many.
    """
    if not 1 <= len(pins) <= PIN_COUNT_MAX:
        raise ConfigurationError(f"{len(pins)} pins: give 1 to {PIN_COUNT_MAX}, the current and the next one")
    return _context(tuple(pins))


def unpinned_context() -> ssl.SSLContext:
    """Return a context that accepts every certificate: for open casts, which need no secret, and for tests of reach."""
    return _context(())


def ca_context(ca_file: Path) -> ssl.SSLContext:
    """Return a context for peers with a certificate for their host name from a site's own authority.

    Raises:
        ConfigurationError: the file can't be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"can't use {ca_file} as a CA: {error.strerror or error}; give a file of certificates in PEM form"
        ) from error
    _only_tls_1_3(context)
    return context


def certificate_error(url: str, error: BaseException) -> CertificateError | None:
    """Return the error to report if ``error`` means that the certificate of the peer at ``url`` isn't the right one.

    Args:
        url: the peer's URL, for the message.
        error: an error of the connection; HTTP libraries wrap that of the handshake.
    """
    for cause in _causes(error):
        if isinstance(cause, PinMismatchError):
            return CertificateError(f"{url} isn't trusted: {cause}")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateError(
                f"{url} isn't trusted: no CA vouches for its certificate ({cause.verify_message}); give --pin with the "
                "pin that the peer prints, or --ca, the host name of the certificate and the right time on this machine"
            )
    return None


def _context(pins: tuple[str, ...]) -> ssl.SSLContext:
    context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    _only_tls_1_3(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake still proves that the peer has the certificate's key
    context.pins = pins
    context.sslsocket_class = _PinnedSocket
    context.sslobject_class = _PinnedObject
    return context


def _only_tls_1_3(context: ssl.SSLContext) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
