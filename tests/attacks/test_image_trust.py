"""Attacks with images: a machine must write only what its operators signed, and never an older version of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import RollbackError, TrustError, UnsignedImageError
from protocol.image.image_format import ImageHeader
from protocol.program.options import JOIN_VARIABLE
from protocol.trust.join_code import JoinCode, signer_prefix
from protocol.trust.secret_key import ScryptLimits, SecretKey
from protocol.trust.statement import ImageStatement, SignedStatement
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.imaging.signature_page import write_signature
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.network.loopback_cast import LoopbackCast
from tests.support.programs.open_watch import OpenWatch
from tests.support.programs.processes import require_program
from tests.support.signing import SIGNER, STRANGER, signed

MADE = make_image("drz" * 4, name="lab")
OTHER = make_image("rrd" * 4, name="lab", seed=7)
UNTOUCHED = b"the user's own data" * 1000

Resign = Callable[[ImageHeader], ImageHeader]

ROGUE_SENDER = """
import sender.cast.open_cast as open_cast
from sender.imaging.image_signature import ImageSignature, SignatureState, SignedStatement, PublicKey
import sys

# A sender that announces whatever its file says, and isn't stopped by its own checks.
def unchecked(settings, image):
    signed = image.header.signed
    statement = sys.modules["protocol.trust.statement"].ImageStatement(image.header.image_id, "lab", 1)
    return ImageSignature(SignatureState.SIGNED, signed, statement, None)

open_cast._signature = unchecked
from sender.cli import main
main()
"""


def statement_of(made: MadeImage, version: int = 7, tags: tuple[str, ...] = ("lab-pc",)) -> ImageStatement:
    return ImageStatement(made.manifest.image_id, "lab", version, tags)


def altered(header: ImageHeader) -> ImageHeader:
    """Raise the version of a signed statement, and keep its signature."""
    both = signed(statement_of(MADE))
    raised = both.statement.replace(b"version: 7", b"version: 8")
    return header.with_signature(SignedStatement(raised, both.signature), SIGNER.public)


def truncated(header: ImageHeader) -> ImageHeader:
    """Cut the last line of a signed statement."""
    both = signed(statement_of(MADE))
    return header.with_signature(
        SignedStatement(both.statement.removesuffix(b"patches: none\n"), both.signature), SIGNER.public
    )


def mixed(header: ImageHeader) -> ImageHeader:
    """Put the signed statement of one image onto another."""
    return header.with_signature(signed(statement_of(OTHER)), SIGNER.public)


def by(key: SecretKey, tags: tuple[str, ...] = ("lab-pc",)) -> Resign:
    return lambda header: header.with_signature(signed(statement_of(MADE, tags=tags), key), key.public)


@pytest.mark.parametrize(
    ("resign", "error"),
    [
        (None, UnsignedImageError),
        (by(STRANGER), UnsignedImageError),
        (altered, UnsignedImageError),
        (truncated, UnsignedImageError),
        (mixed, TrustError),
        (by(SIGNER, tags=("server",)), TrustError),
    ],
    ids=["unsigned", "foreign", "altered", "truncated", "mix-and-match", "wrong tag"],
)
def test_02_an_image_without_a_valid_signature_never_opens_the_target(
    tmp_path: Path, resign: Resign | None, error: type[TrustError]
) -> None:
    """Otherwise an attacker on a room's network overwrites its disks with an image of their own."""
    image, target = MADE.write(tmp_path / "lab.dci", signer=None), tmp_path / "disk"
    target.write_bytes(UNTOUCHED)
    if resign is not None:
        with ImageFile.open(image) as opened:
            page = resign(opened.header).to_page()
        with image.open("r+b") as file:
            file.write(page)
    rogue = resign in (altered, truncated, mixed)
    with OpenWatch(target) as watch, RogueCast(image) if rogue else LoopbackCast(image) as cast:
        agent = cast.receive(target, "--trust-key", SIGNER.public.text, "--require-tag", "lab-pc")
        assert agent.wait(LIMIT_S) == error.exit_code, agent.describe()
        assert agent.result["error_class"] == error.__name__
        assert not watch.touched
    assert target.read_bytes() == UNTOUCHED


class RogueCast(LoopbackCast):
    """A cast by a sender that skips its own checks."""

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-c", ROGUE_SENDER, *(str(argument) for argument in arguments)]


def test_02_a_machine_without_keys_accepts_only_the_signer_in_its_join_code(tmp_path: Path) -> None:
    """A sender whose image was exchanged after the operator read the code must not get through."""
    image, target = MADE.write(tmp_path / "lab.dci"), tmp_path / "disk"
    target.write_bytes(UNTOUCHED)
    none = {"DISKCAST_TRUST_KEYS": ""}
    with LoopbackCast(image) as cast:
        code = JoinCode.parse(cast.join_code)
        with OpenWatch(target) as watch:
            other = dataclasses.replace(code, signer=signer_prefix(STRANGER.public)).text
            agent = cast.receive(target, environment={**none, JOIN_VARIABLE: other})
            assert agent.wait(LIMIT_S) == UnsignedImageError.exit_code, agent.describe()
            assert not watch.touched
        agent = cast.receive(target, environment=none)
        assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert target.read_bytes()[: len(MADE.raw)] == MADE.raw


