"""The NUMA cells of hosts, and what is held of them."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("host", "allocation", "migration"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("cells", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
