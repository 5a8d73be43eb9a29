-- What may be leased, to whom: provider keys and their sealed secrets, agent bindings, shares and halts; request ids and
-- watchers; and the functions that write authority and grant leases, each in one statement with its audit entry.

-- Provider keys, one row for each state that a key has had; the present one has no superseded_index. `record` is what the
-- HMAC covers and what the service goes by; the other columns find it, and must agree with it.
CREATE TABLE agent_ai_keys (
    provider_key_id  text     NOT NULL,
    audit_index      bigint   NOT NULL,
    superseded_index bigint   CHECK (superseded_index > audit_index),
    scope            smallint NOT NULL,
    owner_kind       smallint NOT NULL,
    owner_id         text     NOT NULL,
    agent_id         text     NOT NULL,
    provider         text     NOT NULL,
    base_url         text     NOT NULL,
    priority         integer  NOT NULL,
    state            smallint NOT NULL,
    key_version      bigint   NOT NULL,
    record           bytea    NOT NULL,
    mac_key_version  integer  NOT NULL,
    mac              bytea    NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (provider_key_id, audit_index)
);

CREATE UNIQUE INDEX agent_ai_keys_present ON agent_ai_keys (provider_key_id) WHERE superseded_index IS NULL;
CREATE INDEX agent_ai_keys_of_agent ON agent_ai_keys (agent_id)
    WHERE superseded_index IS NULL AND scope = 1 AND state <> 7;
CREATE INDEX agent_ai_keys_of_owner ON agent_ai_keys (owner_id)
    WHERE superseded_index IS NULL AND scope = 2 AND state <> 7;
CREATE INDEX agent_ai_keys_of_platform ON agent_ai_keys (provider)
    WHERE superseded_index IS NULL AND scope = 4 AND state <> 7;
CREATE INDEX agent_ai_keys_of_account ON agent_ai_keys (owner_kind, owner_id, provider_key_id)
    WHERE superseded_index IS NULL;

-- Sealed secrets. Apart from the authority rows, because a rewrap writes all of these and none of those: room is left on
-- each page, and the KEK version is not indexed, so that a rewrap stays on the page.
CREATE TABLE agent_ai_key_secrets (
    provider_key_id      text    NOT NULL,
    key_version          bigint  NOT NULL,
    sealed_secret        bytea   NOT NULL,
    wrapped_dek          bytea   NOT NULL,
    kek_version          integer NOT NULL,
    equality_mac_version integer NOT NULL,
    equality_mac         bytea   NOT NULL CHECK (octet_length(equality_mac) = 32),
    PRIMARY KEY (provider_key_id, key_version)
) WITH (fillfactor = 50);

CREATE INDEX agent_ai_key_secrets_equal ON agent_ai_key_secrets (equality_mac);

-- Which owner and account an agent belongs to; rows as in agent_ai_keys.
CREATE TABLE agent_bindings (
    agent_id         text    NOT NULL,
    audit_index      bigint  NOT NULL,
    superseded_index bigint  CHECK (superseded_index > audit_index),
    owner_id         text    NOT NULL,
    record           bytea   NOT NULL,
    mac_key_version  integer NOT NULL,
    mac              bytea   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (agent_id, audit_index)
);

CREATE UNIQUE INDEX agent_bindings_present ON agent_bindings (agent_id) WHERE superseded_index IS NULL;
-- A test call of an owner's key is limited by the account that the owner's agents belong to, so a binding of an owner is
-- looked for.
CREATE INDEX agent_bindings_of_owner ON agent_bindings (owner_id, agent_id) WHERE superseded_index IS NULL;

-- Which agents may use which keys of their organization; rows as in agent_ai_keys. A share that ended has a row that says
-- so.
CREATE TABLE key_shares (
    provider_key_id  text     NOT NULL,
    agent_id         text     NOT NULL,
    audit_index      bigint   NOT NULL,
    superseded_index bigint   CHECK (superseded_index > audit_index),
    is_ended         boolean  NOT NULL,
    record           bytea    NOT NULL,
    mac_key_version  integer  NOT NULL,
    mac              bytea    NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (provider_key_id, agent_id, audit_index)
);

CREATE UNIQUE INDEX key_shares_present ON key_shares (provider_key_id, agent_id) WHERE superseded_index IS NULL;
CREATE INDEX key_shares_of_agent ON key_shares (agent_id) WHERE superseded_index IS NULL AND NOT is_ended;

