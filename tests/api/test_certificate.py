"""The dashboard asks for attention before a certificate expires, with the commands that renew it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sender.identity.certificate import VALID_FOR, ensure_certificate
from sender.store.records.access import Role
from tests.api.served import serve


@pytest.mark.parametrize(("days_left", "needs_attention"), [(31, False), (29, True), (-1, True)])
def test_an_expiring_certificate_needs_attention(
    tmp_path: Path, days_left: int, needs_attention: bool
) -> None:
    made_at = datetime.now(UTC) - VALID_FOR + timedelta(days=days_left)
    certificate = ensure_certificate(tmp_path / "state", "lab", made_at)
    with serve(tmp_path) as served, served.client(Role.VIEW) as client:
        answer = client.get("/server").json()
    assert answer["pin"] == certificate.pin
    texts = [problem["text"] for problem in answer["problems"] if problem["kind"] == "certificate"]
    assert len(texts) == needs_attention
    assert all("rotate --server --prepare" in text for text in texts)
