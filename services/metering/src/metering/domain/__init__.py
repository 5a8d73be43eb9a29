"""The rules: accounts, limits, windows, reservations, ledger ids, policy. Pure; knows no store and no wire."""
