"""Attacks by a listener on the network of a room that receives what a cast multicasts."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import DATA_HEADER_BYTES, MIB
from protocol.image.manifest import BlockKind
from protocol.wire.batch import header_view
from sender.imaging.image_file import ImageFile
from tests.attacks.eavesdropper import recorded
from tests.attacks.raw_frames import CastFrame
from tests.bench.measurement import first_difference
from tests.support.network.lab import INTERFACE, LIMIT_S, Network, Program, diskcast, held, receive, send
from tests.support.network.loopback_cast import pack

pytestmark = pytest.mark.needs_root

CAST_ID = "00e0e0e0"
MARKER = b"Domain-Admin-Password: correct horse battery staple"
SYMBOL_BYTES = 1440
IMAGE_BYTES = 8 * MIB


def make_disk(path: Path, seed: int) -> Path:
    """Make an incompressible disk with a marker in every 16 KiB, and its image."""
    content = bytearray(np.random.default_rng(seed).bytes(IMAGE_BYTES))
    for start in range(0, IMAGE_BYTES, 16 << 10):
        content[start : start + len(MARKER)] = MARKER
    path.write_bytes(content)
    pack(path, path.with_suffix(".dci"))
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw", 24)


def eavesdrop(network: Network, index: int, path: Path) -> Program:
    """Start a recorder on a receiver's machine."""
    argv = [sys.executable, "-m", "tests.attacks.eavesdropper", str(path)]
    program = network.start(network.receivers[index], argv)
    program.wait_event("ready", LIMIT_S)
    return program


def captured(disk: Path, folder: Path, *options: str) -> list[CastFrame]:
    """Cast to one agent, and return what a listener recorded of it."""
    folder.mkdir()
    with Network(2) as network:
        listener = eavesdrop(network, 1, folder / "capture")
        agent = receive(network, 0, folder / "target", "--cast", CAST_ID)
        sender = send(network, disk.with_suffix(".dci"), "--cast-id", CAST_ID, "--rate", "200M", *options)
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        listener.signal(signal.SIGTERM)
        listener.wait(LIMIT_S)
    assert first_difference(disk, folder / "target") is None
    return recorded(folder / "capture")


def test_24_a_capture_of_an_encrypted_cast_shows_nothing_of_the_image(disk: Path, tmp_path: Path) -> None:
    """A user would lose the secrets of an image to anybody who plugs a laptop into the room."""
    with ImageFile.open(disk.with_suffix(".dci")) as image:
        hashes = [image.manifest.stored_hash[block].tobytes() for block in range(image.manifest.block_count)]
        assert set(image.manifest.kind.tolist()) == {BlockKind.RAW}
    plain = b"".join(frame.payload for frame in captured(disk, tmp_path / "plain"))
    sealed = b"".join(frame.payload for frame in captured(disk, tmp_path / "sealed", "--encrypt"))
    assert len(sealed) > IMAGE_BYTES
    assert plain.count(MARKER) > 0.9 * IMAGE_BYTES / (16 << 10)
    assert MARKER not in sealed
    assert sum(digest in plain for digest in hashes) > len(hashes) / 2, "the manifest is cast, too"
    assert not any(digest in sealed for digest in hashes)


class NonceRecorder:
    """The ciphertext that was captured under each run and nonce, and the key streams that it reveals.

    The listener knows the images, and so has the key stream of every source symbol: ciphertext XOR plaintext. One key
    and nonce always give the same key stream, so a stream that occurs with two ciphertexts shows a nonce used twice.
    """

    def __init__(self) -> None:
        self._sent: dict[tuple[str, int, int, int], bytes] = {}
        self._streams: dict[bytes, tuple[str, int, int]] = {}
        self.resent_count = 0

    def add(self, run: str, frames: list[CastFrame], stored: dict[tuple[int, int], bytes]) -> None:
        """Check a run's capture; ``stored`` has the plaintext of each object's blocks."""
        for object_index, block, esi, symbol in symbols_of(frames):
            place = (run, object_index, block, esi)
            if place in self._sent:
                self.resent_count += 1
                assert self._sent[place] == symbol, f"{place}: two ciphertexts under one key and nonce"
                continue
            self._sent[place] = symbol
            plain = stored[object_index, block][esi * SYMBOL_BYTES : (esi + 1) * SYMBOL_BYTES]
            if len(plain) < 64:
                continue  # a repair symbol, or the tag and padding at the end
            stream = bytes(a ^ b for a, b in zip(symbol[:64], plain[:64], strict=True))
            earlier = self._streams.setdefault(stream, place[:3])
            assert earlier == place[:3], f"{place} and {earlier} use one key and nonce"