-- Every halt in force, in one row: a halt that is deleted takes the whole set with it, and without a set nothing is
-- leased. Rows as in agent_ai_keys.
CREATE TABLE halt_sets (
    audit_index      bigint  PRIMARY KEY,
    superseded_index bigint  CHECK (superseded_index > audit_index),
    record           bytea   NOT NULL,
    mac_key_version  integer NOT NULL,
    mac              bytea   NOT NULL CHECK (octet_length(mac) = 32)
);

CREATE UNIQUE INDEX halt_sets_present ON halt_sets ((true)) WHERE superseded_index IS NULL;

-- What a request id was used for. `scope` is the RPC and the principal.
CREATE TABLE requests (
    scope           text        NOT NULL,
    request_id      uuid        NOT NULL,
    mac_key_version integer     NOT NULL,
    body_mac        bytea       NOT NULL CHECK (octet_length(body_mac) = 32),
    resource_id     text        NOT NULL,
    audit_index     bigint      NOT NULL,
    create_time     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, request_id)
);

CREATE INDEX requests_create_time ON requests (create_time);

-- Router processes that watch. A revocation waits for each until it has acknowledged, or usable_until has passed.
CREATE TABLE watchers (
    caller       text        NOT NULL,
    holder       text        NOT NULL,
    acked_index  bigint      NOT NULL,
    usable_until timestamptz NOT NULL,
    PRIMARY KEY (caller, holder)
) WITH (fillfactor = 50);

CREATE FUNCTION allow_superseding_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.superseded_index IS NULL AND NEW.superseded_index IS NOT NULL THEN
        OLD.superseded_index := NEW.superseded_index;
        IF OLD IS NOT DISTINCT FROM NEW THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'rows of % are superseded, never edited', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER agent_ai_keys_superseded BEFORE UPDATE ON agent_ai_keys
    FOR EACH ROW EXECUTE FUNCTION allow_superseding_only();
CREATE TRIGGER agent_ai_keys_kept BEFORE DELETE ON agent_ai_keys FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER agent_ai_keys_no_truncate BEFORE TRUNCATE ON agent_ai_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER agent_bindings_superseded BEFORE UPDATE ON agent_bindings
    FOR EACH ROW EXECUTE FUNCTION allow_superseding_only();
CREATE TRIGGER agent_bindings_kept BEFORE DELETE ON agent_bindings FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER agent_bindings_no_truncate BEFORE TRUNCATE ON agent_bindings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER key_shares_superseded BEFORE UPDATE ON key_shares
    FOR EACH ROW EXECUTE FUNCTION allow_superseding_only();
CREATE TRIGGER key_shares_kept BEFORE DELETE ON key_shares FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER key_shares_no_truncate BEFORE TRUNCATE ON key_shares
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER halt_sets_superseded BEFORE UPDATE ON halt_sets
    FOR EACH ROW EXECUTE FUNCTION allow_superseding_only();
CREATE TRIGGER halt_sets_kept BEFORE DELETE ON halt_sets FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER halt_sets_no_truncate BEFORE TRUNCATE ON halt_sets
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Grants the leases of a batch whose authority is still what was read, and returns their secrets, still sealed. An item
-- that is missing in the answer was overtaken by a change, and nothing was appended for it. A share index of 0 means that
-- the key needs no share; p_halts_index is the set of halts that all of them were picked under.
CREATE FUNCTION append_leases(
    p_agent_ids text[], p_binding_indexes bigint[], p_key_ids text[], p_key_indexes bigint[], p_share_indexes bigint[],
    p_leaves bytea[], p_halts_index bigint
) RETURNS TABLE (item bigint, audit_index bigint, sealed_secret bytea, wrapped_dek bytea) LANGUAGE plpgsql AS $$
DECLARE
    v_last  bigint;
    v_count bigint;
