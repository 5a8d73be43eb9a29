"""Postgres: accounts, limits, licences, the ledger."""
