"""Moves of instances that are off, and what is kept of them at their source."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("migration") as batch:
        batch.add_column(
            sa.Column("ask", sa.Boolean(), server_default=sa.text("false"), nullable=False)
        )
        batch.add_column(sa.Column("after", sa.Text(), server_default="{}", nullable=False))
        batch.add_column(sa.Column("before", sa.Text(), server_default="{}", nullable=False))
    with op.batch_alter_table("instance") as batch:
        batch.add_column(sa.Column("kept", sa.Integer(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
