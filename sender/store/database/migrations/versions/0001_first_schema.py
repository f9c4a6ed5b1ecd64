"""The first schema: rooms, machines, casts with their history, schedules, tokens, audit and images."""

import sqlalchemy as sa
from alembic import op

from sender.store.database.column_types import CleanJson, CleanText, Number64, UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "audit",
        sa.Column("entry_id", Number64, autoincrement=True, nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor", CleanText(), nullable=False),
        sa.Column("action", CleanText(), nullable=False),
        sa.Column("subject", CleanText(), nullable=False),
        sa.Column("detail", CleanJson(), nullable=False),
        sa.Column("request_id", CleanText(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_actor_at_entry_id"), "audit", ["actor", "at", "entry_id"], unique=False)
    op.create_index(op.f("ix_audit_at_entry_id"), "audit", ["at", "entry_id"], unique=False)
    op.create_index(
        op.f("ix_audit_subject_at_entry_id"), "audit", ["subject", "at", "entry_id"], unique=False
    )
    op.create_table(
        "casts",
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("plan", CleanJson(), nullable=False),
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("room_id", CleanText(), nullable=True),
        sa.Column("start_at", UtcTime(), nullable=True),
        sa.Column("image_name", CleanText(), nullable=False),
        sa.Column("raw_bytes", Number64, nullable=False),
        sa.Column("phase", CleanText(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("owner", CleanText(), nullable=False),
        sa.Column("group_address", CleanText(), nullable=False),
        sa.Column("port", Number64, nullable=False),
        sa.Column("control_url", CleanText(), nullable=False),
        sa.Column("required_count", Number64, nullable=False),
        sa.Column("run_count", Number64, nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("created_by", CleanText(), nullable=False),
        sa.Column("schedule_id", CleanText(), nullable=True),
        sa.Column("gathering_at", UtcTime(), nullable=True),
        sa.Column("casting_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("reason", CleanText(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("bytes_sent", Number64, nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("joined_count", Number64, nullable=False),
        sa.Column("complete_count", Number64, nullable=False),
        sa.Column("failed_count", Number64, nullable=False),
        sa.Column("lease_owner", CleanText(), nullable=False),
        sa.Column("lease_beat", Number64, nullable=False),
        sa.PrimaryKeyConstraint("cast_id", name=op.f("pk_casts")),
    )
    op.create_index(op.f("ix_casts_created_at_cast_id"), "casts", ["created_at", "cast_id"], unique=False)
    op.create_index(op.f("ix_casts_ended_at"), "casts", ["ended_at"], unique=False)
    op.create_index(
        op.f("ix_casts_phase_created_at_cast_id"), "casts", ["phase", "created_at", "cast_id"], unique=False
    )
    op.create_index(
        op.f("ix_casts_room_id_created_at_cast_id"),
        "casts",
        ["room_id", "created_at", "cast_id"],
        unique=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("scope", CleanText(), nullable=False),
        sa.Column("key", CleanText(), nullable=False),
        sa.Column("fingerprint", CleanText(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("headers", CleanJson(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_at"), "idempotency", ["at"], unique=False)
    op.create_table(
        "images",
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("location", CleanText(), nullable=False),
        sa.Column("source", CleanText(), nullable=False),
        sa.Column("state", CleanText(), nullable=False),
        sa.Column("raw_bytes", Number64, nullable=False),
        sa.Column("stored_bytes", Number64, nullable=False),
        sa.Column("block_bytes", Number64, nullable=False),
        sa.Column("fetched_bytes", Number64, nullable=False),
        sa.Column("problem", CleanText(), nullable=False),
        sa.Column("packed_at", UtcTime(), nullable=True),
        sa.Column("first_seen_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_images")),
    )
    op.create_index(op.f("ix_images_name_image_id"), "images", ["name", "image_id"], unique=False)
    op.create_table(
        "remotes",
        sa.Column("url", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("url", name=op.f("pk_remotes")),
    )
    op.create_table(
        "rooms",
        sa.Column("room_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("description", CleanText(), nullable=False),
        sa.Column("site", CleanText(), nullable=False),
        sa.Column("interface", CleanText(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("room_id", name=op.f("pk_rooms")),
    )
    op.create_index(op.f("ix_rooms_name_room_id"), "rooms", ["name", "room_id"], unique=False)
    op.create_table(
        "schedules",
        sa.Column("schedule_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("cron", CleanText(), nullable=False),
        sa.Column("time_zone", CleanText(), nullable=False),
        sa.Column("plan", CleanJson(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("next_at", UtcTime(), nullable=True),
        sa.Column("last_cast_id", CleanText(), nullable=True),
        sa.Column("problem", CleanText(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name=op.f("pk_schedules")),
    )
    op.create_index(op.f("ix_schedules_name_schedule_id"), "schedules", ["name", "schedule_id"], unique=False)
    op.create_index(op.f("ix_schedules_next_at"), "schedules", ["next_at"], unique=False)
    op.create_table(
        "store_state",
        sa.Column("row_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("database_id", CleanText(), nullable=False),
        sa.Column("sequence", Number64, nullable=False),
        sa.Column("segment", Number64, nullable=False),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_store_state")),
    )
    op.create_table(
        "tokens",
        sa.Column("token_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("role", CleanText(), nullable=False),
        sa.Column("secret_hash", CleanText(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("created_by", CleanText(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("last_used_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_tokens")),
    )
    op.create_index(op.f("ix_tokens_name"), "tokens", ["name"], unique=True)
    op.create_index(op.f("ix_tokens_secret_hash"), "tokens", ["secret_hash"], unique=True)
    op.create_table(
        "cast_events",
        sa.Column("event_id", Number64, autoincrement=True, nullable=False),
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("kind", CleanText(), nullable=False),
        sa.Column("machine", CleanText(), nullable=False),
        sa.Column("text", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cast_id"], ["casts.cast_id"], name=op.f("fk_cast_events_cast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_cast_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_cast_events_cast_id_at_kind_machine"),
        "cast_events",
        ["cast_id", "at", "kind", "machine"],
        unique=True,
    )
    op.create_table(
        "cast_machines",
        sa.Column("line_id", Number64, autoincrement=True, nullable=False),
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("machine_key", CleanText(), nullable=False),
        sa.Column("machine_id", CleanText(), nullable=True),
        sa.Column("image_id", CleanText(), nullable=False),
        sa.Column("room_id", CleanText(), nullable=True),
        sa.Column("serial", CleanText(), nullable=False),
        sa.Column("asset_tag", CleanText(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("address", CleanText(), nullable=False),
        sa.Column("state", CleanText(), nullable=False),
        sa.Column("error", CleanText(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("limiter", CleanText(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("bytes_verified", Number64, nullable=False),
        sa.Column("bytes_kept", Number64, nullable=False),
        sa.Column("blocks_rewritten", Number64, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("rate_bytes_per_s", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("nacks_count", Number64, nullable=False),
        sa.Column("socket_drops_count", Number64, nullable=False),
        sa.Column("demoted", sa.Boolean(), nullable=False),
        sa.Column("joined_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["cast_id"], ["casts.cast_id"], name=op.f("fk_cast_machines_cast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("line_id", name=op.f("pk_cast_machines")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_cast_machines_at_line_id"), "cast_machines", ["at", "line_id"], unique=False)
    op.create_index(
        op.f("ix_cast_machines_cast_id_at_line_id"),
        "cast_machines",
        ["cast_id", "at", "line_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_cast_machines_cast_id_machine_key"), "cast_machines", ["cast_id", "machine_key"], unique=True
    )
    op.create_index(
        op.f("ix_cast_machines_image_id_at_line_id"),
        "cast_machines",
        ["image_id", "at", "line_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_cast_machines_machine_id_at_line_id"),
        "cast_machines",
        ["machine_id", "at", "line_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_cast_machines_room_id_at_line_id"),
        "cast_machines",
        ["room_id", "at", "line_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_cast_machines_state_at_line_id"), "cast_machines", ["state", "at", "line_id"], unique=False
    )
    op.create_table(
        "cast_requests",
        sa.Column("request_id", Number64, autoincrement=True, nullable=False),
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("command", CleanText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cast_id"], ["casts.cast_id"], name=op.f("fk_cast_requests_cast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_cast_requests")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_cast_requests_cast_id_command"), "cast_requests", ["cast_id", "command"], unique=True
    )
    op.create_table(
        "cast_timelines",
        sa.Column("cast_id", CleanText(), nullable=False),
        sa.Column("points", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cast_id"], ["casts.cast_id"], name=op.f("fk_cast_timelines_cast_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cast_id", name=op.f("pk_cast_timelines")),
    )
    op.create_table(
        "machines",
        sa.Column("machine_id", CleanText(), nullable=False),
        sa.Column("name", CleanText(), nullable=False),
        sa.Column("room_id", CleanText(), nullable=True),
        sa.Column("serial", CleanText(), nullable=False),
        sa.Column("serial_key", CleanText(), nullable=False),
        sa.Column("asset_tag", CleanText(), nullable=False),
        sa.Column("asset_key", CleanText(), nullable=False),
        sa.Column("position", CleanText(), nullable=False),
        sa.Column("note", CleanText(), nullable=False),
        sa.Column("address", CleanText(), nullable=False),
        sa.Column("agent_version", CleanText(), nullable=False),
        sa.Column("inventory", CleanJson(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("last_seen_at", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["room_id"], ["rooms.room_id"], name=op.f("fk_machines_room_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_machines")),
    )
    op.create_index(op.f("ix_machines_asset_key"), "machines", ["asset_key"], unique=False)
    op.create_index(op.f("ix_machines_name_machine_id"), "machines", ["name", "machine_id"], unique=False)
    op.create_index(
        op.f("ix_machines_room_id_name_machine_id"),
        "machines",
        ["room_id", "name", "machine_id"],
        unique=False,
    )
    op.create_index(op.f("ix_machines_serial_key"), "machines", ["serial_key"], unique=False)
    op.create_table(
        "machine_macs",
        sa.Column("mac", CleanText(), nullable=False),
        sa.Column("machine_id", CleanText(), nullable=False),
        sa.Column("order_index", Number64, nullable=False),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.machine_id"],
            name=op.f("fk_machine_macs_machine_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("mac", name=op.f("pk_machine_macs")),
    )
    op.create_index(
        op.f("ix_machine_macs_machine_id_order_index"),
        "machine_macs",
        ["machine_id", "order_index"],
        unique=False,
    )