def symbols_of(frames: list[CastFrame]) -> Iterator[tuple[int, int, int, bytes]]:
    for frame in frames:
        if frame.is_data:
            rows = frame.symbols(SYMBOL_BYTES)
            for header, row in zip(header_view(rows.copy()), rows, strict=True):
                yield (
                    int(header["object"]),
                    int(header["block"]),
                    int(header["esi"]),
                    row[DATA_HEADER_BYTES:].tobytes(),
                )


def stored_of(image: Path) -> dict[tuple[int, int], bytes]:
    """Return the plaintext of every block of manifest and image."""
    with ImageFile.open(image) as file:
        manifest = file.manifest
        data = bytes(manifest.data[:])
        pieces = range(0, len(data), manifest.block_bytes)
        found = {(0, index): data[start : start + manifest.block_bytes] for index, start in enumerate(pieces)}
        for block in range(manifest.block_count):
            into = bytearray(manifest.block_bytes)
            found[1, block] = bytes(into[: file.read_stored(block, memoryview(into))])
    return found


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sender of the cast: of a disk's image, at a host of the network, to its end or killed halfway."""

    name: str
    host_index: int
    disk: Path
    killed: bool


def test_25_no_key_and_nonce_meet_two_plaintexts(disk: Path, tmp_path: Path) -> None:
    """A user would lose both blocks: with one key stream, their ciphertexts reveal the XOR of their contents.

    One cast id, four runs: a sender that is killed halfway and restarted, another machine that takes the cast over, and
    an operator who casts another image under the same id. Losses and a late machine make them send blocks again.
    """
    other = make_disk(tmp_path / "other.raw", 25)
    runs = (
        Run("first", 0, disk, killed=True),
        Run("restart", 0, disk, killed=False),
        Run("take-over", 4, disk, killed=True),
        Run("another image", 0, other, killed=False),
    )
    recorder = NonceRecorder()
    with Network(4) as network:
        network.set_offload(False)
        network.set_loss(50, [network.receivers[0]])
        for run in runs:
            capture = tmp_path / run.name
            listener = eavesdrop(network, 1, capture)
            cast_once(network, run, tmp_path)
            listener.signal(signal.SIGTERM)
            listener.wait(LIMIT_S)
            recorder.add(run.name, recorded(capture), stored_of(run.disk.with_suffix(".dci")))
    assert recorder.resent_count > 100, "blocks were sent again"


def cast_once(network: Network, run: Run, folder: Path) -> None:
    """Cast to a lossy machine and, unless the sender is killed, to one that joins late."""
    host = network.hosts[run.host_index]
    agent = receive(network, 0, folder / f"{run.name} 0", "--cast", CAST_ID)
    options = (
        "--cast-id",
        CAST_ID,
        "--encrypt",
        "--rate",
        "48M",
        "--symbol-size",
        str(SYMBOL_BYTES),
        "--json",
    )
    image = run.disk.with_suffix(".dci")
    sender = network.start(host, diskcast("send", image, "--interface", INTERFACE, "--open", *options))
    sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.4)
    if run.killed:
        for program in (sender, agent):
            program.signal(signal.SIGKILL)
            program.wait(LIMIT_S)
        return
    with held(agent):
        late = receive(network, 2, folder / f"{run.name} 2", "--cast", CAST_ID)
        late.wait_event("joined", LIMIT_S)
    for program in (agent, late, sender):
        assert program.wait(LIMIT_S) == 0, program.describe()
    for index in (0, 2):
        assert first_difference(run.disk, folder / f"{run.name} {index}") is None
