-- The rewrap: what was asked for, how far it has come, and which process works at it.

CREATE TABLE rewraps (
    only_row            boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    is_wanted           boolean NOT NULL DEFAULT false,
    is_paused           boolean NOT NULL DEFAULT false,
    keys_per_second_max integer NOT NULL DEFAULT 0 CHECK (keys_per_second_max >= 0),
    kek_version         integer NOT NULL DEFAULT 0,
    after_key_id        text    NOT NULL DEFAULT '',
    after_key_version   bigint  NOT NULL DEFAULT 0,
    done                bigint  NOT NULL DEFAULT 0,
    failed              bigint  NOT NULL DEFAULT 0,
    total               bigint  NOT NULL DEFAULT 0,
    keys_per_second     double precision NOT NULL DEFAULT 0,
    worker              text    NOT NULL DEFAULT '',
    worker_until        timestamptz,
    start_time          timestamptz,
    end_time            timestamptz,
    completion_index    bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

INSERT INTO rewraps DEFAULT VALUES;

-- Begins a pass towards the PRIMARY KEK, unless one is under way or no secret needs one; sets pace and pause.
CREATE FUNCTION ask_for_rewrap(p_start boolean, p_keys_per_second_max integer, p_pause boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_primary integer;
    v_total   bigint;
BEGIN
    SELECT version INTO STRICT v_primary FROM keyring_keys WHERE purpose = 1 AND state = 2;
    IF p_start AND NOT (SELECT is_wanted FROM rewraps FOR UPDATE) THEN
        SELECT count(*) INTO v_total FROM agent_ai_key_secrets WHERE kek_version <> v_primary;
        -- Also without a secret to wrap: the proof that there is none is what a destruction rests on.
        UPDATE rewraps SET is_wanted = true, is_paused = false, kek_version = v_primary, after_key_id = '',
            after_key_version = 0, done = 0, failed = 0, total = v_total, keys_per_second = 0, worker = '',
            worker_until = NULL, start_time = clock_timestamp(), end_time = NULL, completion_index = 0;
    END IF;
    UPDATE rewraps SET is_paused = coalesce(p_pause, is_paused),
        keys_per_second_max = CASE WHEN p_keys_per_second_max > 0 THEN p_keys_per_second_max
                                   ELSE keys_per_second_max END
    WHERE p_pause IS NOT NULL OR p_keys_per_second_max > 0;
END $$;

-- Takes the pass up, or keeps it: one process at a time, for as long as it says so again in time. A primary that moved on
-- begins the pass anew. Returns nothing when nothing is wanted, or another process is at it.
CREATE FUNCTION claim_rewrap(p_worker text, p_life interval) RETURNS SETOF rewraps LANGUAGE plpgsql AS $$
DECLARE
    v_primary integer;
BEGIN
    SELECT version INTO STRICT v_primary FROM keyring_keys WHERE purpose = 1 AND state = 2;
    UPDATE rewraps SET kek_version = v_primary, after_key_id = '', after_key_version = 0, done = 0, failed = 0,
        total = (SELECT count(*) FROM agent_ai_key_secrets s WHERE s.kek_version <> v_primary)
    WHERE is_wanted AND kek_version <> v_primary;
    RETURN QUERY
    UPDATE rewraps SET worker = p_worker, worker_until = clock_timestamp() + p_life,
        failed = CASE WHEN after_key_id = '' THEN 0 ELSE failed END
    WHERE is_wanted AND (worker = p_worker OR worker_until IS NULL OR worker_until < clock_timestamp())
    RETURNING *;
END $$;

-- Stores a batch of DEKs wrapped anew, each only if it is still what was unwrapped, and how far the pass has come with it.
-- The version's row is held FOR SHARE, as by all who wrap. status: WRITTEN · KEY_NOT_PRIMARY · NOT_CLAIMED.
CREATE FUNCTION rewrap_secrets(
    p_worker text, p_life interval, p_kek_version integer, p_key_ids text[], p_key_versions bigint[],
    p_old_wrapped bytea[], p_new_wrapped bytea[], p_after_key_id text, p_after_key_version bigint,
    p_failed integer, p_keys_per_second double precision
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_count bigint;
BEGIN
    PERFORM 1 FROM keyring_keys WHERE purpose = 1 AND version = p_kek_version AND state = 2 FOR SHARE;
    IF NOT FOUND THEN
        RETURN 'KEY_NOT_PRIMARY';
    END IF;
    PERFORM 1 FROM rewraps WHERE is_wanted AND worker = p_worker AND kek_version = p_kek_version FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'NOT_CLAIMED';
    END IF;
    -- A secret that another change holds is left to it: who waits for one while it holds others could wait for ever. The
    -- count at the end finds what is left.
    WITH free AS MATERIALIZED (
        SELECT s.provider_key_id, s.key_version, n.new_wrapped
        FROM unnest(p_key_ids, p_key_versions, p_old_wrapped, p_new_wrapped)
             AS n (key_id, key_version, old_wrapped, new_wrapped)
        JOIN agent_ai_key_secrets s
          ON s.provider_key_id = n.key_id AND s.key_version = n.key_version AND s.wrapped_dek = n.old_wrapped
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE agent_ai_key_secrets s SET wrapped_dek = f.new_wrapped, kek_version = p_kek_version
    FROM free f WHERE s.provider_key_id = f.provider_key_id AND s.key_version = f.key_version;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    UPDATE rewraps SET after_key_id = p_after_key_id, after_key_version = p_after_key_version,
        done = done + v_count, failed = failed + p_failed, keys_per_second = p_keys_per_second,
        worker_until = clock_timestamp() + p_life;
    RETURN 'WRITTEN';
END $$;

-- Ends the pass when no secret is under another version, with an entry that says so. While the version's row is held, no
-- secret can come to be under another one. The count comes before the lock of the head, so that leases do not wait for it.
-- Returns the index of the entry; 0 when secrets are left, and the pass begins again; NULL when it is not this worker's.
CREATE FUNCTION complete_rewrap(p_worker text, p_kek_version integer, p_kind smallint, p_leaf bytea) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_index bigint;
BEGIN
    PERFORM 1 FROM keyring_keys WHERE purpose = 1 AND version = p_kek_version AND state = 2 FOR SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM 1 FROM rewraps WHERE is_wanted AND worker = p_worker AND kek_version = p_kek_version FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT 1 FROM agent_ai_key_secrets WHERE kek_version <> p_kek_version) THEN
        UPDATE rewraps SET after_key_id = '', after_key_version = 0;
        RETURN 0;
    END IF;
    v_index := append_audit_entries(ARRAY[p_kind], ARRAY['keyring'], ARRAY[p_leaf]);
    UPDATE rewraps SET is_wanted = false, end_time = clock_timestamp(), completion_index = v_index, failed = 0,
        worker = '', worker_until = NULL;
    RETURN v_index;
END $$;
