-- Every call that was made on a lease of a key, for owners who ask what became of it. A lease is short: what is found is
-- sorted at once, so that the index carries no more than the lease, whose ids grow with time.
CREATE INDEX ledger_entries_by_lease ON ledger_entries (lease_id) WHERE lease_id <> '';
