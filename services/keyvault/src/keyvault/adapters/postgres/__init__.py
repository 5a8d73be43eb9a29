"""The ports on Postgres, by asyncpg."""
