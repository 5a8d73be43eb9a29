-- The audit log: its head, its entries, and the one function that appends.
--
-- Lock order, everywhere: rows of keyring_keys (FOR SHARE by whoever wraps or signs, FOR UPDATE by whoever changes a
-- state), then audit_head, then everything else.

-- The head of the log. Whoever appends locks this row, so the audit index is gapless and in commit order.
CREATE TABLE audit_head (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_index bigint NOT NULL CHECK (last_index >= 0)
) WITH (fillfactor = 10);

INSERT INTO audit_head (last_index) VALUES (0);

-- The log. kind below 100: a change of what a lease says, which watchers are told. subject: `key/…`, `agent/…`, or what
-- else an entry is found by; the leaf says the same, and is what counts.
CREATE TABLE audit_entries (
    audit_index bigint   PRIMARY KEY,
    kind        smallint NOT NULL,
    subject     text     NOT NULL,
    leaf        bytea    NOT NULL,
    leaf_hash   bytea    NOT NULL CHECK (octet_length(leaf_hash) = 32)
);

CREATE INDEX audit_entries_authority ON audit_entries (audit_index) WHERE kind < 100;
CREATE INDEX audit_entries_of_subject ON audit_entries (subject, audit_index) WHERE subject <> '';
CREATE INDEX audit_entries_authority_of_subject ON audit_entries (subject, audit_index) WHERE kind < 100;

-- Append only, as far as one role can bind itself: whoever may drop triggers may still forge rows, but not their HMACs.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are append only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION allow_growth_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.last_index < OLD.last_index THEN
        RAISE EXCEPTION 'the head of the log only grows' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entries_no_truncate BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_head_grows BEFORE UPDATE ON audit_head FOR EACH ROW EXECUTE FUNCTION allow_growth_only();
CREATE TRIGGER audit_head_stays BEFORE DELETE ON audit_head FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_head_no_truncate BEFORE TRUNCATE ON audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Appends entries and returns the index of the first. The lock on the head lasts until the commit of this one statement:
-- it is never held by a client, which could be stopped while it holds it.
CREATE FUNCTION append_audit_entries(p_kinds smallint[], p_subjects text[], p_leaves bytea[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_last bigint;
BEGIN
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    INSERT INTO audit_entries (audit_index, kind, subject, leaf, leaf_hash)
    SELECT v_last + added.position, added.kind, added.subject, added.leaf, sha256('\x00'::bytea || added.leaf)
    FROM unnest(p_kinds, p_subjects, p_leaves) WITH ORDINALITY AS added (kind, subject, leaf, position);
    UPDATE audit_head SET last_index = v_last + cardinality(p_leaves);
    RETURN v_last + 1;
END $$;
