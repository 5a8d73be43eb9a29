"""Ports made real: Redis, Postgres, KeyVault, and memory for tests."""
