"""The sender's side fails in the middle of a cast or of packing: everybody is told, and nobody ends with wrong bytes.

Real programs between namespaces. The image is altered, cut short, replaced, or lies on a disk that fails or hangs; all
of it after the cast has begun, and before it has come to the place that is altered: the rate is fixed and low.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import CONTROL_PORT_DEFAULT, GIB, MIB
from protocol.errors import (
    EXIT_INTERRUPTED,
    CastCancelledError,
    CastFailedError,
    DiskcastError,
    ImageChangedError,
    SourceError,
    StorageError,
)
from protocol.image.image_format import PAGE_BYTES
from sender.imaging.image_file import ImageFile
from tests.bench.measurement import first_difference
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, slow_disk
from tests.support.network.lab import (
    LIMIT_S,
    Network,
    Program,
    diskcast,
    held,
    receive,
    run,
    send,
    wait_until,
)

pytestmark = pytest.mark.needs_root

SLOW_RATE = "48M"
"""6 MB/s: the image takes four seconds."""
CAST_ID = "00c0ffee"
RAW_BYTES = 24 * MIB
PACKING_BYTES_PER_S = 4 * MIB
"""Six seconds; a change beside a mount is known here after one."""


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of random bytes with zeros in between, packed beside it."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(21)
    source = folder / "disk.raw"
    source.write_bytes(rng.bytes(RAW_BYTES // 2) + bytes(2 * MIB) + rng.bytes(RAW_BYTES // 2 - 2 * MIB))
    with Program(diskcast("pack", source, "-o", folder / "disk.dci", "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return source


@pytest.fixture
def image(packed_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copy(packed_once.with_suffix(".dci"), tmp_path / "disk.dci"))


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(2) as network:
        yield network


def start_room(
    network: Network, image: Path, folder: Path, *options: str, patience: tuple[str, ...] = ()
) -> tuple[Program, list[Program]]:
    """A sender and two agents, which know the cast's id and needn't listen for others."""
    agents = [join(network, index, folder, *patience) for index in range(2)]
    argv = ("--cast-id", CAST_ID, "--wait-for", "2", "--rate", SLOW_RATE)
    return send(network, image, *argv, *options), agents


def join(network: Network, index: int, folder: Path, *options: str) -> Program:
    return receive(network, index, target_of(folder, index), "--cast", CAST_ID, *options)


def target_of(folder: Path, index: int) -> Path:
    return folder / f"target-{index}"


def wait_progress(sender: Program, share: float) -> None:
    """Wait until the first sweep over the image has come further than ``share``, and hasn't ended."""
    sender.wait_event("progress", LIMIT_S, lambda event: share < event["pass_progress"] < 1)


def wait_joined(sender: Program, count: int) -> None:
    """Wait until this many receivers have joined."""

    def joined(_event: dict[str, object]) -> bool:
        return sum(event["event"] == "receiver_joined" for event in sender.events) >= count

    sender.wait_event("receiver_joined", LIMIT_S, joined)


def assert_failed(program: Program, kind: type[DiskcastError], *words: str) -> None:
    assert program.wait(LIMIT_S) == kind.exit_code, program.describe()
    result = program.result
    assert (result["ok"], result["exit_code"], result["error_class"]) == (
        False,
        kind.exit_code,
        kind.__name__,
    )
    for word in words:
        assert word in result["error"], result["error"]


def assert_incomplete(agent: Program, source: Path, target: Path, *words: str) -> None:
    """The agent says that the cast failed and why, and its target isn't taken for the disk."""
    assert_failed(agent, CastFailedError, "the sender ended the cast", "the target is incomplete", *words)
    # A new file for which nothing was prepared yet is removed.
    assert not target.exists() or first_difference(source, target) is not None


def assert_complete(agent: Program, source: Path, target: Path) -> None:
    assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert first_difference(source, target) is None


def stored_offset(image: Path, share: float) -> tuple[int, int]:
    """A block with stored bytes about there in the image, and where they are in the file."""
    with ImageFile.open(image) as opened:
        manifest = opened.manifest
        stored = np.flatnonzero(manifest.stored_mask)
        block = int(stored[int(share * stored.size)])
        return block, opened.header.payload_offset + manifest.offset_of(block)


