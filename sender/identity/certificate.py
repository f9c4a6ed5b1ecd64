"""The program's own TLS certificate: self-signed, made at the first start, recognised by its pin.

Certificate and key are one PEM file, so that a rotation replaces both at once. A rotation has two steps, so that
every agent can learn the new pin first: :func:`prepare_next` makes the next certificate, whose pin is shown beside the
current one; :func:`rotate` puts it into use.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import ssl
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigurationError
from protocol.trust.pin import pin_of
from sender.identity.private_files import ensure_private_file, read_private_file

CERTIFICATE_FILE: Final = "certificate.pem"
NEXT_CERTIFICATE_FILE: Final = "certificate.next.pem"

VALID_FOR: Final = timedelta(days=730)
"""Two years: browsers refuse certificates that are valid for more than 825 days."""

EXPIRES_SOON: Final = timedelta(days=30)
"""Time before the expiry from which the daemon asks for attention."""

_BACKDATED: Final = timedelta(days=1)
"""A client's clock may be behind."""


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key.

    Attributes:
        certificate_file: PEM file of the certificate, and of the chain if a CA issued it.
        key_file: PEM file of the private key; may be the same file.
        pin: the certificate's pin.
        not_after: end of its validity. Pinned clients don't check it, but browsers do.
    """

    certificate_file: Path
    key_file: Path
    pin: str
    not_after: datetime

    def server_context(self) -> ssl.SSLContext:
        """Return a server's TLS 1.3 context.

        Raises:
            ConfigurationError: the key doesn't belong to the certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        # Agents keep their connections open: tickets to resume sessions would only add bytes to every handshake.
        context.num_tickets = 0
        try:
            context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"can't use the certificate {self.certificate_file} with the key {self.key_file}: "
                f"{error.strerror or error}; give a PEM file of the certificate and one of its key"
            ) from error
        return context

    def expires_soon(self, now: datetime) -> bool:
        """Return whether the certificate expires within :data:`EXPIRES_SOON`, or has expired."""
        return self.not_after - now <= EXPIRES_SOON


def ensure_certificate(directory: Path, name: str, now: datetime) -> Certificate:
    """Return the certificate in ``directory``, made now if there is none.

    Args:
        directory: directory of keys and certificates.
        name: common name of a new certificate, for people.
        now: the time.

    Raises:
        ConfigurationError: the file can't be made, read or understood.
    """
    path = directory / CERTIFICATE_FILE
    content = ensure_private_file(path, lambda: _make_pem(name, now))
    return _parse(path, path, content)


def find_certificate(directory: Path) -> Certificate | None:
    """Return the certificate in ``directory``; None if there is none.

    Raises:
        ConfigurationError: the file can't be read or understood.
    """
    return _find(directory / CERTIFICATE_FILE)


def load_certificate(certificate_file: Path, key_file: Path) -> Certificate:
    """Load a site's own certificate, which may come from a CA.

    Raises:
        ConfigurationError: one of the files is missing, unreadable or malformed, or others may read the key.
    """
    try:
        read_private_file(key_file)
        return _parse(certificate_file, key_file, certificate_file.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"can't read {error.filename}: {error.strerror}; give the certificate and its key as PEM files"
        ) from error


def next_certificate(directory: Path) -> Certificate | None:
    """Return the certificate for the next rotation; None if none is prepared.

    Raises:
        ConfigurationError: its file can't be read or understood.
    """
    return _find(directory / NEXT_CERTIFICATE_FILE)


def prepare_next(directory: Path, name: str, now: datetime) -> Certificate:
    """Return the certificate for the next rotation, made now if none is prepared.

    Raises:
        ConfigurationError: its file can't be made, read or understood.
    """
    path = directory / NEXT_CERTIFICATE_FILE
    return _parse(path, path, ensure_private_file(path, lambda: _make_pem(name, now)))


def rotate(directory: Path) -> Certificate:
    """Replace the certificate by the next one, and return that.

    A running program uses the old one until it is restarted.

    Raises:
        ConfigurationError: no next certificate is prepared, or the files can't be replaced.
    """
    if next_certificate(directory) is None:
        raise ConfigurationError(
            "no next certificate is prepared: run 'diskcast certificate rotate --prepare', give its pin to the agents, "
            "then rotate"
        )
    current, prepared = directory / CERTIFICATE_FILE, directory / NEXT_CERTIFICATE_FILE
    try:
        prepared.replace(current)
    except OSError as error:
        raise ConfigurationError(
            f"can't replace {current}: {error.strerror}; make its directory writable for this user"
        ) from error
    return _parse(current, current, read_private_file(current))


def _find(path: Path) -> Certificate | None:
    try:
        return _parse(path, path, read_private_file(path))
    except FileNotFoundError:
        return None


def _make_pem(name: str, now: datetime) -> bytes:
    """Return a new key and its self-signed certificate, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(_names(name)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _names(name: str) -> Collection[x509.GeneralName]:
    """Return the names for browsers, which compare them even if the user trusts the certificate."""
    loopback: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    return loopback if not name.isascii() or name == "localhost" else [x509.DNSName(name), *loopback]


def _parse(certificate_file: Path, key_file: Path, content: bytes) -> Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigurationError(
            f"{certificate_file} isn't a certificate in PEM form: {error}; remove it to get a new one, whose pin every "
            "agent then needs"
        ) from error
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certificate(
        certificate_file, key_file, pin_of(der), certificate.not_valid_after_utc.astimezone(UTC)
    )
