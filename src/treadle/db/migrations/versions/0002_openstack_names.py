"""What the OpenStack faces ask of hosts, images, flavors and instances."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "aggregate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), server_default="", nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("availability_zone", sa.String(length=255), nullable=True),
        sa.Column("metadata", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aggregate")),
        sa.UniqueConstraint("name", name=op.f("uq_aggregate_name")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_aggregate_uuid", "aggregate", ["uuid"], unique=True)
    op.create_table(
        "keypair",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=4), nullable=False),
        sa.Column("fingerprint", sa.String(length=255), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keypair")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_keypair_user_id", "keypair", ["user_id", "name"], unique=True)
    op.create_table(
        "quota",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("hard_limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "resource", name=op.f("pk_quota")),
    )
    op.create_table(
        "quota_class",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("hard_limit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", "resource", name=op.f("pk_quota_class")),
    )
    op.create_table(
        "server_group",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), server_default="", nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("policy", sa.String(length=20), nullable=False),
        sa.Column("max_per_host", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_group")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_server_group_project_id", "server_group", ["project_id"], unique=False)
    op.create_index("ix_server_group_uuid", "server_group", ["uuid"], unique=True)
    op.create_table(
        "aggregate_host",
        sa.Column("aggregate_id", sa.Integer(), nullable=False),
        sa.Column("host_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["aggregate_id"],
            ["aggregate.id"],
            name=op.f("fk_aggregate_host_aggregate_id_aggregate"),
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["host.id"], name=op.f("fk_aggregate_host_host_id_host")
        ),
        sa.PrimaryKeyConstraint("aggregate_id", "host_id", name=op.f("pk_aggregate_host")),
    )
    op.create_index("ix_aggregate_host_host_id", "aggregate_host", ["host_id"], unique=False)
    op.create_table(
        "flavor_access",
        sa.Column("flavor_id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["flavor_id"], ["flavor.id"], name=op.f("fk_flavor_access_flavor_id_flavor")
        ),
        sa.PrimaryKeyConstraint("flavor_id", "project_id", name=op.f("pk_flavor_access")),
    )
    op.create_table(
        "image_member",
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=8), server_default="pending", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["image.id"], name=op.f("fk_image_member_image_id_image")
        ),
        sa.PrimaryKeyConstraint("image_id", "project_id", name=op.f("pk_image_member")),
    )
    op.create_index("ix_image_member_project_id", "image_member", ["project_id"], unique=False)
    op.create_table(
        "image_tag",
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["image.id"], name=op.f("fk_image_tag_image_id_image")
        ),
        sa.PrimaryKeyConstraint("image_id", "tag", name=op.f("pk_image_tag")),
    )
    op.create_table(
        "instance_tag",
        sa.Column(
            "instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("tag", sa.String(length=60), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_instance_tag_instance_id_instance")
        ),
        sa.PrimaryKeyConstraint("instance_id", "tag", name=op.f("pk_instance_tag")),
    )
    op.create_index("ix_instance_tag_tag", "instance_tag", ["tag"], unique=False)
    op.add_column(
        "action", sa.Column("user_id", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column(
        "action", sa.Column("project_id", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column(
        "flavor", sa.Column("public_id", sa.String(length=255), server_default="", nullable=False)
    )
    op.add_column(
        "flavor", sa.Column("name", sa.String(length=255), server_default="", nullable=False)
    )
    op.add_column("flavor", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("flavor", sa.Column("swap_mib", sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "flavor", sa.Column("ephemeral_gib", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column(
        "flavor", sa.Column("rxtx_factor", sa.Float(), server_default="1", nullable=False)
    )
    op.add_column(
        "flavor",
        sa.Column("is_public", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )
    op.add_column(
        "flavor", sa.Column("extra_specs", sa.Text(), server_default="{}", nullable=False)
    )
    op.add_column("flavor", sa.Column("created_at", sa.Float(), nullable=True))
    op.add_column(
        "host", sa.Column("uuid", sa.String(length=36), server_default="", nullable=False)
    )
    op.add_column(
        "host",
        sa.Column("forced_down", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "image", sa.Column("uuid", sa.String(length=36), server_default="", nullable=False)
    )
    op.add_column(
        "image", sa.Column("project_id", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column(
        "image",
        sa.Column("visibility", sa.String(length=9), server_default="public", nullable=False),
    )
    op.add_column(
        "image",
        sa.Column("protected", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "image", sa.Column("hidden", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column(
        "image", sa.Column("min_disk_gib", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column(
        "image", sa.Column("min_memory_mib", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("image", sa.Column("container_format", sa.String(length=16), nullable=True))
    op.add_column("image", sa.Column("disk_format", sa.String(length=16), nullable=True))
    op.add_column("image", sa.Column("checksum", sa.String(length=32), nullable=True))
    op.add_column("image", sa.Column("sha512", sa.String(length=128), nullable=True))
    op.add_column("image", sa.Column("properties", sa.Text(), server_default="{}", nullable=False))
    op.add_column("image", sa.Column("updated_at", sa.Float(), nullable=True))
    op.add_column("image", sa.Column("deleted_at", sa.Float(), nullable=True))
    op.add_column(
        "instance", sa.Column("version", sa.Integer(), server_default="1", nullable=False)
    )
    op.add_column("instance", sa.Column("updated_at", sa.Float(), nullable=True))
    op.add_column(
        "instance", sa.Column("project_id", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column(
        "instance", sa.Column("user_id", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column("instance", sa.Column("hostname", sa.String(length=255), nullable=True))
    op.add_column("instance", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("instance", sa.Column("key_name", sa.String(length=255), nullable=True))
    op.add_column(
        "instance",
        sa.Column("config_drive", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "instance",
        sa.Column("disk_config", sa.String(length=6), server_default="MANUAL", nullable=False),
    )
    op.add_column(
        "instance",
        sa.Column("access_ipv4", sa.String(length=15), server_default="", nullable=False),
    )
    op.add_column(
        "instance",
        sa.Column("access_ipv6", sa.String(length=39), server_default="", nullable=False),
    )
    op.add_column(
        "instance",
        sa.Column("networked", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )
    op.add_column("instance", sa.Column("flavor", sa.Text(), server_default="{}", nullable=False))
    op.add_column("instance", sa.Column("metadata", sa.Text(), server_default="{}", nullable=False))
    op.add_column("instance", sa.Column("availability_zone", sa.String(length=255), nullable=True))
    op.add_column("instance", sa.Column("group_id", sa.Integer(), nullable=True))
    op.add_column(
        "instance", sa.Column("scheduler_hints", sa.Text(), server_default="{}", nullable=False)
    )
    op.add_column("instance", sa.Column("locked_by", sa.String(length=5), nullable=True))
    op.add_column("instance", sa.Column("locked_reason", sa.Text(), nullable=True))
    op.add_column("instance", sa.Column("fault_at", sa.Float(), nullable=True))
    op.create_index(
        "ix_instance_created_at",
        "instance",
        ["created_at", "id"],
        unique=False,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )
    op.add_column(
        "instance", sa.Column("launch_index", sa.Integer(), server_default="0", nullable=False)
    )
    op.create_index("ix_instance_group_id", "instance", ["group_id"], unique=False)
    op.create_index(
        "ix_instance_project_id",
        "instance",
        ["project_id", "created_at", "id"],
        unique=False,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )
    name_what_is_there()
    op.create_index(
        "ix_flavor_name",
        "flavor",
        ["name"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_index(
        "ix_flavor_public_id",
        "flavor",
        ["public_id"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_index("ix_host_uuid", "host", ["uuid"], unique=True)
    op.create_index("ix_image_uuid", "image", ["uuid"], unique=True)


def name_what_is_there() -> None:
    """Rows of before get the names that the unique indexes want."""
    conn = op.get_bind()
    for name in ("host", "image"):
        table = sa.table(name, sa.column("id"), sa.column("uuid"))
        for id in conn.execute(sa.select(table.c.id)).scalars().all():
            conn.execute(sa.update(table).where(table.c.id == id).values(uuid=str(uuid4())))
    conn.exec_driver_sql(
        "UPDATE flavor SET public_id = CAST(id AS VARCHAR(255)), "
        "name = 'type-' || id"
    )
    conn.exec_driver_sql("UPDATE instance SET updated_at = created_at")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