def alter(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        octet = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([octet ^ 0x40]))


# -- the image file ---------------------------------------------------------------------------------------------


def alter_block(image: Path) -> str:
    block, offset = stored_offset(image, 0.9)
    alter(image, offset + 100)
    return f"block {block} "


def truncate_payload(image: Path) -> str:
    os.truncate(image, stored_offset(image, 0.9)[1] + 1000)
    return "truncated"


def truncate_within_manifest(image: Path) -> str:
    os.truncate(image, PAGE_BYTES + 10)
    return "truncated"


def overwrite_all(image: Path) -> str:
    """As by a copy onto the file instead of beside it."""
    with image.open("r+b") as file:
        file.write(np.random.default_rng(1).bytes(image.stat().st_size))
    return "block "


@pytest.mark.parametrize("spoil", [alter_block, truncate_payload, truncate_within_manifest, overwrite_all])
def test_an_image_that_is_changed_ends_the_cast_everywhere(
    network: Network, packed_once: Path, image: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    sender, agents = start_room(network, image, tmp_path)
    wait_progress(sender, 0.1)
    words = spoil(image)
    assert_failed(sender, ImageChangedError, str(image), words)
    for index, agent in enumerate(agents):
        assert_incomplete(agent, packed_once, target_of(tmp_path, index), words)
    assert all(receiver["state"] != "complete" for receiver in sender.result["receivers"])


def test_the_end_is_told_over_a_network_that_loses_every_second_datagram(
    network: Network, packed_once: Path, image: Path, tmp_path: Path
) -> None:
    """The last words can't be asked for again."""
    sender, agents = start_room(network, image, tmp_path)
    wait_progress(sender, 0.1)
    network.drop_every(2)
    truncate_within_manifest(image)
    assert_failed(sender, ImageChangedError)
    for index, agent in enumerate(agents):
        assert_incomplete(agent, packed_once, target_of(tmp_path, index))


def test_a_manifest_that_is_altered_reaches_nobody(
    network: Network, packed_once: Path, image: Path, tmp_path: Path
) -> None:
    """Not even a receiver that joins later and fetches it from the sender."""
    url = f"https://{network.sender.address}:{CONTROL_PORT_DEFAULT}"
    early = join(network, 0, tmp_path)
    patient = ("--rate", SLOW_RATE, "--receiver-timeout", str(LIMIT_S))
    sender = send(network, image, "--cast-id", CAST_ID, *patient)
    wait_progress(sender, 0.1)
    with image.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * 2000)
    with held(early):
        late = join(network, 1, tmp_path, "--sender", url)
        wait_joined(sender, 2)
    for index, agent in enumerate((early, late)):
        assert_complete(agent, packed_once, target_of(tmp_path, index))
    assert sender.wait(LIMIT_S) == 0, sender.describe()


def test_who_is_complete_before_stays_complete_and_the_cast_has_failed_all_the_same(
    network: Network, packed_once: Path, image: Path, tmp_path: Path
) -> None:
    """The late one needs again what the early one has had: by then it is another's bytes."""
    url = f"https://{network.sender.address}:{CONTROL_PORT_DEFAULT}"
    early = join(network, 0, tmp_path)
    # Slow: the late one has yet to begin, and to join before the early one ends.
    sender = send(network, image, "--cast-id", CAST_ID, "--rate", "24M")
    wait_progress(sender, 0.3)
    late = join(network, 1, tmp_path, "--sender", url)
    wait_joined(sender, 2)
    block, offset = stored_offset(image, 0.25)
    alter(image, offset)
    assert_complete(early, packed_once, target_of(tmp_path, 0))
    assert_failed(sender, ImageChangedError, f"block {block} ")
    assert_incomplete(late, packed_once, target_of(tmp_path, 1), f"block {block} ")
    states = [receiver["state"] for receiver in sender.result["receivers"]]
    assert states[0] == "complete"
    assert states[1] != "complete"


