"""Keys and signatures go both ways between diskcast and Debian's minisign: an air-gapped signer needs nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from protocol.trust.minisign import PublicKey, parse_signature_untrusted, verify
from protocol.trust.secret_key import ScryptLimits, is_encrypted, parse_secret_key
from protocol.trust.statement import ImageStatement
from tests.support.programs.processes import require_program
from tests.support.signing import SIGNER

STATEMENT = ImageStatement(bytes(range(32)), "lab", 7, ("uefi",)).encode()
CHEAP = ScryptLimits(operations=32768, memory_bytes=1 << 20)
"""minisign reads the limits from the file; with these, both programs need milliseconds."""


def minisign(folder: Path, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [require_program("minisign"), *arguments]
    return subprocess.run(command, cwd=folder, input=typed, capture_output=True, text=True, check=False)


def test_minisign_accepts_our_signature(tmp_path: Path) -> None:
    (tmp_path / "statement").write_bytes(STATEMENT)
    signature = SIGNER.sign(STATEMENT, trusted_comment="diskcast lab version 7")
    (tmp_path / "statement.minisig").write_text(signature.file_text())
    (tmp_path / "our.pub").write_text(SIGNER.public.file_text("lab") + "not-after: never\n")
    for key in (("-p", "our.pub"), ("-P", SIGNER.public.text)):
        done = minisign(tmp_path, "-V", "-H", *key, "-m", "statement")
        assert done.returncode == 0, done.stderr
        assert "diskcast lab version 7" in done.stdout
    (tmp_path / "statement").write_bytes(STATEMENT.replace(b"version: 7", b"version: 8"))
    assert minisign(tmp_path, "-V", "-p", "our.pub", "-m", "statement").returncode != 0


@pytest.mark.parametrize("passphrase", ["", "correct horse"])
def test_minisign_signs_with_our_key(tmp_path: Path, passphrase: str) -> None:
    (tmp_path / "our.key").write_text(SIGNER.file_text(passphrase=passphrase, salt=b"s" * 32, limits=CHEAP))
    (tmp_path / "statement").write_bytes(STATEMENT)
    done = minisign(tmp_path, "-S", "-s", "our.key", "-m", "statement", typed=passphrase + "\n")
    assert done.returncode == 0, done.stderr
    signature = parse_signature_untrusted((tmp_path / "statement.minisig").read_text())
    assert verify(STATEMENT, signature, SIGNER.public)


def test_we_sign_with_minisigns_plain_key(tmp_path: Path) -> None:
    done = minisign(tmp_path, "-G", "-W", "-s", "their.key", "-p", "their.pub")
    assert done.returncode == 0, done.stderr
    key = parse_secret_key((tmp_path / "their.key").read_text())
    _signs_for_minisign(tmp_path, key.sign(STATEMENT, trusted_comment="").file_text())


def test_we_sign_with_minisigns_encrypted_key(tmp_path: Path) -> None:
    done = minisign(tmp_path, "-G", "-s", "their.key", "-p", "their.pub", typed="horse\nhorse\n")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "their.key").read_text()
    assert is_encrypted(text)
    key = parse_secret_key(text, "horse")
    assert key.public == PublicKey.parse((tmp_path / "their.pub").read_text())
    _signs_for_minisign(tmp_path, key.sign(STATEMENT, trusted_comment="").file_text())


def _signs_for_minisign(folder: Path, signature: str) -> None:
    (folder / "statement").write_bytes(STATEMENT)
    (folder / "statement.minisig").write_text(signature)
    done = minisign(folder, "-V", "-H", "-p", "their.pub", "-m", "statement")
    assert done.returncode == 0, done.stderr