BEGIN
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    -- A statement of its own: it sees everything committed before the lock was ours. In the statement that waits for
    -- the lock, authority would be read from the snapshot taken before the wait, and a key revoked meanwhile would pass.
    RETURN QUERY
    WITH granted AS MATERIALIZED (
        SELECT asked.item, asked.key_id, asked.leaf, s.sealed_secret, s.wrapped_dek,
               v_last + row_number() OVER (ORDER BY asked.item) AS audit_index
        FROM unnest(p_agent_ids, p_binding_indexes, p_key_ids, p_key_indexes, p_share_indexes, p_leaves)
             WITH ORDINALITY AS asked (agent_id, binding_index, key_id, key_index, share_index, leaf, item)
        JOIN halt_sets h ON h.audit_index = p_halts_index AND h.superseded_index IS NULL
        JOIN agent_ai_keys k
          ON k.provider_key_id = asked.key_id AND k.audit_index = asked.key_index AND k.superseded_index IS NULL
        JOIN agent_ai_key_secrets s ON s.provider_key_id = k.provider_key_id AND s.key_version = k.key_version
        LEFT JOIN agent_bindings b
          ON b.agent_id = asked.agent_id AND b.audit_index = asked.binding_index AND b.superseded_index IS NULL
        LEFT JOIN key_shares sh
          ON sh.provider_key_id = asked.key_id AND sh.agent_id = asked.agent_id
         AND sh.audit_index = asked.share_index AND sh.superseded_index IS NULL AND NOT sh.is_ended
        WHERE (asked.agent_id = '' OR b.agent_id IS NOT NULL)
          AND (asked.share_index = 0 OR sh.agent_id IS NOT NULL)
    ), appended AS (
        INSERT INTO audit_entries (audit_index, kind, subject, leaf, leaf_hash)
        SELECT g.audit_index, 100, 'key/' || g.key_id, g.leaf, sha256('\x00'::bytea || g.leaf) FROM granted g
    )
    SELECT g.item, g.audit_index, g.sealed_secret, g.wrapped_dek FROM granted g;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    UPDATE audit_head SET last_index = v_last + v_count;
END $$;