def test_an_image_that_is_replaced_is_cast_to_its_end_as_it_was(
    network: Network, packed_once: Path, image: Path, tmp_path: Path
) -> None:
    """``pack`` onto an image that is being cast: the room gets the old one, the next cast the new one."""
    sender, agents = start_room(network, image, tmp_path)
    wait_progress(sender, 0.1)
    other = tmp_path / "other.raw"
    other.write_bytes(np.random.default_rng(5).bytes(MIB))
    with Program(diskcast("pack", other, "-o", image, "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    wait_progress(sender, 0.1)
    for index, agent in enumerate(agents):
        assert_complete(agent, packed_once, target_of(tmp_path, index))
    assert sender.wait(LIMIT_S) == 0, sender.describe()


# -- the disk or server that the image is on ----------------------------------------------------------------------


@pytest.fixture
def disk(packed_once: Path, tmp_path: Path) -> Iterator[SlowDisk]:
    """With the image, and with the disk that it was packed from, on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with slow_disk(folder, Behaviour()) as disk:
        for path in (packed_once, packed_once.with_suffix(".dci")):
            shutil.copy(path, disk.storage / path.name)
        yield disk


def fail(disk: SlowDisk, action: Action, error: str = "EIO") -> None:
    """From the middle of what is read of the image, or of the disk that is packed."""
    disk.set_behaviour(
        Behaviour(faults=(Fault(Operation.READ, action, error=error, after_bytes=RAW_BYTES // 3),))
    )


@pytest.mark.parametrize("error", ["EIO", "ESTALE"])
def test_an_image_that_cannot_be_read_any_more_ends_the_cast_everywhere(
    network: Network, packed_once: Path, disk: SlowDisk, tmp_path: Path, error: str
) -> None:
    fail(disk, Action.ERROR, error)
    sender, agents = start_room(network, disk.directory / "disk.dci", tmp_path)
    words = ("can't read the image at offset", "check the disk")
    assert_failed(sender, StorageError, str(disk.directory / "disk.dci"), *words)
    for index, agent in enumerate(agents):
        assert_incomplete(agent, packed_once, target_of(tmp_path, index), *words)


def source_stalled(event: dict[str, object]) -> bool:
    bottleneck = event["bottleneck"]
    assert isinstance(bottleneck, dict)
    return bottleneck["cause"] == "source" and event["achieved_bytes_per_s"] == 0


def test_a_file_server_that_comes_back_is_waited_for_by_everybody(
    network: Network, packed_once: Path, disk: SlowDisk, tmp_path: Path
) -> None:
    """Longer than any of the room's patience with a dead peer, since nobody is dead."""
    fail(disk, Action.HANG)
    options, patience = ("--receiver-timeout", "5", "--slow-for", "1s"), ("--sender-timeout", "5")
    sender, agents = start_room(network, disk.directory / "disk.dci", tmp_path, *options, patience=patience)
    sender.wait_event("progress", LIMIT_S, source_stalled)
    casts = run(*network.sender.prefix, sys.executable, "-c", ASK_CASTS, network.sender.address)
    assert '"casting"' in casts
    first = next(event for event in sender.events if event["event"] == "progress" and source_stalled(event))
    sender.wait_event("progress", LIMIT_S, lambda event: event["elapsed_s"] > first["elapsed_s"] + 8)
    assert disk.counts()["hanging"]
    disk.set_behaviour(Behaviour())
    for index, agent in enumerate(agents):
        assert_complete(agent, packed_once, target_of(tmp_path, index))
    assert sender.wait(LIMIT_S) == 0, sender.describe()
    names = {event["event"] for event in sender.events}
    assert not names & {"receiver_lost", "receiver_demoted", "receiver_dropped"}
    assert any(bottleneck["cause"] == "source" for bottleneck in sender.result["bottleneck_seconds"])


ASK_CASTS = f"""
import sys, urllib.request
from protocol.program.pinned_tls import unpinned_context
url = f"https://{{sys.argv[1]}}:{CONTROL_PORT_DEFAULT}/api/v1/casts"
print(urllib.request.urlopen(url, timeout=60, context=unpinned_context()).read().decode())
"""


@pytest.mark.parametrize("signals", [1, 2], ids=["Ctrl-C", "Ctrl-C twice"])
def test_ctrl_c_ends_a_cast_whose_file_server_is_gone(
    network: Network, disk: SlowDisk, tmp_path: Path, signals: int
) -> None:
    """The read that hangs can't be interrupted; the program must end without it."""
    fail(disk, Action.HANG)
    sender, agents = start_room(network, disk.directory / "disk.dci", tmp_path)
    sender.wait_event("progress", LIMIT_S, source_stalled)
    for _ in range(signals):
        sender.signal(signal.SIGINT)
    assert sender.wait(LIMIT_S) == EXIT_INTERRUPTED, sender.describe()
    assert disk.counts()["hanging"]
    for agent in agents:
        assert_failed(agent, CastCancelledError)
    assert "hasn't returned" in sender.wait_event("note", 0.0)["text"]
    assert not sender.stderr_text()


# -- memory -------------------------------------------------------------------------------------------------------

SENDER_BYTES_MAX = 400 * 10**6


def pack_sparse(folder: Path, raw_bytes: int) -> Path:
    """An image of a thin disk; the rows of its manifest are as many as of a full one."""
    source = folder / "thin.raw"
    with source.open("wb") as file:
        file.truncate(raw_bytes)
        file.write(np.random.default_rng(3).bytes(MIB))
    with Program(diskcast("pack", source, "-o", folder / "thin.dci", "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return folder / "thin.dci"


def assert_memory_bounded(sender: Program) -> None:
    assert sender.usage is not None
    assert sender.usage.peak_bytes < SENDER_BYTES_MAX


def test_casting_a_large_disk_keeps_the_sender_within_its_memory(network: Network, tmp_path: Path) -> None:
    """64 GiB: a manifest of 17 MiB, which is in memory beside what the session knows of each block."""
    thin = pack_sparse(tmp_path, 64 * GIB)
    agent = join(network, 0, tmp_path)
    sender = send(network, thin, "--cast-id", CAST_ID)
    assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert sender.wait(LIMIT_S) == 0, sender.describe()
    assert_memory_bounded(sender)


# -- packing ------------------------------------------------------------------------------------------------------


def start_pack(disk: SlowDisk, output: Path) -> Program:
    output.parent.mkdir()
    return Program(diskcast("pack", disk.directory / "disk.raw", "-o", output, "--json"))


def assert_nothing_packed(program: Program, output: Path, *words: str) -> None:
    assert_failed(program, SourceError, "disk.raw", *words)
    assert list(output.parent.iterdir()) == []


def test_a_source_disk_that_fails_leaves_no_image(disk: SlowDisk, tmp_path: Path) -> None:
    fail(disk, Action.ERROR)
    with start_pack(disk, tmp_path / "images" / "disk.dci") as program:
        assert_nothing_packed(program, tmp_path / "images" / "disk.dci", "at offset", "Input/output error")


def grow(disk: SlowDisk) -> str:
    os.truncate(disk.directory / "disk.raw", RAW_BYTES + 4096)
    return "changed its size"


def write_to(disk: SlowDisk) -> str:
    """Beside the mount, as another client of a file server would; waits until that is known here."""
    path = disk.directory / "disk.raw"
    before = path.stat().st_mtime_ns
    alter(disk.storage / "disk.raw", 7)
    wait_until("the change is known", lambda: path.stat().st_mtime_ns != before)
    return "was written to"


@pytest.mark.parametrize("change", [grow, write_to])
def test_a_source_that_changes_leaves_no_image(
    disk: SlowDisk, tmp_path: Path, change: Callable[[SlowDisk], str]
) -> None:
    """What was read before and what was read after aren't one disk."""
    disk.set_behaviour(Behaviour(read_bytes_per_s=PACKING_BYTES_PER_S))
    with start_pack(disk, tmp_path / "images" / "disk.dci") as program:
        program.wait_event("progress", LIMIT_S, lambda event: 0 < event["done_bytes"] < RAW_BYTES / 2)
        words = change(disk)
        assert_nothing_packed(program, tmp_path / "images" / "disk.dci", words)
