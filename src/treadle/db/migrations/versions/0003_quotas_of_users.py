"""Limits of single users in a project, and an index that counts what a project has."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quota_user",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("hard_limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "user_id", "resource", name=op.f("pk_quota_user")),
    )
    op.create_index(
        "ix_instance_usage",
        "instance",
        ["project_id", "user_id", "vcpus", "memory_mib", "state"],
        unique=False,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
