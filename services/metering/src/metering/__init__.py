"""Accounts, policy, admission through Redis, and the ledger in Postgres."""