-- What every write of authority begins with: takes the keys that wrap and sign FOR SHARE, then the head of the log, and
-- looks whether the request id was used. status: OPEN (audit_index is the one to write) · REPLAYED (audit_index is the
-- first answer's) · KEY_NOT_PRIMARY.
CREATE FUNCTION open_authority_write(p_kek_version integer, p_mac_key_version integer, p_request jsonb)
RETURNS TABLE (status text, audit_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_last  bigint;
    v_first bigint;
BEGIN
    IF NOT share_primary_keys(p_kek_version, p_mac_key_version) THEN
        RETURN QUERY SELECT 'KEY_NOT_PRIMARY', 0::bigint;
        RETURN;
    END IF;
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    SELECT r.audit_index INTO v_first FROM requests r
    WHERE r.scope = p_request ->> 'scope' AND r.request_id = (p_request ->> 'request_id')::uuid;
    IF FOUND THEN
        RETURN QUERY SELECT 'REPLAYED', v_first;
    ELSE
        RETURN QUERY SELECT 'OPEN', v_last + 1;
    END IF;
END $$;

-- Whether a row may be written at this index. status: OPEN · STALE (another row is the present one: its index) ·
-- WINDOW_MISSED (the row has no HMAC for this index; audit_index is the head).
CREATE FUNCTION check_authority_write(
    p_index bigint, p_present_index bigint, p_expected_index bigint, p_mac_first_index bigint, p_macs bytea[]
) RETURNS TABLE (status text, audit_index bigint) LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN coalesce(p_present_index, 0) <> p_expected_index THEN 'STALE'
        WHEN p_index < p_mac_first_index OR p_index >= p_mac_first_index + cardinality(p_macs) THEN 'WINDOW_MISSED'
        ELSE 'OPEN'
    END, CASE
        WHEN coalesce(p_present_index, 0) <> p_expected_index THEN coalesce(p_present_index, 0)
        WHEN p_index < p_mac_first_index OR p_index >= p_mac_first_index + cardinality(p_macs) THEN p_index - 1
        ELSE p_index
    END
$$;

-- What every write of authority ends with: the request id, the entry, and word to those who watch.
CREATE FUNCTION close_authority_write(
    p_index bigint, p_kind smallint, p_subject text, p_leaf bytea, p_request jsonb, p_resource_id text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO requests (scope, request_id, mac_key_version, body_mac, resource_id, audit_index)
    SELECT n.scope, n.request_id, n.mac_key_version, decode(n.body_mac, 'hex'), p_resource_id, p_index
    FROM jsonb_to_record(p_request) AS n (scope text, request_id uuid, mac_key_version integer, body_mac text)
    WHERE p_request IS NOT NULL;
    PERFORM append_audit_entries(ARRAY[p_kind], ARRAY[p_subject], ARRAY[p_leaf]);
    PERFORM pg_notify('keyvault_authority', p_index::text);
END $$;

-- Writes one authority row of a provider key with its audit entry, secret and request id, or nothing.
-- status: WRITTEN · REPLAYED (audit_index is the first answer's) · STALE (another row is the present one) ·
-- WINDOW_MISSED (audit_index is the head) · KEY_NOT_PRIMARY.
CREATE FUNCTION put_provider_key(
    p_row jsonb, p_record bytea, p_mac_first_index bigint, p_macs bytea[], p_kind smallint, p_leaf bytea,
    p_secret jsonb, p_sealed_secret bytea, p_wrapped_dek bytea, p_request jsonb
) RETURNS TABLE (status text, audit_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_status  text;
    v_index   bigint;
    v_present bigint;
    v_key_id  text := p_row ->> 'provider_key_id';
BEGIN
    SELECT o.status, o.audit_index INTO v_status, v_index
    FROM open_authority_write(
        (p_secret ->> 'kek_version')::integer, (p_row ->> 'mac_key_version')::integer, p_request) o;
    IF v_status = 'OPEN' THEN
        SELECT k.audit_index INTO v_present FROM agent_ai_keys k
        WHERE k.provider_key_id = v_key_id AND k.superseded_index IS NULL;
        SELECT c.status, c.audit_index INTO v_status, v_index
        FROM check_authority_write(
            v_index, v_present, (p_row ->> 'expected_index')::bigint, p_mac_first_index, p_macs) c;
    END IF;
    IF v_status <> 'OPEN' THEN
        RETURN QUERY SELECT v_status, v_index;
        RETURN;
    END IF;
    UPDATE agent_ai_keys k SET superseded_index = v_index
    WHERE k.provider_key_id = v_key_id AND k.superseded_index IS NULL;
    INSERT INTO agent_ai_keys (
        provider_key_id, audit_index, scope, owner_kind, owner_id, agent_id, provider, base_url, priority, state,
        key_version, record, mac_key_version, mac)
    SELECT v_key_id, v_index, n.scope, n.owner_kind, n.owner_id, n.agent_id, n.provider, n.base_url, n.priority,
           n.state, n.key_version, p_record, n.mac_key_version, p_macs[v_index - p_mac_first_index + 1]
    FROM jsonb_to_record(p_row) AS n (
        scope smallint, owner_kind smallint, owner_id text, agent_id text, provider text, base_url text,
        priority integer, state smallint, key_version bigint, mac_key_version integer);
    -- The secret of an earlier version, or of a revoked key, is never opened again: keep no copy.
    IF p_secret IS NOT NULL OR (p_row ->> 'state')::smallint = 7 THEN
        DELETE FROM agent_ai_key_secrets s WHERE s.provider_key_id = v_key_id;
    END IF;
    IF p_secret IS NOT NULL THEN
        INSERT INTO agent_ai_key_secrets (
            provider_key_id, key_version, sealed_secret, wrapped_dek, kek_version, equality_mac_version, equality_mac)
        SELECT v_key_id, (p_row ->> 'key_version')::bigint, p_sealed_secret, p_wrapped_dek, n.kek_version,
               n.equality_mac_version, decode(n.equality_mac, 'hex')
        FROM jsonb_to_record(p_secret) AS n (kek_version integer, equality_mac_version integer, equality_mac text);
    END IF;
    PERFORM close_authority_write(v_index, p_kind, 'key/' || v_key_id, p_leaf, p_request, v_key_id);
    RETURN QUERY SELECT 'WRITTEN', v_index;
END $$;

-- Writes one authority row of a binding with its audit entry and request id, or nothing. status as in put_provider_key.
CREATE FUNCTION put_agent_binding(
    p_row jsonb, p_record bytea, p_mac_first_index bigint, p_macs bytea[], p_kind smallint, p_leaf bytea,
    p_request jsonb
) RETURNS TABLE (status text, audit_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_status   text;
    v_index    bigint;
    v_present  bigint;
    v_agent_id text := p_row ->> 'agent_id';
BEGIN
    SELECT o.status, o.audit_index INTO v_status, v_index
    FROM open_authority_write(NULL, (p_row ->> 'mac_key_version')::integer, p_request) o;
    IF v_status = 'OPEN' THEN
        SELECT b.audit_index INTO v_present FROM agent_bindings b
        WHERE b.agent_id = v_agent_id AND b.superseded_index IS NULL;
        SELECT c.status, c.audit_index INTO v_status, v_index
        FROM check_authority_write(
            v_index, v_present, (p_row ->> 'expected_index')::bigint, p_mac_first_index, p_macs) c;
    END IF;
    IF v_status <> 'OPEN' THEN
        RETURN QUERY SELECT v_status, v_index;
        RETURN;
    END IF;
    UPDATE agent_bindings b SET superseded_index = v_index
    WHERE b.agent_id = v_agent_id AND b.superseded_index IS NULL;
    INSERT INTO agent_bindings (agent_id, audit_index, owner_id, record, mac_key_version, mac)
    VALUES (v_agent_id, v_index, p_row ->> 'owner_id', p_record, (p_row ->> 'mac_key_version')::integer,
            p_macs[v_index - p_mac_first_index + 1]);
    PERFORM close_authority_write(v_index, p_kind, 'agent/' || v_agent_id, p_leaf, p_request, v_agent_id);
    RETURN QUERY SELECT 'WRITTEN', v_index;
END $$;

-- Writes one authority row of a share with its audit entry and request id, or nothing. status as in put_provider_key.
CREATE FUNCTION put_key_share(
    p_row jsonb, p_record bytea, p_mac_first_index bigint, p_macs bytea[], p_kind smallint, p_leaf bytea,
    p_request jsonb
) RETURNS TABLE (status text, audit_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_status   text;
    v_index    bigint;
    v_present  bigint;
    v_key_id   text := p_row ->> 'provider_key_id';
    v_agent_id text := p_row ->> 'agent_id';
BEGIN
    SELECT o.status, o.audit_index INTO v_status, v_index
    FROM open_authority_write(NULL, (p_row ->> 'mac_key_version')::integer, p_request) o;
    IF v_status = 'OPEN' THEN
        SELECT s.audit_index INTO v_present FROM key_shares s
        WHERE s.provider_key_id = v_key_id AND s.agent_id = v_agent_id AND s.superseded_index IS NULL;
        SELECT c.status, c.audit_index INTO v_status, v_index
        FROM check_authority_write(
            v_index, v_present, (p_row ->> 'expected_index')::bigint, p_mac_first_index, p_macs) c;
    END IF;
    IF v_status <> 'OPEN' THEN
        RETURN QUERY SELECT v_status, v_index;
        RETURN;
    END IF;
    UPDATE key_shares s SET superseded_index = v_index
    WHERE s.provider_key_id = v_key_id AND s.agent_id = v_agent_id AND s.superseded_index IS NULL;
    INSERT INTO key_shares (provider_key_id, agent_id, audit_index, is_ended, record, mac_key_version, mac)
    VALUES (v_key_id, v_agent_id, v_index, (p_row ->> 'is_ended')::boolean, p_record,
            (p_row ->> 'mac_key_version')::integer, p_macs[v_index - p_mac_first_index + 1]);
    PERFORM close_authority_write(
        v_index, p_kind, 'key/' || v_key_id, p_leaf, p_request, v_key_id || '/' || v_agent_id);
    RETURN QUERY SELECT 'WRITTEN', v_index;
END $$;

-- Writes the authority row of the set of halts with its audit entry and request id, or nothing. status as in
-- put_provider_key.
CREATE FUNCTION put_halt_set(
    p_row jsonb, p_record bytea, p_mac_first_index bigint, p_macs bytea[], p_kind smallint, p_leaf bytea,
    p_request jsonb
) RETURNS TABLE (status text, audit_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_status  text;
    v_index   bigint;
    v_present bigint;
BEGIN
    SELECT o.status, o.audit_index INTO v_status, v_index
    FROM open_authority_write(NULL, (p_row ->> 'mac_key_version')::integer, p_request) o;
    IF v_status = 'OPEN' THEN
        SELECT h.audit_index INTO v_present FROM halt_sets h WHERE h.superseded_index IS NULL;
        SELECT c.status, c.audit_index INTO v_status, v_index
        FROM check_authority_write(
            v_index, v_present, (p_row ->> 'expected_index')::bigint, p_mac_first_index, p_macs) c;
    END IF;
    IF v_status <> 'OPEN' THEN
        RETURN QUERY SELECT v_status, v_index;
        RETURN;
    END IF;
    UPDATE halt_sets h SET superseded_index = v_index WHERE h.superseded_index IS NULL;
    INSERT INTO halt_sets (audit_index, record, mac_key_version, mac)
    VALUES (v_index, p_record, (p_row ->> 'mac_key_version')::integer, p_macs[v_index - p_mac_first_index + 1]);
    PERFORM close_authority_write(v_index, p_kind, 'halts', p_leaf, p_request, p_row ->> 'resource_id');
    RETURN QUERY SELECT 'WRITTEN', v_index;
END $$;
