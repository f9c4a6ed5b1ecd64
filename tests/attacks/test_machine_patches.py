"""Attacks by machine patches: a patch can give root to anybody, and may hold a machine's secrets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from protocol.control import control_messages as messages
from protocol.errors import PatchRefusedError
from protocol.trust.statement import PatchPolicy
from sender.send.patch_folder import PatchFolder
from tests.shell.sender_rig import make_rig
from tests.shell.test_control_api import CAST, check_problem, join_body, with_client
from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S
from tests.support.network.loopback_cast import LoopbackCast
from tests.support.patches import make_patch, signed_set, statement_of, write_patch
from tests.support.signing import SIGNER, STRANGER

MADE = make_image("drzd" * 12 + "d", tail_bytes=4096)
PATCH = make_patch(MADE.manifest, {0: "d", 20: "r"}, machine_id="pc-01")


def test_43_a_member_gets_no_patch_but_its_own(tmp_path: Path) -> None:
    """Otherwise one machine of a room reads the password hashes and keys of all others."""
    rig = make_rig(tmp_path)
    patches = [
        make_patch(rig.image.manifest, {0: "d"}, machine_id=f"pc-{number}", seed=number) for number in (1, 2)
    ]
    for patch in patches:
        write_patch(tmp_path, patch)
    folder = PatchFolder(tmp_path, rig.image.manifest.image_id)

    async def scenario(client: httpx.AsyncClient) -> None:
        grants = []
        for number in (1, 2):
            body = join_body(agent_id=f"agent-{number}", name=f"pc-{number}")
            answer = await client.post(f"{CAST}/receivers", content=body)
            grants.append(messages.grant_from_json_untrusted(answer.json()))
        for grant, patch in zip(grants, patches, strict=True):
            assert grant.patch_id == patch.patch_id
            path, key = f"{CAST}/receivers/{grant.receiver_id}/patch", f"Bearer {grant.key.hex()}"
            served = await client.get(path, headers={"Authorization": key})
            assert served.content == patch.data
            for other in grants:
                if other is not grant:
                    wrong = {"Authorization": f"Bearer {other.key.hex()}"}
                    check_problem(await client.get(path, headers=wrong), 401, "wrong key")
            check_problem(await client.get(path, headers={"Authorization": ""}), 401, "key is missing")
        stranger = await client.post(f"{CAST}/receivers", content=join_body(agent_id="agent-3", name="pc-3"))
        check_problem(stranger, 409, "no machine patch for pc-3")

    with_client(rig, scenario, patches=folder)


@pytest.mark.parametrize(
    ("policy", "partitions", "signer"),
    [
        (PatchPolicy.NONE, "all", SIGNER),
        (PatchPolicy.SIGNED, "all", None),
        (PatchPolicy.SIGNED, "all", STRANGER),
        (PatchPolicy.DAEMON, None, None),
    ],
    ids=["none", "not signed", "signed by a stranger", "outside the seed partition"],
)
def test_44_a_compromised_sender_changes_nothing_beyond_the_statement(
    tmp_path: Path, policy: PatchPolicy, partitions: str | None, signer: object
) -> None:
    """Otherwise a sender that was taken over puts its key into root's account on every machine of the room."""
    image = MADE.write(tmp_path / "made.dci", statement=statement_of(MADE, policy, partitions))
    folder = tmp_path / "patches"
    folder.mkdir()
    write_patch(folder, PATCH)
    if signer is not None:
        (folder / "patches.signed").write_bytes(signed_set([PATCH], key=signer).to_bytes())  # type: ignore[arg-type]
    target = tmp_path / "target"
    target.write_bytes(bytes(range(256)) * (len(MADE.raw) // 256 + 1))
    before = hashlib.sha256(target.read_bytes()).hexdigest()
    with LoopbackCast(image, "--patches", str(folder)) as cast:
        agent = cast.receive(target, "--name", "pc-01")
        assert agent.wait(LIMIT_S) == PatchRefusedError.exit_code, agent.describe()
    assert hashlib.sha256(target.read_bytes()).hexdigest() == before
