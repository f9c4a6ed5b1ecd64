"""The tables, as they are after the latest migration.

A column that is marked :data:`FLEETING` changes many times a second while a cast runs, and its last values may be lost
with a damaged file: changes of such columns alone aren't written to SQLite's change journal.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sender.store.database.column_types import CleanJson, CleanText, Number64, UtcTime

FLEETING: dict[str, Any] = {"fleeting": True}

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, CleanText(), nullable=False, **options)


def _count(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, Number64, nullable=False, **options)


def _number(name: str, **options: Any) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False, **options)


store_state = sa.Table(
    "store_state",
    metadata,
    sa.Column("row_id", sa.Integer(), primary_key=True, autoincrement=False),
    _text("database_id"),
    _count("sequence"),
    _count("segment"),
)
"""One row: identity of the database and position of its change journal."""

rooms = sa.Table(
    "rooms",
    metadata,
    sa.Column("room_id", CleanText(), primary_key=True),
    _text("name"),
    _text("description"),
    _text("site"),
    _text("interface"),
    _text("enrolment", server_default=sa.text("''")),
    _text("unknown_machines", server_default=sa.text("''")),
    sa.Column("boot_menu", sa.Boolean(), nullable=False, server_default=sa.true()),
    sa.Column("wake_wave_size", sa.Integer()),
    sa.Column("wake_pause_s", sa.Double()),
    sa.Column("created_at", UtcTime(), nullable=False),
    sa.Index(None, "name", "room_id"),
)

machines = sa.Table(
    "machines",
    metadata,
    sa.Column("machine_id", CleanText(), primary_key=True),
    _text("name"),
    sa.Column("room_id", CleanText(), sa.ForeignKey("rooms.room_id", ondelete="SET NULL")),
    _text("serial"),
    _text("serial_key"),
    _text("asset_tag"),
    _text("asset_key"),
    _text("position"),
    _text("note"),
    _text("address"),
    _text("agent_version"),
    sa.Column("inventory", CleanJson(), nullable=False),
    sa.Column("created_at", UtcTime(), nullable=False),
    sa.Column("last_seen_at", UtcTime(), info=FLEETING),
    _text("enrolment", server_default=sa.text("'new'")),
    sa.Column("enrolled_at", UtcTime()),
    _text("enrolled_by", server_default=sa.text("''")),
    _text("approval_code", server_default=sa.text("''")),
    sa.Column("claimed_at", UtcTime()),
    _text("claimed_from", server_default=sa.text("''")),
    _text("secret_hash", server_default=sa.text("''")),
    _text("holder_hash", server_default=sa.text("''")),
    _text("claimant_hash", server_default=sa.text("''")),
    _text("uuid", server_default=sa.text("''")),
    _text("next_boot", server_default=sa.text("''")),
    sa.Column("booted_at", UtcTime()),
    _text("boot_action", server_default=sa.text("''")),
    _text("boot_text", server_default=sa.text("''")),
    _text("boot_firmware", server_default=sa.text("''")),
    sa.Index(None, "name", "machine_id"),
    sa.Index(None, "room_id", "name", "machine_id"),
    sa.Index(None, "serial_key"),
    sa.Index(None, "asset_key"),
    sa.Index(None, "secret_hash"),
    sa.Index(None, "uuid"),
)
"""Machines are found by ``serial_key`` and ``asset_key``: lower case, empty for placeholders.

``secret_hash`` is the SHA-256 of the machine's secret, empty without one. ``holder_hash`` and ``claimant_hash`` are
those of the agent's run that got the secret, and of the one that waits for approval. No record holds these three."""

machine_macs = sa.Table(
    "machine_macs",
    metadata,
    sa.Column("mac", CleanText(), primary_key=True),
    sa.Column(
        "machine_id", CleanText(), sa.ForeignKey("machines.machine_id", ondelete="CASCADE"), nullable=False
    ),
    _count("order_index"),
    sa.Index(None, "machine_id", "order_index"),
)

room_templates = sa.Table(
    "room_templates",
    metadata,
    sa.Column("room_id", CleanText(), sa.ForeignKey("rooms.room_id", ondelete="CASCADE"), primary_key=True),
    _text("text"),
    sa.Column("changed_at", UtcTime(), nullable=False),
    _text("changed_by"),
)
"""Templates of machine patches, as operators wrote them; they may hold secrets."""

