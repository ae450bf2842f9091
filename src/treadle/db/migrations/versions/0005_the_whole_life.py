"""What rescue, rebuild, resize, shelve, snapshots and soft delete need to know of an instance."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    def add(column: "sa.Column[object]") -> None:
        op.add_column("instance", column)

    add(sa.Column("mode", sa.String(length=12), server_default="", nullable=False))
    add(sa.Column("settled_mode", sa.String(length=12), server_default="", nullable=False))
    add(sa.Column("task", sa.String(length=24), nullable=True))
    add(sa.Column("ends_at", sa.Float(), nullable=True))
    add(sa.Column("disks", sa.String(length=255), server_default="1", nullable=False))
    add(sa.Column("disk_image_id", sa.Integer(), nullable=True))
    add(sa.Column("rescue_image_id", sa.Integer(), nullable=True))
    add(sa.Column("shelf_image_id", sa.Integer(), nullable=True))
    add(sa.Column("snapshot_image_id", sa.Integer(), nullable=True))
    add(sa.Column("before", sa.Text(), server_default="", nullable=False))
    # It was kept up only for those that run.
    op.get_bind().exec_driver_sql(
        "UPDATE instance SET settled_generation = generation "
        "WHERE state = goal AND state IN ('stopped', 'paused', 'suspended')"
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
