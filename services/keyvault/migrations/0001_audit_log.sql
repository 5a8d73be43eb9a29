-- The audit log: its head, its entries, the one function that appends, and the tree over the entries.
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

-- What owners are told of: changes of their keys, of shares and halts, of what will expire or was erased.
CREATE INDEX audit_entries_told ON audit_entries (audit_index) WHERE kind IN (1, 2, 3, 4, 5, 7, 8, 9, 103, 108);

-- Hashes of the Merkle tree over the entries (RFC 6962), 256 at a time (c2sp.org/tlog-tiles, height 8): at level 0 those
-- of leaves, above it the roots of full tiles. Only full tiles are kept, and a full tile never changes. They are written
-- after the commit of their entries, by whichever replica comes first: all would write the same.
CREATE TABLE audit_tiles (
    level    smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    position bigint   NOT NULL CHECK (position >= 0),
    hashes   bytea    NOT NULL CHECK (octet_length(hashes) = 8192),
    root     bytea    NOT NULL CHECK (octet_length(root) = 32),
    PRIMARY KEY (level, position)
);

-- Hashes do not compress; a proof reads a tile or two, so they stand where they are found at once.
ALTER TABLE audit_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- Signed checkpoints. The newest says how far the tree reaches; older ones are kept for a while.
CREATE TABLE audit_checkpoints (
    size        bigint      PRIMARY KEY CHECK (size >= 0),
    note        text        NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

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

CREATE TRIGGER audit_tiles_append_only BEFORE UPDATE OR DELETE ON audit_tiles
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_tiles_no_truncate BEFORE TRUNCATE ON audit_tiles
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION keep_newest_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM audit_checkpoints c WHERE c.size > OLD.size) THEN
        RAISE EXCEPTION 'the newest checkpoint stays' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER audit_checkpoints_never_edited BEFORE UPDATE ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_checkpoints_newest_stays BEFORE DELETE ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION keep_newest_checkpoint();
CREATE TRIGGER audit_checkpoints_no_truncate BEFORE TRUNCATE ON audit_checkpoints
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