def test_02_a_machine_without_any_key_accepts_no_image(tmp_path: Path) -> None:
    """A machine that was set up in a hurry must not become one that takes any image."""
    image, target = MADE.write(tmp_path / "lab.dci"), tmp_path / "disk"
    target.write_bytes(UNTOUCHED)
    with OpenWatch(target) as watch, LoopbackCast(image) as cast:
        code = dataclasses.replace(JoinCode.parse(cast.join_code), signer="").text
        agent = cast.receive(
            target,
            "--trusted-keys",
            str(tmp_path / "none"),
            environment={"DISKCAST_TRUST_KEYS": "", JOIN_VARIABLE: code},
        )
        assert agent.wait(LIMIT_S) == UnsignedImageError.exit_code, agent.describe()
        assert "trusts no key" in agent.result["error"]
        assert not watch.touched


def test_03_a_version_below_the_floor_is_refused(tmp_path: Path) -> None:
    """Otherwise an attacker brings back a signed image of last year, with its known holes."""
    image, target = MADE.write(tmp_path / "lab.dci"), tmp_path / "disk"
    target.write_bytes(UNTOUCHED)
    write_signature(image, signed(statement_of(MADE, 7)), SIGNER.public)
    with LoopbackCast(image) as cast:
        with OpenWatch(target) as watch:
            refused = cast.receive(target, "--min-version", "8")
            assert refused.wait(LIMIT_S) == RollbackError.exit_code, refused.describe()
            assert not watch.touched
        accepted = cast.receive(target, "--min-version", "7")
        assert accepted.wait(LIMIT_S) == 0, accepted.describe()
    assert target.read_bytes()[: len(MADE.raw)] == MADE.raw


def test_22_the_whole_cast_of_yesterday_has_no_effect(tmp_path: Path) -> None:
    """Otherwise an attacker who recorded a cast once can undo every update since."""
    old, new = MADE.write(tmp_path / "old.dci"), OTHER.write(tmp_path / "new.dci")
    write_signature(old, signed(statement_of(MADE, 7)), SIGNER.public)
    write_signature(new, signed(statement_of(OTHER, 8)), SIGNER.public)
    target, state = tmp_path / "disk", ("--state-directory", str(tmp_path / "state"))
    for image in (old, new):
        with LoopbackCast(image) as cast:
            agent = cast.receive(target, *state)
            assert agent.wait(LIMIT_S) == 0, agent.describe()
    with OpenWatch(target) as watch, LoopbackCast(old) as replay:
        agent = replay.receive(target, *state)
        assert agent.wait(LIMIT_S) == RollbackError.exit_code, agent.describe()
        assert not watch.touched
    assert target.read_bytes()[: len(OTHER.raw)] == OTHER.raw


def test_28_minisign_and_diskcast_accept_each_others_signatures(tmp_path: Path) -> None:
    """Otherwise an air-gapped signer would have to trust and install this program."""
    image = MADE.write(tmp_path / "lab.dci", signer=None)
    statement, signature = tmp_path / "lab.statement", tmp_path / "lab.statement.minisig"
    run(*diskcast("sign", image, "--export", statement))
    for passphrase in ("", "correct horse"):  # both kinds of secret key
        key = tmp_path / f"lab{len(passphrase)}.key"
        key.touch(mode=0o600)
        cheap = ScryptLimits(operations=32768, memory_bytes=1 << 20)
        key.write_text(SIGNER.file_text(passphrase=passphrase, salt=b"s" * 32, limits=cheap))
        run("minisign", "-S", "-s", key, "-m", statement, typed=f"{passphrase}\n")
        run(*diskcast("sign", image, "--import", statement, "--public-key", SIGNER.public.text))
        with ImageFile.open(image) as opened:
            assert ImageSignature.of(opened.header).signer == SIGNER.public
        signature.unlink()
        run(*diskcast("sign", statement, "--key", key, "--passphrase-file", "-"), typed=f"{passphrase}\n")
        run("minisign", "-V", "-H", "-P", SIGNER.public.text, "-m", statement)
    run(*diskcast("verify", image))


