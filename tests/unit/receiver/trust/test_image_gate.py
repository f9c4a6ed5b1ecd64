"""The gate before the target: its keys come from several sources, its floors outlive the agent."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from protocol.control.control_messages import CastDescription, cast_description
from protocol.errors import ConfigurationError, RollbackError, TrustError, UnsignedImageError
from protocol.model.cast_state import CastState
from protocol.trust.join_code import signer_prefix
from protocol.trust.statement import ImageStatement
from protocol.trust.trusted_keys import TrustedKey
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.image_gate import ImageGate
from receiver.trust.kernel_command_line import KernelTrust, read_kernel_trust
from receiver.trust.options import trust_options
from receiver.trust.rollback_floors import FLOORS_FILE, FLOORS_MAX, RollbackFloors
from tests.support.signing import IMPOSTOR, NOW, SIGNER, STRANGER, TRUSTED, signed
from tests.unit.protocol.control.test_control_messages import PARAMETERS

IMAGE_ID = PARAMETERS.image_id


def cast(version: int = 7, tags: tuple[str, ...] = ()) -> CastDescription:
    both = signed(ImageStatement(IMAGE_ID, "lab", version, tags))
    parameters = dataclasses.replace(
        PARAMETERS, signer="", image_name="lab", statement=both.statement.decode(), signature=both.signature
    )
    return cast_description(parameters, state=CastState.GATHERING, receiver_count=0)


def options(tmp_path: Path, **changes: Any) -> TrustOptions:
    defaults: dict[str, Any] = {"directory": tmp_path / "trusted-keys.d", "kernel": KernelTrust}
    return TrustOptions(**{**defaults, **changes})


def gate(tmp_path: Path, **changes: Any) -> ImageGate:
    return ImageGate(options(tmp_path, **changes), lambda: NOW)


def test_each_source_of_keys_is_enough(tmp_path: Path) -> None:
    with pytest.raises(UnsignedImageError, match="trusts no key"):
        gate(tmp_path).accept(cast())
    assert gate(tmp_path, keys=(TRUSTED,)).accept(cast()).verified is not None
    assert gate(tmp_path, kernel=lambda: KernelTrust((TRUSTED,))).accept(cast()).verified is not None
    directory = tmp_path / "trusted-keys.d"
    directory.mkdir()
    (directory / "lab.pub").write_text(TRUSTED.file_text())
    accepted = gate(tmp_path).accept(cast())
    assert accepted.verified is not None
    assert accepted.verified.key.name == "lab"
    assert (accepted.image_id, accepted.name) == (IMAGE_ID, "lab")


def test_the_signer_in_the_join_code_counts_only_without_other_keys(tmp_path: Path) -> None:
    """The code is read off the sender's screen; a machine with keys of its own doesn't take the sender's word."""
    code = signer_prefix(SIGNER.public)
    offered = dataclasses.replace(cast(), signer=SIGNER.public.text)
    accepted = gate(tmp_path, signer=code).accept(offered)
    assert accepted.verified is not None
    assert accepted.verified.key.name == "the join code"
    with pytest.raises(UnsignedImageError, match="doesn't trust"):
        gate(tmp_path, signer=code, keys=(TrustedKey(STRANGER.public, "own"),)).accept(offered)
    with pytest.raises(UnsignedImageError, match="join code names another"):
        gate(tmp_path, signer=signer_prefix(STRANGER.public)).accept(offered)
    with pytest.raises(UnsignedImageError, match="trusts no key"):
        gate(tmp_path, signer=code).accept(cast())
    with pytest.raises(UnsignedImageError, match="invalid key"):
        gate(tmp_path, signer=code).accept(dataclasses.replace(cast(), signer="RW"))
    with pytest.raises(UnsignedImageError, match="join code names another"):
        gate(tmp_path, signer=code).accept(dataclasses.replace(cast(), signer=IMPOSTOR.public.text))


def test_a_revocation_counts_for_the_next_cast_of_a_running_agent(tmp_path: Path) -> None:
    running = gate(tmp_path, keys=(TRUSTED,))
    assert running.accept(cast())
    (tmp_path / "trusted-keys.d").mkdir()
    revoked = dataclasses.replace(TRUSTED, revoked="laptop stolen")
    (tmp_path / "trusted-keys.d" / "lab.pub").write_text(revoked.file_text())
    with pytest.raises(UnsignedImageError, match="laptop stolen"):
        running.accept(cast())


def test_the_assigned_image_is_the_only_one(tmp_path: Path) -> None:
    trusting = gate(tmp_path, keys=(TRUSTED,), allow_unsigned=True)
    assert trusting.accept(cast(), assigned_id=IMAGE_ID)
    with pytest.raises(TrustError, match="the daemon assigned the image"):
        trusting.accept(cast(), assigned_id=bytes(32))


def test_the_highest_of_all_floors_counts(tmp_path: Path) -> None:
    with pytest.raises(RollbackError):
        gate(tmp_path, keys=(TRUSTED,), version_min=8).accept(cast(7))
    with pytest.raises(RollbackError):
        gate(tmp_path, keys=(TRUSTED,), kernel=lambda: KernelTrust(version_min=8)).accept(cast(7))
    with pytest.raises(RollbackError, match="the daemon requires 8"):
        gate(tmp_path, keys=(TRUSTED,)).accept(cast(7), version_min=8)
    assert gate(tmp_path, keys=(TRUSTED,), version_min=7).accept(cast(7), version_min=7)


