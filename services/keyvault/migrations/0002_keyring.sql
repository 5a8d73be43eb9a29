-- The keyring, the replicas that use it, the backups that may hold it, and who may wrap or sign with it.

-- The keyring, wrapped by the root key. purpose: 1 KEK, 2 authority HMAC, 3 equality HMAC, 4 submission, 5 checkpoint.
-- state: 1 STAGED, 2 PRIMARY, 3 DECRYPT_ONLY, 4 DISABLED, 5 DESTROYED.
CREATE TABLE keyring_keys (
    purpose     smallint    NOT NULL,
    version     integer     NOT NULL CHECK (version > 0),
    state       smallint    NOT NULL,
    root_key_id text        NOT NULL,
    wrapped_key bytea       NOT NULL,
    canary      bytea       NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (purpose, version)
);

CREATE UNIQUE INDEX keyring_keys_primary ON keyring_keys (purpose) WHERE state = 2;
CREATE UNIQUE INDEX keyring_keys_staged ON keyring_keys (purpose) WHERE state = 1;

-- Replicas, each as it last said: the root keys that it can use, and the versions, as `purpose/version`, that it holds and
-- whose canary it has opened. A version is promoted when every live replica has proved it.
CREATE TABLE keyring_replicas (
    replica_id   text        PRIMARY KEY,
    release      text        NOT NULL,
    root_key_ids text[]      NOT NULL,
    proved       text[]      NOT NULL,
    last_seen    timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Backups of this database, as the operator registers them: until the last copy is gone, what it holds can come back.
CREATE TABLE backups (
    backup_id     text        PRIMARY KEY,
    snapshot_time timestamptz NOT NULL,
    expire_time   timestamptz NOT NULL
);

-- Takes the keys that wrap and sign FOR SHARE, and says whether each is PRIMARY still.
CREATE FUNCTION share_primary_keys(p_kek_version integer, p_mac_key_version integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM 1 FROM keyring_keys
    WHERE state = 2 AND ((purpose = 1 AND version = p_kek_version) OR (purpose = 2 AND version = p_mac_key_version))
    ORDER BY purpose
    FOR SHARE;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count = CASE WHEN p_kek_version IS NULL THEN 1 ELSE 2 END;
END $$;

-- Every change of the keyring takes the rows that it is about FOR UPDATE, which waits for all who wrap under them, then
-- this: locks the head of the log and returns the index that the request was answered with before, or NULL.
CREATE FUNCTION open_keyring_change(p_request jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_first bigint;
BEGIN
    PERFORM 1 FROM audit_head FOR UPDATE;
    SELECT r.audit_index INTO v_first FROM requests r
    WHERE r.scope = p_request ->> 'scope' AND r.request_id = (p_request ->> 'request_id')::uuid;
    RETURN v_first;
END $$;

-- What every change of the keyring ends with: the request id and the entry. Replicas look for changes by themselves.
CREATE FUNCTION close_keyring_change(p_kind smallint, p_leaf bytea, p_request jsonb, p_resource_id text)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_index bigint;
BEGIN
    v_index := append_audit_entries(ARRAY[p_kind], ARRAY['keyring'], ARRAY[p_leaf]);
    INSERT INTO requests (scope, request_id, mac_key_version, body_mac, resource_id, audit_index)
    SELECT n.scope, n.request_id, n.mac_key_version, decode(n.body_mac, 'hex'), p_resource_id, v_index
    FROM jsonb_to_record(p_request) AS n (scope text, request_id uuid, mac_key_version integer, body_mac text);
    RETURN v_index;
END $$;

-- Stores a new STAGED version. status: WRITTEN · REPLAYED · STALE (there is a staged one, or the number is taken).
CREATE FUNCTION stage_keyring_key(
    p_purpose smallint, p_version integer, p_root_key_id text, p_wrapped_key bytea, p_canary bytea,
    p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM keyring_keys WHERE purpose = p_purpose ORDER BY version FOR UPDATE;
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    IF EXISTS (SELECT 1 FROM keyring_keys WHERE purpose = p_purpose AND (state = 1 OR version >= p_version)) THEN
        RETURN 'STALE';
    END IF;
    INSERT INTO keyring_keys (purpose, version, state, root_key_id, wrapped_key, canary)
    VALUES (p_purpose, p_version, 1, p_root_key_id, p_wrapped_key, p_canary);
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_purpose || '/' || p_version);
    RETURN 'WRITTEN';
END $$;

-- Makes a STAGED version PRIMARY, and the present one DECRYPT_ONLY. Whoever wraps under the present one holds its row FOR
-- SHARE until the commit, so that nothing wrapped under it is still to come when this returns.
-- status: WRITTEN · REPLAYED · STALE (not staged) · NOT_READY (a live replica has not proved it).
CREATE FUNCTION promote_keyring_key(
    p_purpose smallint, p_version integer, p_live interval, p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM keyring_keys WHERE purpose = p_purpose ORDER BY version FOR UPDATE;
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM keyring_keys WHERE purpose = p_purpose AND version = p_version AND state = 1
    ) THEN
        RETURN 'STALE';
    END IF;
    IF EXISTS (
        SELECT 1 FROM keyring_replicas
        WHERE last_seen > clock_timestamp() - p_live AND NOT (p_purpose || '/' || p_version) = ANY (proved)
    ) THEN
        RETURN 'NOT_READY';
    END IF;
    UPDATE keyring_keys SET state = 3, update_time = clock_timestamp() WHERE purpose = p_purpose AND state = 2;
    UPDATE keyring_keys SET state = 2, update_time = clock_timestamp()
    WHERE purpose = p_purpose AND version = p_version;
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_purpose || '/' || p_version);
    RETURN 'WRITTEN';
END $$;

-- Whether any row needs a version. Only for versions that are not PRIMARY, whose row the caller holds FOR UPDATE: then no
-- row can come to need it while this looks.
CREATE FUNCTION is_keyring_key_needed(p_purpose smallint, p_version integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE p_purpose
        WHEN 1 THEN EXISTS (SELECT 1 FROM agent_ai_key_secrets WHERE kek_version = p_version)
        WHEN 4 THEN false
        -- Leaves of the log, authority rows, request ids and checkpoints are verified by the version that made them, for
        -- good; and whoever stores an equality HMAC holds no row of its version, so that no count could be believed.
        ELSE true
    END;
END $$;

-- Moves a version between DECRYPT_ONLY and DISABLED. The rows are looked at before the head of the log is locked: it may
-- take a second, and leases must not wait for it. status: WRITTEN · REPLAYED · STALE (another state) · NEEDED.
CREATE FUNCTION set_keyring_key_state(
    p_purpose smallint, p_version integer, p_from smallint, p_to smallint,
    p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_state  smallint;
    v_needed boolean := false;
BEGIN
    SELECT state INTO v_state FROM keyring_keys WHERE purpose = p_purpose AND version = p_version FOR UPDATE;
    IF v_state = p_from AND p_to = 4 THEN
        v_needed := is_keyring_key_needed(p_purpose, p_version);
    END IF;
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    IF v_state IS DISTINCT FROM p_from THEN
        RETURN 'STALE';
    END IF;
    IF v_needed THEN
        RETURN 'NEEDED';
    END IF;
    UPDATE keyring_keys SET state = p_to, update_time = clock_timestamp()
    WHERE purpose = p_purpose AND version = p_version;
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_purpose || '/' || p_version);
    RETURN 'WRITTEN';
END $$;

-- Wipes a DISABLED version. status: WRITTEN · REPLAYED · STALE · NEEDED · IN_BACKUPS (an unexpired backup was taken before
-- the version was disabled) · ROOT_IN_USE (the root key that wrapped it wraps others still).
CREATE FUNCTION destroy_keyring_key(
    p_purpose smallint, p_version integer, p_gives_up_backups boolean,
    p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_state   smallint;
    v_root    text;
    v_updated timestamptz;
    v_needed  boolean := false;
BEGIN
    SELECT state, root_key_id, update_time INTO v_state, v_root, v_updated
    FROM keyring_keys WHERE purpose = p_purpose AND version = p_version FOR UPDATE;
    IF v_state = 4 THEN
        v_needed := is_keyring_key_needed(p_purpose, p_version);
    END IF;
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    IF v_state IS DISTINCT FROM 4 THEN
        RETURN 'STALE';
    END IF;
    IF v_needed THEN
        RETURN 'NEEDED';
    END IF;
    IF EXISTS (SELECT 1 FROM keyring_keys WHERE state IN (1, 2, 3) AND root_key_id = v_root) THEN
        RETURN 'ROOT_IN_USE';
    END IF;
    IF NOT p_gives_up_backups AND EXISTS (
        SELECT 1 FROM backups WHERE snapshot_time < v_updated AND expire_time > clock_timestamp()
    ) THEN
        RETURN 'IN_BACKUPS';
    END IF;
    UPDATE keyring_keys SET state = 5, wrapped_key = '', canary = '', update_time = clock_timestamp()
    WHERE purpose = p_purpose AND version = p_version;
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_purpose || '/' || p_version);
    RETURN 'WRITTEN';
END $$;

-- Stores the keyring wrapped by another root key. DISABLED versions stay under the old one: that is what makes them
-- destructible. status: WRITTEN · REPLAYED · STALE (a version changed meanwhile) · NOT_READY (a live replica has not proved
-- that it can use the root key).
CREATE FUNCTION rotate_root_key(
    p_purposes smallint[], p_versions integer[], p_old_wrapped bytea[], p_new_wrapped bytea[], p_root_key_id text,
    p_live interval, p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_fitting bigint;
BEGIN
    PERFORM 1 FROM keyring_keys ORDER BY purpose, version FOR UPDATE;
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    SELECT count(*) INTO v_fitting
    FROM unnest(p_purposes, p_versions, p_old_wrapped) AS n (purpose, version, wrapped_key)
    JOIN keyring_keys k USING (purpose, version, wrapped_key) WHERE k.state IN (1, 2, 3);
    IF v_fitting <> cardinality(p_versions)
       OR v_fitting <> (SELECT count(*) FROM keyring_keys WHERE state IN (1, 2, 3)) THEN
        RETURN 'STALE';
    END IF;
    IF EXISTS (
        SELECT 1 FROM keyring_replicas
        WHERE last_seen > clock_timestamp() - p_live AND NOT p_root_key_id = ANY (root_key_ids)
    ) THEN
        RETURN 'NOT_READY';
    END IF;
    UPDATE keyring_keys k SET wrapped_key = n.new_wrapped, root_key_id = p_root_key_id
    FROM unnest(p_purposes, p_versions, p_new_wrapped) AS n (purpose, version, new_wrapped)
    WHERE k.purpose = n.purpose AND k.version = n.version;
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_root_key_id);
    RETURN 'WRITTEN';
END $$;

-- Registers a backup, or moves its expiry. status: WRITTEN · REPLAYED.
CREATE FUNCTION put_backup(
    p_backup_id text, p_snapshot_time timestamptz, p_expire_time timestamptz,
    p_kind smallint, p_leaf bytea, p_request jsonb
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF open_keyring_change(p_request) IS NOT NULL THEN
        RETURN 'REPLAYED';
    END IF;
    INSERT INTO backups (backup_id, snapshot_time, expire_time) VALUES (p_backup_id, p_snapshot_time, p_expire_time)
    ON CONFLICT (backup_id) DO UPDATE
    SET snapshot_time = excluded.snapshot_time, expire_time = excluded.expire_time;
    PERFORM close_keyring_change(p_kind, p_leaf, p_request, p_backup_id);
    RETURN 'WRITTEN';
END $$;

-- The serving role writes no key material by itself: it wipes and rewraps through these two, under the rights of the
-- schema's owner, and nobody else may call them.
REVOKE EXECUTE ON FUNCTION destroy_keyring_key FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION rotate_root_key FROM PUBLIC;