def run(program: str | Path, *arguments: str | Path, typed: str = "") -> str:
    command = [require_program(str(program)) if program == "minisign" else program, *arguments]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_29_signing_again_during_a_cast_harms_nothing(tmp_path: Path) -> None:
    """Otherwise an operator who renews a signature ruins the cast that a room is waiting for."""
    made = make_image("r" * 160, name="lab")  # 10 MiB that don't compress: seconds at this rate
    image, targets = made.write(tmp_path / "lab.dci"), [tmp_path / f"disk{number}" for number in range(2)]
    with LoopbackCast(image, "--wait-for", "2", "--rate", "30M") as cast:
        agents = [cast.receive(target) for target in targets]
        cast.sender.wait_event("progress", LIMIT_S, lambda event: event.get("sent_bytes", 1) > 0)
        for _ in range(3):
            with Program(diskcast("sign", image, "--json")) as signing:
                assert signing.wait(LIMIT_S) == 0, signing.describe()
        assert cast.sender.exit_code is None, "signed while the cast was running"
        for agent in agents:
            assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert cast.sender.wait(LIMIT_S) == 0, cast.sender.describe()
    for target in targets:
        assert target.read_bytes()[: len(made.raw)] == made.raw


@pytest.mark.parametrize("sectors", [0, 1, 3, 6, 8])
def test_29_after_a_power_cut_in_the_page_a_valid_signature_is_left(tmp_path: Path, sectors: int) -> None:
    """Otherwise a power cut of a second costs an image that took hours to pack; the unit tests cut at every sector."""
    image, target = MADE.write(tmp_path / "lab.dci"), tmp_path / "disk"
    old = image.read_bytes()[:4096]
    cut = f"""
import os, signal, sys
write = os.pwrite
def torn(fd, data, offset):
    if os.readlink(f"/proc/self/fd/{{fd}}") == {str(image)!r}:
        write(fd, bytes(data)[: {sectors} * 512], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data, offset)
os.pwrite = torn
from sender.cli import main
sys.argv = ["diskcast", "sign", {str(image)!r}, "--image-version", "9"]
main()
"""
    done = subprocess.run([sys.executable, "-c", cut], capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == -9, done.stderr
    assert (image.read_bytes()[:4096] == old) is (sectors == 0)
    run(*diskcast("verify", image))
    with LoopbackCast(image) as cast:
        agent = cast.receive(target, "--min-version", "1" if sectors == 0 else "9")
        assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert target.read_bytes()[: len(MADE.raw)] == MADE.raw


def test_31_no_secret_of_the_signer_leaves_its_file(tmp_path: Path) -> None:
    """Otherwise `ps`, the journal or a metrics page would show any local user the key of a whole fleet."""
    passphrase = "correct horse battery staple"
    key, words, image = tmp_path / "lab.key", tmp_path / "words", tmp_path / "lab.dci"
    for path, text in (
        (key, SIGNER.file_text(passphrase=passphrase, salt=b"s" * 32, limits=ScryptLimits(32768, 1 << 20))),
        (words, passphrase + "\n"),
        (tmp_path / "disk.raw", ""),
    ):
        path.touch(mode=0o600)
        path.write_text(text)
    (tmp_path / "disk.raw").write_bytes(MADE.raw)
    secrets = (passphrase.encode(), SIGNER.seed, SIGNER.seed.hex().encode(), key.read_bytes().splitlines()[1])
    seen = b""
    pack = ("pack", tmp_path / "disk.raw", "-o", image, "--key", key, "--passphrase-file", words, "--json")
    for command in (pack, ("sign", image, "--key", key, "--passphrase-file", words, "--json")):
        with Program(diskcast(*command)) as program:
            while program.exit_code is None:
                seen += processes_text(program.pid)
            assert program.wait(LIMIT_S) == 0, program.describe()
            seen += repr(program.events).encode() + program.stderr_text().encode()
    with Program(
        diskcast("sign", image, "--key", key, "--passphrase-file", key)
    ) as program:  # a wrong passphrase
        assert program.wait(LIMIT_S) != 0
        seen += program.stderr_text().encode()
    with LoopbackCast(image) as cast:
        agent = cast.receive(tmp_path / "disk")
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        for one in (cast.sender, agent):
            seen += processes_text(one.pid) + repr(one.events).encode() + one.stderr_text().encode()
    assert b"lab.key" in seen, "the watch saw the command lines"
    for secret in secrets:
        assert secret not in seen
        assert secret not in image.read_bytes()


def processes_text(pid: int) -> bytes:
    """Return what other users may see of a process: its arguments and environment, of its threads' names too."""
    text = b""
    for name in ("cmdline", "environ", "comm"):
        try:
            text += Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:  # it has ended
            continue
    return text


def test_a_sender_refuses_to_announce_an_invalid_signature(tmp_path: Path) -> None:
    """A room that refuses an image after everybody has arrived costs the operator an hour."""
    image = MADE.write(tmp_path / "lab.dci")
    with ImageFile.open(image) as opened:
        page = dataclasses.replace(opened.header, signer=STRANGER.public.key).to_page()
    with image.open("r+b") as file:
        file.write(page)
    with Program(
        diskcast("send", image, "--interface", "lo", "--control", "127.0.0.1:0", "--json")
    ) as sender:
        assert sender.wait(LIMIT_S) == UnsignedImageError.exit_code, sender.describe()
