"""What tenants may know of a fault."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instance", sa.Column("public_fault", sa.Text(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
