"""What an instance keeps of its image's properties, and files for its first boot; credentials."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "instance", sa.Column("image_properties", sa.Text(), server_default="{}", nullable=False)
    )
    op.add_column("instance", sa.Column("files", sa.Text(), server_default="", nullable=False))
    op.execute(
        "UPDATE instance SET image_properties = "
        "(SELECT properties FROM image WHERE image.id = instance.image_id)"
    )
    op.create_table(
        "credential",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name="fk_credential_user_id_user_account"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_credential"),
    )
    op.create_index("ix_credential_user_id", "credential", ["user_id"])
    op.create_index("ix_credential_project_id", "credential", ["project_id"])


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
