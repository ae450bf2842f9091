"""Database engine, schema, clock, migrations."""
