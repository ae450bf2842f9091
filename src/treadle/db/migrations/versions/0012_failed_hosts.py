"""Hosts that were switched off from outside, and evacuations from them."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("host", sa.Column("fence", sa.String(8), server_default="", nullable=False))
    op.add_column("host", sa.Column("fenced_at", sa.Float(), nullable=True))
    op.add_column("host", sa.Column("fence_note", sa.Text(), nullable=True))
    op.add_column("migration", sa.Column(
        "kind", sa.String(14), server_default="live-migration", nullable=False
    ))
    op.add_column("migration", sa.Column(
        "left_off", sa.Boolean(), server_default=sa.text("false"), nullable=False
    ))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
