"""When instances have ended, and when they are expected to."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("allocation") as batch:
        batch.add_column(sa.Column("ends_at", sa.Float()))
    op.create_index(
        "ix_instance_deleted_at", "instance", ["deleted_at"],
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
