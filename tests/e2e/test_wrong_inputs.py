"""Wrong inputs: each mistake has its message and exit code, and leaves no file behind.

Scripts rely on the exit codes, operators on the messages; and a mistake must never cost a disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import (
    AddressInUseError,
    AmbiguousCastError,
    ConfigurationError,
    DiskcastError,
    ImageDamagedError,
    ImageError,
    ImageFormatError,
    InterfaceError,
    NoSenderError,
    NotEnoughReceiversError,
    SourceError,
    TargetError,
    TargetInUseError,
    TargetIsImageError,
    TargetReadOnlyError,
    TargetTooSmallError,
    VerificationError,
)
from protocol.image.manifest_format import FORMAT_VERSION
from sender.imaging.image_file import ImageFile
from tests.support.disks.devices import loop_device
from tests.support.network.lab import LIMIT_S, Program, diskcast, diskcast_agent, run

BLOCK_BYTES = 64 * 1024
RAW_BYTES = 2 << 20
DAMAGED_BLOCK = 17


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    source: Path
    image: Path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("packed")
    source, image = folder / "disk.raw", folder / "disk.dci"
    source.write_bytes(np.random.default_rng(5).bytes(RAW_BYTES))
    with Program(diskcast("pack", source, "-o", image, "--block-size", "64KiB", "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return Packed(source, image)


def assert_refused(argv: Sequence[str], error: type[DiskcastError], *words: str) -> None:
    """Assert the exit code of ``error`` and ``words`` in the message, in JSON and as text."""
    with Program([*argv, "--json"]) as program:
        code = program.wait(LIMIT_S)
        assert code == error.exit_code, program.describe()
        result = program.result
    assert (result["ok"], result["error_class"]) == (False, error.__name__)
    assert result["exit_code"] == error.exit_code
    for word in words:
        assert word in result["error"], result["error"]
    with Program(argv) as program:
        assert program.wait(LIMIT_S) == error.exit_code
        text = " ".join(program.stderr_text().split())
        assert "error: " in text
        assert "Traceback" not in text, text
        for word in words:
            assert word in text, text


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# -- pack -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "directory", "character device"])
def test_source_that_cannot_be_packed_leaves_no_image(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    words = {"missing": "No such file", "empty": "empty", "directory": "directory"}.get(kind, "neither")
    if kind == "empty":
        source.touch()
    elif kind == "directory":
        source.mkdir()
    elif kind == "character device":
        source = Path("/dev/null")
    before = listing(tmp_path)
    assert_refused(diskcast("pack", source, "-o", tmp_path / "out.dci"), SourceError, str(source), words)
    assert listing(tmp_path) == before


def test_output_in_a_folder_that_does_not_exist(packed: Packed, tmp_path: Path) -> None:
    output = tmp_path / "missing" / "out.dci"
    assert_refused(diskcast("pack", packed.source, "-o", output), ConfigurationError, str(output.parent))


@pytest.mark.parametrize("size", ["100000", "8MiB", "1KiB", "large"])
def test_block_size_that_is_no_block_size(packed: Packed, tmp_path: Path, size: str) -> None:
    argv = diskcast("pack", packed.source, "-o", tmp_path / "out.dci", "--block-size", size)
    assert_refused(argv, ConfigurationError, size if size == "large" else "64")
    assert listing(tmp_path) == {}


# -- invalid images ------------------------------------------------------------------------------------

READERS = ("inspect", "verify", "unpack", "compare", "send")


def reader(command: str, image: Path, target: Path) -> list[str]:
    """Return a command line that reads ``image`` and would write ``target``."""
    match command:
        case "unpack":
            return diskcast("unpack", image, target)
        case "compare":
            return diskcast("verify", image, "--against", target)
        case "send":
            return diskcast("send", image, "--interface", "lo", "--control", "127.0.0.1:0", "--wait-for", "1")
        case _:
            return diskcast(command, image)


@pytest.mark.parametrize("command", READERS)
def test_missing_image(tmp_path: Path, command: str) -> None:
    image = tmp_path / "missing.dci"
    assert_refused(reader(command, image, tmp_path / "target"), ImageError, str(image))
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("command", READERS)
def test_truncated_image(packed: Packed, tmp_path: Path, command: str) -> None:
    image = tmp_path / "short.dci"
    image.write_bytes(packed.image.read_bytes()[:-1000])
    before = listing(tmp_path)
    assert_refused(reader(command, image, tmp_path / "target"), ImageDamagedError, str(image), "truncated")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", READERS)
def test_image_of_a_newer_format(packed: Packed, tmp_path: Path, command: str) -> None:
    image = tmp_path / "newer.dci"
    data = bytearray(packed.image.read_bytes())
    assert struct.unpack_from("<I", data, 8) == (FORMAT_VERSION,)
    struct.pack_into("<I", data, 8, FORMAT_VERSION + 1)
    image.write_bytes(data)
    before = listing(tmp_path)
    assert_refused(reader(command, image, tmp_path / "target"), ImageFormatError, str(image), "newer")
    assert listing(tmp_path) == before


def test_file_that_is_no_image(packed: Packed) -> None:
    assert_refused(diskcast("inspect", packed.source), ImageFormatError, str(packed.source))


def test_altered_manifest(packed: Packed, tmp_path: Path) -> None:
    image = tmp_path / "altered.dci"
    data = bytearray(packed.image.read_bytes())
    data[4096 + 500] ^= 1
    image.write_bytes(data)
    assert_refused(diskcast("inspect", image), ImageDamagedError, str(image), "manifest")


@pytest.fixture
def damaged(packed: Packed, tmp_path: Path) -> Path:
    """Return an image with one altered byte in one block."""
    path = tmp_path / "damaged.dci"
    shutil.copyfile(packed.image, path)
    with ImageFile.open(path) as image:
        offset = image.header.payload_offset + int(image.manifest.offsets[DAMAGED_BLOCK]) + 100
    with path.open("r+b") as file:
        file.seek(offset)
        octet = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([octet ^ 0x40]))
    return path


def test_verify_names_the_altered_block(damaged: Path) -> None:
    assert_refused(diskcast("verify", damaged), ImageDamagedError, str(damaged), f"block {DAMAGED_BLOCK} ")


def test_unpack_of_an_altered_image_names_the_block(damaged: Path, tmp_path: Path) -> None:
    argv = diskcast("unpack", damaged, tmp_path / "target")
    assert_refused(argv, ImageDamagedError, str(damaged), f"block {DAMAGED_BLOCK} ")


# -- targets ----------------------------------------------------------------------------------------------------


def test_target_is_the_image(packed: Packed, tmp_path: Path) -> None:
    image, link = tmp_path / "disk.dci", tmp_path / "link"
    shutil.copyfile(packed.image, image)
    link.symlink_to(image)
    before = listing(tmp_path)
    for target in (image, link):
        assert_refused(diskcast("unpack", image, target), TargetIsImageError, str(target))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["in no folder", "directory", "character device", "device that isn't there"])
def test_target_that_cannot_be_written(packed: Packed, tmp_path: Path, kind: str) -> None:
    target = {
        "in no folder": tmp_path / "missing" / "target",
        "directory": tmp_path,
        "character device": Path("/dev/null"),
    }.get(kind, Path("/dev/diskcast-no-such-disk"))
    assert_refused(diskcast("unpack", packed.image, target), TargetError, str(target))
    assert listing(tmp_path) == {}


def test_existing_target_of_another_content_differs_and_stays(packed: Packed, tmp_path: Path) -> None:
    target = tmp_path / "target"
    content = bytearray(packed.source.read_bytes())
    content[DAMAGED_BLOCK * BLOCK_BYTES + 5] ^= 1
    target.write_bytes(content)
    argv = diskcast("verify", packed.image, "--against", target)
    assert_refused(argv, VerificationError, str(target), str(DAMAGED_BLOCK))
    assert target.read_bytes() == content


@pytest.mark.needs_root
def test_disk_smaller_than_the_image(packed: Packed, tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    backing.write_bytes(b"precious" * (RAW_BYTES // 16))
    before = listing(tmp_path)
    with loop_device(backing) as device:
        argv = diskcast("unpack", packed.image, device)
        assert_refused(argv, TargetTooSmallError, str(device), "nothing was written")
    assert listing(tmp_path) == before


@pytest.mark.needs_root
def test_disk_that_is_read_only(packed: Packed, tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    backing.write_bytes(b"precious" * (RAW_BYTES // 8))
    before = listing(tmp_path)
    with loop_device(backing, "--read-only") as device:
        assert_refused(
            diskcast("unpack", packed.image, device), TargetReadOnlyError, str(device), "read-only"
        )
    assert listing(tmp_path) == before


@pytest.mark.needs_root
def test_disk_that_is_mounted(packed: Packed, tmp_path: Path) -> None:
    backing, point = tmp_path / "disk", tmp_path / "mounted"
    point.mkdir()
    with backing.open("wb") as file:
        file.truncate(4 * RAW_BYTES)
    run("mkfs.ext4", "-q", backing)
    with loop_device(backing) as device:
        run("mount", device, point)
        try:
            (point / "thesis.txt").write_text("irreplaceable")
            assert_refused(diskcast("unpack", packed.image, device), TargetInUseError, str(device), "in use")
            assert (point / "thesis.txt").read_text() == "irreplaceable"
        finally:
            run("umount", point)


# -- casts ------------------------------------------------------------------------------------------------------

GROUP = f"239.255.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"
"""A group of this test process alone: others may cast on the loopback interface at the same time."""


def sending(image: Path, *options: str) -> list[str]:
    return diskcast(
        "send", image, "--interface", "lo", "--group", GROUP, "--control", "127.0.0.1:0", "--open", *options
    )


def receiving(target: Path, *options: str) -> list[str]:
    return diskcast_agent(
        "receive", "--target", target, "--interface", "lo", "--group", GROUP, "--open", *options
    )


SETTLED_EVENT_COUNT = 5
"""Progress events come once a second; a sender that hears another sender in its first three seconds exits."""


@contextlib.contextmanager
def gathering_cast(image: Path, *options: str) -> Iterator[str]:
    """Run a sender that waits for receivers; yield its cast id."""
    with Program([*sending(image, *options), "--json"]) as program:
        yield str(program.wait_event("cast_started", LIMIT_S)["cast_id"])


@contextlib.contextmanager
def taken_port(kind: socket.SocketKind) -> Iterator[int]:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (("--interface", "nope0"), InterfaceError, "nope0"),
        (("--group", "10.1.2.3"), ConfigurationError, "10.1.2.3"),
        (("--group", "classroom"), ConfigurationError, "classroom"),
        (("--rate", "fast"), ConfigurationError, "fast"),
        (("--rate", "1k"), ConfigurationError, "1k"),
        (("--control", "192.0.2.1:7411"), ConfigurationError, "192.0.2.1"),
        (("--symbol-size", "9000000"), ConfigurationError, "9000000"),
    ],
)
def test_cast_that_cannot_start(
    packed: Packed, options: tuple[str, str], error: type[DiskcastError], word: str
) -> None:
    assert_refused(sending(packed.image, *options), error, word)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_control_port_that_is_taken(packed: Packed, kind: socket.SocketKind) -> None:
    with taken_port(kind) as port:
        argv = sending(packed.image, "--control", f"127.0.0.1:{port}")
        assert_refused(argv, AddressInUseError, str(port), "--control")


def test_metrics_port_that_is_taken(packed: Packed) -> None:
    with taken_port(socket.SOCK_STREAM) as port:
        argv = sending(packed.image, "--metrics-address", "127.0.0.1", "--metrics-port", str(port))
        assert_refused(argv, AddressInUseError, str(port), "--metrics-port")


def test_no_receiver_joins_in_time(packed: Packed) -> None:
    assert_refused(sending(packed.image, "--max-wait", "0.5"), NotEnoughReceiversError, "no receiver joined")


def test_same_cast_twice_on_one_group(packed: Packed) -> None:
    """Two senders of one cast would answer each other's receivers: the later one exits."""
    with Program([*sending(packed.image), "--json"]) as first:
        first.wait_event("progress", LIMIT_S, lambda _event: len(first.events) > SETTLED_EVENT_COUNT)
        assert_refused(sending(packed.image), AddressInUseError, "already being cast", GROUP)
        assert first.exit_code is None, first.describe()


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        (("--interface", "nope0"), InterfaceError, "nope0"),
        (("--group", "10.1.2.3"), ConfigurationError, "10.1.2.3"),
        (("--sender", "not a url"), ConfigurationError, "not a url"),
        (("--sender", "https://127.0.0.1:1", "--wait", "0.5"), NoSenderError, "127.0.0.1:1"),
        (("--sender", "http://127.0.0.1:1"), ConfigurationError, "isn't encrypted"),
        pytest.param(("--wait", "0.5"), NoSenderError, GROUP, id="no announcement"),
        (("--memory", "1MiB"), ConfigurationError, "1MiB"),
    ],
)
def test_agent_that_cannot_start(
    tmp_path: Path, options: tuple[str, ...], error: type[DiskcastError], word: str
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    assert_refused(receiving(target, *options), error, word)
    assert listing(tmp_path) == {"target": b"precious"}


@pytest.mark.parametrize("target", ["", "missing/disk"], ids=["a folder", "no folder for a file"])
def test_a_hopeless_target_is_refused_before_a_sender_is_awaited(tmp_path: Path, target: str) -> None:
    assert_refused(receiving(tmp_path / target, "--wait", "1h"), TargetError, str(tmp_path))
    assert listing(tmp_path) == {}


def test_agent_without_a_cast_id_finds_two_casts(packed: Packed, tmp_path: Path) -> None:
    with (
        gathering_cast(packed.image, "--cast-id", "000000aa") as first,
        gathering_cast(packed.image, "--cast-id", "000000bb") as second,
    ):
        assert_refused(receiving(tmp_path / "target"), AmbiguousCastError, first, second, "--cast")
    assert listing(tmp_path) == {}


def test_agent_whose_target_is_refused_does_not_join(packed: Packed, tmp_path: Path) -> None:
    """A refused target costs the room nothing: the agent doesn't join."""
    with Program([*sending(packed.image), "--json"]) as sender:
        cast_id = sender.wait_event("cast_started", LIMIT_S)["cast_id"]
        assert_refused(receiving(tmp_path, "--cast", cast_id), TargetError, str(tmp_path))
        assert not [event for event in sender.events if event["event"] == "receiver_joined"]
    assert listing(tmp_path) == {}


@pytest.mark.needs_root
def test_agent_whose_disk_is_too_small_does_not_join(packed: Packed, tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    backing.write_bytes(b"precious" * (RAW_BYTES // 16))
    before = listing(tmp_path)
    with Program([*sending(packed.image), "--json"]) as sender, loop_device(backing) as device:
        cast_id = sender.wait_event("cast_started", LIMIT_S)["cast_id"]
        argv = receiving(device, "--cast", cast_id)
        assert_refused(argv, TargetTooSmallError, str(device), "nothing was written")
        assert not [event for event in sender.events if event["event"] == "receiver_joined"]
    assert listing(tmp_path) == before
