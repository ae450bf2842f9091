"""Tokens that let one client in at a guest's console, once."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "console_token",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_console_token")),
    )
    op.create_index(
        op.f("ix_console_token_instance_uuid"), "console_token", ["instance_uuid"], unique=False
    )
    op.create_index(
        op.f("ix_console_token_expires_at"), "console_token", ["expires_at"], unique=False
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