patch_sets = sa.Table(
    "patch_sets",
    metadata,
    sa.Column("room_id", CleanText(), sa.ForeignKey("rooms.room_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("image_id", CleanText(), primary_key=True),
    _text("name"),
    _count("machine_count"),
    sa.Column("bundle", sa.LargeBinary(), nullable=False),
    sa.Column("changed_at", UtcTime(), nullable=False),
    _text("changed_by"),
)
"""Signed sets of machine patches with the patches, which may hold secrets."""

machine_variables = sa.Table(
    "machine_variables",
    metadata,
    sa.Column(
        "machine_id", CleanText(), sa.ForeignKey("machines.machine_id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("variables", CleanJson(), nullable=False),
    sa.Column("changed_at", UtcTime(), nullable=False),
    _text("changed_by"),
)
"""Values of variables for templates, some of them secret."""

machine_hardware = sa.Table(
    "machine_hardware",
    metadata,
    sa.Column(
        "machine_id", CleanText(), sa.ForeignKey("machines.machine_id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("hardware", CleanJson(), nullable=False),
    _text("search_text"),
    sa.Column("at", UtcTime(), nullable=False),
)
"""Hardware as agents report it; ``search_text`` has its words in lower case."""

boot_tokens = sa.Table(
    "boot_tokens",
    metadata,
    sa.Column("token_hash", CleanText(), primary_key=True),
    _text("mac"),
    sa.Column("machine_id", CleanText()),
    sa.Column("room_id", CleanText()),
    sa.Column("needs_approval", sa.Boolean(), nullable=False),
    sa.Column("issued_at", UtcTime(), nullable=False),
    sa.Column("expires_at", UtcTime(), nullable=False),
    _text("issued_by"),
    _text("run_hash"),
    sa.Column("used_at", UtcTime()),
    sa.Column("misused_at", UtcTime()),
    sa.Index(None, "mac", "issued_at"),
    sa.Index(None, "issued_at"),
)
"""Single-use bearers of machines that boot the live system. ``run_hash`` is that of the agent's run that used one,
``misused_at`` the time of the last audit entry about another agent."""

image_requests = sa.Table(
    "image_requests",
    metadata,
    sa.Column(
        "machine_id", CleanText(), sa.ForeignKey("machines.machine_id", ondelete="CASCADE"), primary_key=True
    ),
    _text("code"),
    _text("image_id"),
    _text("image_name"),
    _text("disk"),
    _text("address"),
    sa.Column("asked_at", UtcTime(), nullable=False),
    _text("state"),
    _text("cast_id"),
    _text("decided_by"),
    sa.Index(None, "state", "asked_at"),
)
"""The last request of each machine to be imaged; the audit log has the earlier ones."""

casts = sa.Table(
    "casts",
    metadata,
    sa.Column("cast_id", CleanText(), primary_key=True),
    sa.Column("plan", CleanJson(), nullable=False),
    _text("image_id"),
    sa.Column("room_id", CleanText()),
    sa.Column("start_at", UtcTime()),
    _text("image_name"),
    _count("raw_bytes"),
    _text("phase"),
    sa.Column("paused", sa.Boolean(), nullable=False),
    _text("owner"),
    _text("group_address"),
    _count("port"),
    _text("control_url"),
    _text("control_pin", server_default=sa.text("''")),
    _count("required_count"),
    _count("run_count"),
    sa.Column("created_at", UtcTime(), nullable=False),
    _text("created_by"),
    sa.Column("schedule_id", CleanText()),
    sa.Column("gathering_at", UtcTime()),
    sa.Column("casting_at", UtcTime()),
    sa.Column("ended_at", UtcTime()),
    _text("reason"),
    _number("seconds", info=FLEETING),
    _count("bytes_sent", info=FLEETING),
    _number("progress", info=FLEETING),
    _count("joined_count", info=FLEETING),
    _count("complete_count", info=FLEETING),
    _count("failed_count", info=FLEETING),
    _text("image_signer", server_default=sa.text("''")),
    _text("image_version", server_default=sa.text("''")),
    _text("lease_owner", info=FLEETING),
    _count("lease_beat", info=FLEETING),
    sa.Index(None, "created_at", "cast_id"),
    sa.Index(None, "room_id", "created_at", "cast_id"),
    sa.Index(None, "phase", "created_at", "cast_id"),
    sa.Index(None, "ended_at"),
)
"""``image_id``, ``room_id`` and ``start_at`` repeat the plan's, for searching. The lease is part of the row that it
protects, so that a locked row has the current lease."""

cast_keys = sa.Table(
    "cast_keys",
    metadata,
    sa.Column("cast_id", CleanText(), sa.ForeignKey("casts.cast_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("join_key", sa.LargeBinary(), nullable=False),
)
"""Keys of the tickets with which machines join a cast. Every daemon of the database needs them, so they can't be
hashes; a key is worth nothing after its cast."""

cast_machines = sa.Table(
    "cast_machines",
    metadata,
    sa.Column("line_id", Number64, primary_key=True, autoincrement=True),
    sa.Column("cast_id", CleanText(), sa.ForeignKey("casts.cast_id", ondelete="CASCADE"), nullable=False),
    _text("machine_key"),
    sa.Column("machine_id", CleanText()),
    _text("image_id"),
    sa.Column("room_id", CleanText()),
    _text("serial"),
    _text("asset_tag"),
    sa.Column("at", UtcTime(), nullable=False),
    _text("name"),
    _text("address"),
    _text("state"),
    _text("error"),
    sa.Column("exit_code", sa.Integer()),
    _text("bottleneck", info=FLEETING),
    _number("progress", info=FLEETING),
    _count("bytes_verified", info=FLEETING),
    _count("bytes_kept", info=FLEETING),
    _count("blocks_rewritten", info=FLEETING),
    _number("seconds", info=FLEETING),
    _number("rate_bytes_per_s", info=FLEETING),
    _number("loss", info=FLEETING),
    _count("nacks_count", info=FLEETING),
    _count("socket_drops_count", info=FLEETING),
    sa.Column("demoted", sa.Boolean(), nullable=False),
    sa.Column("unsigned_allowed", sa.Boolean(), nullable=False, server_default=sa.false()),
    _text("patch_id", server_default=sa.text("''")),
    sa.Column("joined_at", UtcTime()),
    sa.Column("ended_at", UtcTime()),
    sa.Index(None, "cast_id", "machine_key", unique=True),
    sa.Index(None, "at", "line_id"),
    sa.Index(None, "machine_id", "at", "line_id"),
    sa.Index(None, "image_id", "at", "line_id"),
    sa.Index(None, "room_id", "at", "line_id"),
    sa.Index(None, "cast_id", "at", "line_id"),
    sa.Index(None, "state", "at", "line_id"),
    sqlite_autoincrement=True,
)
"""One line of history per row. The machine's identifiers are copied, as it can be renamed or removed later. ``at`` is
the time at which the cast first named the machine."""

cast_events = sa.Table(
    "cast_events",
    metadata,
    sa.Column("event_id", Number64, primary_key=True, autoincrement=True),
    sa.Column("cast_id", CleanText(), sa.ForeignKey("casts.cast_id", ondelete="CASCADE"), nullable=False),
    sa.Column("at", UtcTime(), nullable=False),
    _text("kind"),
    _text("machine"),
    _text("text"),
    sa.Index(None, "cast_id", "at", "kind", "machine", unique=True),
    sqlite_autoincrement=True,
)
"""Unique, so that an event that is written again after a lost answer is recorded once."""

cast_timelines = sa.Table(
    "cast_timelines",
    metadata,
    sa.Column("cast_id", CleanText(), sa.ForeignKey("casts.cast_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("points", sa.LargeBinary(), nullable=False),
)

cast_requests = sa.Table(
    "cast_requests",
    metadata,
    sa.Column("request_id", Number64, primary_key=True, autoincrement=True),
    sa.Column("cast_id", CleanText(), sa.ForeignKey("casts.cast_id", ondelete="CASCADE"), nullable=False),
    _text("command"),
    _text("actor", server_default="the operator"),
    _text("reason", server_default=sa.text("''")),
    sa.Index(None, "cast_id", "command", unique=True),
    sqlite_autoincrement=True,
)

wakes = sa.Table(
    "wakes",
    metadata,
    sa.Column("wake_id", CleanText(), primary_key=True),
    sa.Column("room_id", CleanText()),
    sa.Column("cast_id", CleanText()),
    sa.Column("created_at", UtcTime(), nullable=False),
    _text("created_by"),
    sa.Column("wave_size", sa.Integer(), nullable=False),
    _number("pause_s"),
    sa.Column("machines", CleanJson(), nullable=False),
    sa.Column("interfaces", CleanJson(), nullable=False),
    _text("problem"),
    sa.Column("ended_at", UtcTime()),
    sa.Index(None, "created_at", "wake_id"),
)
"""``machines`` has the names and results at that time: rooms and machines can be renamed or removed later."""

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("schedule_id", CleanText(), primary_key=True),
    _text("name"),
    _text("cron"),
    _text("time_zone"),
    sa.Column("plan", CleanJson(), nullable=False),
    sa.Column("enabled", sa.Boolean(), nullable=False),
    sa.Column("created_at", UtcTime(), nullable=False),
    sa.Column("next_at", UtcTime()),
    sa.Column("last_cast_id", CleanText()),
    _text("problem"),
    sa.Index(None, "name", "schedule_id"),
    sa.Index(None, "next_at"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_id", CleanText(), primary_key=True),
    _text("name"),
    _text("role"),
    sa.Column("room_id", CleanText()),
    _text("secret_hash"),
    sa.Column("created_at", UtcTime(), nullable=False),
    _text("created_by"),
    sa.Column("expires_at", UtcTime()),
    sa.Column("last_used_at", UtcTime(), info=FLEETING),
    sa.Index(None, "name", unique=True),
    sa.Index(None, "secret_hash", unique=True),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", CleanText(), primary_key=True),
    _text("secret_hash"),
    sa.Column("token_id", CleanText(), sa.ForeignKey("tokens.token_id", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", UtcTime(), nullable=False),
    sa.Column("expires_at", UtcTime(), nullable=False),
    sa.Index(None, "secret_hash", unique=True),
    sa.Index(None, "token_id"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("entry_id", Number64, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime(), nullable=False),
    _text("actor"),
    _text("action"),
    _text("subject"),
    sa.Column("detail", CleanJson(), nullable=False),
    _text("request_id"),
    sa.Column("entry_key", CleanText()),
    sa.Index(None, "at", "entry_id"),
    sa.Index(None, "entry_key", unique=True),
    sa.Index(None, "actor", "at", "entry_id"),
    sa.Index(None, "subject", "at", "entry_id"),
    sqlite_autoincrement=True,
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("image_id", CleanText(), primary_key=True),
    _text("name"),
    _text("location"),
    _text("source"),
    _text("state"),
    _count("raw_bytes"),
    _count("stored_bytes"),
    _count("block_bytes"),
    _count("fetched_bytes", info=FLEETING),
    _text("problem"),
    sa.Column("packed_at", UtcTime()),
    sa.Column("first_seen_at", UtcTime(), nullable=False),
    _text("signer", server_default=sa.text("''")),
    _text("signed_name", server_default=sa.text("''")),
    _text("version", server_default=sa.text("''")),
    sa.Index(None, "name", "image_id"),
)
"""``signer`` is the id of the key, ``version`` a decimal number of 64 bits; both are empty for an unsigned image."""

image_entries = sa.Table(
    "image_entries",
    metadata,
    sa.Column("image_id", CleanText(), primary_key=True),
    _text("name"),
    _count("number"),
    _text("note"),
    sa.Column("pinned", sa.Boolean(), nullable=False),
    _text("added_by"),
    sa.Column("origin", CleanJson()),
    sa.Column("changed_at", UtcTime(), nullable=False),
    sa.Index(None, "name", "number", unique=True),
    sa.Index(None, "changed_at", "image_id"),
)
"""Facts about images that aren't in their files. Rows stay when images are gone: a number is never given twice."""

image_contents = sa.Table(
    "image_contents",
    metadata,
    sa.Column("image_id", CleanText(), primary_key=True),
    sa.Column("version", sa.Integer(), nullable=False),
    sa.Column("contents", CleanJson(), nullable=False),
    sa.Column("at", UtcTime(), nullable=False),
)
"""Contents that were read from images: a cache. ``version`` is that of the reader."""

image_signatures = sa.Table(
    "image_signatures",
    metadata,
    sa.Column("image_id", CleanText(), primary_key=True),
    sa.Column("signed", sa.LargeBinary(), nullable=False),
    _text("public_key"),
    sa.Column("at", UtcTime(), nullable=False),
    sa.Index(None, "at", "image_id"),
)
"""Signatures that operators uploaded, for files that the daemon can't or mustn't change. ``signed`` has statement and
signature as an image's header stores them."""

remotes = sa.Table(
    "remotes",
    metadata,
    sa.Column("url", CleanText(), primary_key=True),
    _text("name"),
    sa.Column("created_at", UtcTime(), nullable=False),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("scope", CleanText(), primary_key=True),
    sa.Column("key", CleanText(), primary_key=True),
    _text("fingerprint"),
    sa.Column("status", sa.Integer()),
    sa.Column("headers", CleanJson(), nullable=False),
    sa.Column("body", sa.LargeBinary(), nullable=False),
    sa.Column("at", UtcTime(), nullable=False),
    sa.Index(None, "at"),
)

captures = sa.Table(
    "captures",
    metadata,
    sa.Column("capture_id", CleanText(), primary_key=True),
    _text("machine_id"),
    sa.Column("plan", CleanJson(), nullable=False),
    _text("machine_name"),
    _text("owner"),
    _text("location"),
    _text("state"),
    _text("created_by"),
    _text("error"),
    _text("disk"),
    _text("disk_model"),
    _text("disk_serial"),
    sa.Column("created_at", UtcTime(), nullable=False),
    sa.Column("started_at", UtcTime()),
    sa.Column("ended_at", UtcTime()),
    _count("raw_bytes"),
    _count("done_bytes"),
    _count("uploaded_bytes"),
    _count("kept_bytes"),
    _text("image_id"),
    _text("secret_hash"),
    sa.Index(None, "created_at", "capture_id"),
    sa.Index(None, "image_id"),
)
"""Captures of machines' disks. ``secret_hash`` is the hash of the secret with which the agent started its upload. Ended
ones stay: they say where an image comes from."""
