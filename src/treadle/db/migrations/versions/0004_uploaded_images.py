"""Where the content of images that tenants bring lies, and how it came."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("image", sa.Column("blob", sa.String(length=64), nullable=True))
    op.add_column("image", sa.Column("blob_bytes", sa.BigInteger(), nullable=True))
    op.add_column("image", sa.Column("task", sa.Text(), nullable=True))
    op.create_index("ix_image_project_id", "image", ["project_id"], unique=False)
    op.create_index("ix_image_sha256", "image", ["sha256"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
