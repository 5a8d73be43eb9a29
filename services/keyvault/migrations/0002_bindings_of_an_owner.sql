-- A test call of an owner's key is limited by the account that the owner's agents belong to, so a binding of an owner is
-- looked for.
CREATE INDEX agent_bindings_of_owner ON agent_bindings (owner_id, agent_id) WHERE superseded_index IS NULL;
