"""A small cast in memory for tests of the sender's shell: image file, parameters, session and wake-ups."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import CastId, CastParameters, JoinGrant, JoinRequest
from protocol.sending.sender_session import SenderSession
from sender.cast.session.locked_session import LockedSession
from sender.imaging.image_file import ImageFile
from tests.support.disks.disk_images import MadeImage, make_image

SYMBOL_BYTES = 1440


@dataclasses.dataclass
class Rig:
    """The parts of the cast; ``wakes`` counts the wake-ups of the event loop."""

    made: MadeImage
    image: ImageFile
    parameters: CastParameters
    session: SenderSession
    locked_session: LockedSession
    wakes: list[float]

    def join(self, name: str = "pc-1", agent_id: str = "agent-1") -> JoinGrant:
        """Join a receiver that has the manifest and needs all blocks."""
        request = JoinRequest(agent_id, name, {}, True, None, "127.0.0.1")
        with self.locked_session.update() as (session, now):
            return session.join(request, now)

    def start_casting(self) -> JoinGrant:
        """Join one receiver, which completes the room."""
        grant = self.join()
        with self.locked_session.update() as (session, now):
            session.control_datagrams(now)
        return grant


def make_rig(
    folder: Path,
    kinds: str = "drzudr",
    *,
    group: str = "239.255.68.98",
    port: int = 7410,
    policy: CastPolicy | None = None,
    encrypted: bool = False,
) -> Rig:
    """Return a cast of an image with one block per letter."""
    made = make_image(kinds)
    image = ImageFile.open(made.write(folder / "image.dci"))
    parameters = CastParameters(
        cast_id=CastId(0x1234ABCD),
        incarnation=77,
        image_id=image.manifest.image_id,
        image_name=image.manifest.name,
        raw_bytes=image.manifest.raw_bytes,
        block_bytes=image.manifest.block_bytes,
        manifest_bytes=len(image.manifest.data),
        symbol_bytes=SYMBOL_BYTES,
        group=group,
        port=port,
        sender_address="127.0.0.1",
        feedback_port=7411,
        control_url="http://127.0.0.1:7411",
        encrypted=encrypted,
    )
    session = SenderSession(
        parameters,
        image.manifest,
        policy=policy or CastPolicy(),
        rng=random.Random(1),
        secrets=random.Random(2).randbytes,
        now=time.monotonic(),
    )
    wakes: list[float] = []
    locked_session = LockedSession(session, lambda: wakes.append(time.monotonic()))
    return Rig(made, image, parameters, session, locked_session, wakes)