def test_tags_of_options_and_kernel_are_required_together(tmp_path: Path) -> None:
    both = gate(
        tmp_path,
        keys=(TRUSTED,),
        tags=frozenset({"uefi"}),
        kernel=lambda: KernelTrust(tags=frozenset({"lab-pc"})),
    )
    with pytest.raises(TrustError, match="requires lab-pc"):
        both.accept(cast(tags=("uefi",)))
    assert both.accept(cast(tags=("lab-pc", "uefi")))


def test_yesterdays_version_is_refused_after_todays(tmp_path: Path) -> None:
    """The floor rises only when an image is complete: a failed cast must not lock a room out of its last good image."""
    state = tmp_path / "state"
    first = gate(tmp_path, keys=(TRUSTED,), state_directory=state)
    accepted = first.accept(cast(8))
    assert first.accept(cast(7))
    first.completed(accepted)
    restarted = gate(tmp_path, keys=(TRUSTED,), state_directory=state)
    with pytest.raises(RollbackError, match="accepts 8 and later"):
        restarted.accept(cast(7))
    assert restarted.accept(cast(8))
    restarted.completed(first.accept(cast(9)))
    assert RollbackFloors(state).load() == {"lab": 9}


def test_an_unsigned_image_raises_no_floor(tmp_path: Path) -> None:
    state = tmp_path / "state"
    allowing = gate(tmp_path, allow_unsigned=True, state_directory=state)
    accepted = allowing.accept(dataclasses.replace(cast(), statement="", signature=""))
    assert accepted.verified is None
    allowing.completed(accepted)
    assert RollbackFloors(state).load() == {}


# -- floors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "[]", '{"lab": -1}', '{"lab": "7"}', '{"lab": true}', '{"": 7}', "\xff"]
)
def test_damaged_floors_are_never_taken_for_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FLOORS_FILE).write_text(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        RollbackFloors(tmp_path).load()


def test_floors_only_rise_and_stay_bounded(tmp_path: Path) -> None:
    floors = RollbackFloors(tmp_path)
    floors.keep("lab", 2**64 - 1)
    floors.keep("lab", 7)
    assert floors.load() == {"lab": 2**64 - 1}
    (tmp_path / FLOORS_FILE).write_text(
        "{" + ", ".join(f'"{number}": 1' for number in range(FLOORS_MAX)) + "}"
    )
    floors.keep("new", 1)
    assert len(floors.load()) == FLOORS_MAX
    assert [entry.name for entry in tmp_path.iterdir()] == [FLOORS_FILE]


def test_floors_that_cant_be_kept_are_an_error_before_the_cast(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--state-directory"):
        gate(tmp_path, keys=(TRUSTED,), state_directory=tmp_path / "file" / "state").accept(cast())


# -- the kernel command line -------------------------------------------------------------------------------------


def test_the_kernel_command_line_gives_keys_floor_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_text(
        f"BOOT_IMAGE=/vmlinuz quiet diskcast.trust={SIGNER.public.text},{STRANGER.public.text} "
        "diskcast.min-version=202611301405 diskcast.min-version=7 diskcast.tag=lab-pc,uefi diskcast.other=1\n"
    )
    found = read_kernel_trust(path)
    assert [key.key for key in found.keys] == [SIGNER.public, STRANGER.public]
    assert found.version_min == 202611301405
    assert found.tags == {"lab-pc", "uefi"}
    assert read_kernel_trust(tmp_path / "missing") == KernelTrust()


@pytest.mark.parametrize(
    "word",
    ["diskcast.trust=RWabc", "diskcast.trust=", "diskcast.min-version=7a", f"diskcast.min-version={2**64}"],
)
def test_a_typo_on_the_kernel_command_line_is_an_error(tmp_path: Path, word: str) -> None:
    path = tmp_path / "cmdline"
    path.write_text(f"quiet {word}\n")
    with pytest.raises(ConfigurationError, match="kernel command line"):
        read_kernel_trust(path)


# -- options ------------------------------------------------------------------------------------------------------


def parsed(*arguments: str, environment: dict[str, str | None] | None = None) -> TrustOptions:
    found: list[TrustOptions] = []

    @click.command()
    @trust_options
    def command(trust: TrustOptions) -> None:
        found.append(trust)

    result = CliRunner().invoke(command, list(arguments), env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_keys_are_given_as_lines_files_or_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "lab.pub"
    file.write_text(dataclasses.replace(TRUSTED, not_after=NOW).file_text())
    trust = parsed("--trust-key", str(file), "--trust-key", STRANGER.public.text, "--require-tag", "uefi")
    assert [key.key for key in trust.keys] == [SIGNER.public, STRANGER.public]
    assert trust.keys[0].not_after == NOW
    assert trust.tags == {"uefi"}
    variables: dict[str, str | None] = {
        "DISKCAST_TRUST_KEYS": f"{SIGNER.public.text} {STRANGER.public.text}",
        "DISKCAST_STATE_DIRECTORY": str(tmp_path),
    }
    trust = parsed(environment=variables)
    assert trust.keys == (
        TrustedKey(SIGNER.public, "--trust-key"),
        TrustedKey(STRANGER.public, "--trust-key"),
    )
    assert trust.state_directory == tmp_path
    assert not trust.allow_unsigned


def test_a_missing_key_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't read the trusted key"):
        parsed("--trust-key", str(tmp_path / "none.pub"))


def test_no_option_is_needed_where_the_directory_has_a_key() -> None:
    trust = parsed(environment={"DISKCAST_TRUST_KEYS": None, "DISKCAST_STATE_DIRECTORY": None})
    assert (trust.keys, trust.state_directory, trust.version_min) == ((), None, 0)
    assert os.fspath(trust.directory) == "/etc/diskcast/trusted-keys.d"
