"""An instance may be asked for on one host alone."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("only_host_id", sa.Integer(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
