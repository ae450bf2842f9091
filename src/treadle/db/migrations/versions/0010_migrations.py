"""Moves of instances from host to host."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "migration",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), server_default="", nullable=False),
        sa.Column(
            "instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("stage", sa.String(length=10), nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("target_id", sa.Integer(), nullable=True),
        sa.Column("wanted_id", sa.Integer(), nullable=True),
        sa.Column("stop", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("hurry", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("deadline", sa.Float(), nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("vcpus", sa.Integer(), server_default="0", nullable=False),
        sa.Column("memory_mib", sa.Integer(), server_default="0", nullable=False),
        sa.Column("disk_mib", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("project_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("progress", sa.Text(), server_default="[]", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_migration_instance_id_instance")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_migration")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_migration_instance_id", "migration", ["instance_id"], unique=False)
    op.create_index("ix_migration_uuid", "migration", ["uuid"], unique=True)
    op.add_column("instance", sa.Column("moving", sa.Integer(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
