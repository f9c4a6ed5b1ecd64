"""Check the keys on this machine: the user's signing key, and the keys that it trusts."""

from __future__ import annotations

import datetime
from pathlib import Path

from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from protocol.program.key_findings import judge_trusted_keys, read_key_files
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY
from protocol.trust.minisign import PublicKey
from protocol.trust.secret_key import is_encrypted
from sender.identity.private_files import read_private_file
from sender.identity.signing_keys import default_key_path, public_key_path

_CHECK = "signing key"


def judge_signing_key() -> Finding:
    """Check that the user's signing key is private and complete."""
    try:
        path = default_key_path()
        text = read_private_file(path).decode("ascii", "replace")
        encrypted = is_encrypted(text)
        public = PublicKey.parse(public_key_path(path).read_text(encoding="ascii"))
    except FileNotFoundError as error:
        if str(error.filename).endswith(".pub"):
            fix = f"minisign -R -s {default_key_path()} -p {error.filename}"
            return warn(_CHECK, f"its public key {error.filename} is missing", fix)
        return ok(_CHECK, "none yet: `diskcast pack` makes one")
    except (ConfigurationError, OSError, ValueError) as error:
        return fail(
            _CHECK, str(error), f"chmod 600 {default_key_path()}, or restore both files from the backup"
        )
    return ok(_CHECK, f"{public.id_text} in {path}, {'encrypted' if encrypted else 'not encrypted'}, private")


def judge_keys(now: datetime.datetime, directory: Path = TRUSTED_KEYS_DIRECTORY) -> list[Finding]:
    """Check the trusted keys of this machine; a sender needs none, but hands them on to new agents."""
    keys, findings = read_key_files(directory)
    return [*findings, *judge_trusted_keys(keys, now)]
