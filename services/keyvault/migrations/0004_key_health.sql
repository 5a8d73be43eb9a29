-- When keys are due for a test call, when they expire and who was told, erasures of owners; and how far workers have come.
-- Nothing here is authority: a row that is missing or wrong delays a test call or a notice, and never permits a lease.

-- One row for each key that is not revoked, planned from its authority row. next_check_time: unset when none is due by
-- itself. expire_time: unset when the key never expires, or that was seen to.
CREATE TABLE agent_ai_key_checks (
    provider_key_id  text        PRIMARY KEY,
    planned_index    bigint      NOT NULL,
    provider         text        NOT NULL,
    state            smallint    NOT NULL,
    key_version      bigint      NOT NULL,
    attempts         integer     NOT NULL,
    validate_time    timestamptz,
    next_check_time  timestamptz,
    expire_time      timestamptz,
    next_notice_time timestamptz,
    claimed_time     timestamptz,
    claimed_until    timestamptz,
    claimed_by       text        NOT NULL DEFAULT ''
) WITH (fillfactor = 80);

CREATE INDEX agent_ai_key_checks_due ON agent_ai_key_checks (provider, next_check_time)
    WHERE next_check_time IS NOT NULL;
CREATE INDEX agent_ai_key_checks_expiring ON agent_ai_key_checks (expire_time) WHERE expire_time IS NOT NULL;
CREATE INDEX agent_ai_key_checks_notices ON agent_ai_key_checks (next_notice_time) WHERE next_notice_time IS NOT NULL;
CREATE INDEX agent_ai_key_checks_claimed ON agent_ai_key_checks (claimed_time) WHERE claimed_time IS NOT NULL;

-- What changed since a worker last looked; the index is in commit order, so nothing is passed over.
CREATE INDEX agent_ai_keys_in_order ON agent_ai_keys (audit_index) WHERE superseded_index IS NULL;

-- Up to which audit index a worker has come, whichever replica ran it.
CREATE TABLE worker_positions (
    worker      text   PRIMARY KEY,
    audit_index bigint NOT NULL
);

-- Who was told that a key will expire: once for each time and threshold.
CREATE TABLE expiry_notices (
    provider_key_id   text        NOT NULL,
    expire_time       timestamptz NOT NULL,
    threshold_seconds bigint      NOT NULL,
    audit_index       bigint      NOT NULL,
    PRIMARY KEY (provider_key_id, expire_time, threshold_seconds)
);

-- Claims keys that are due, oldest first, for at most p_claims_max test calls, within the rates of each provider and of
-- all. Claims follow one another, so that the rates hold with any number of claimers; a row that is being planned
-- meanwhile is passed over. attempts counts before the call: a claim that is not reported is tried again later and later.
CREATE FUNCTION claim_key_checks(
    p_now timestamptz, p_providers text[], p_claims_max integer, p_claimed_by text, p_life interval,
    p_window interval, p_provider_max integer, p_total_max integer
) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    v_left bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(x'6b65796865616c74'::bigint);
    SELECT p_total_max - count(*) INTO v_left FROM agent_ai_key_checks WHERE claimed_time > p_now - p_window;
    RETURN QUERY
    WITH used AS (
        SELECT c.provider, count(*) AS claims FROM agent_ai_key_checks c
        WHERE c.claimed_time > p_now - p_window GROUP BY c.provider
    ), due AS (
        SELECT found.provider_key_id
        FROM unnest(p_providers) AS asked (provider)
        LEFT JOIN used ON used.provider = asked.provider
        CROSS JOIN LATERAL (
            SELECT c.provider_key_id, c.next_check_time FROM agent_ai_key_checks c
            WHERE c.provider = asked.provider AND c.next_check_time <= p_now
              AND (c.claimed_until IS NULL OR c.claimed_until <= p_now)
            ORDER BY c.next_check_time
            LIMIT greatest(0, least(p_claims_max, p_provider_max - coalesce(used.claims, 0)))
            FOR UPDATE SKIP LOCKED
        ) found
        ORDER BY found.next_check_time LIMIT greatest(0, least(p_claims_max, v_left))
    )
    UPDATE agent_ai_key_checks c SET
        attempts = c.attempts + 1, claimed_time = p_now, claimed_until = p_now + p_life, claimed_by = p_claimed_by,
        next_check_time = p_now + p_life * power(2, least(c.attempts, 10))
    FROM due WHERE c.provider_key_id = due.provider_key_id
    RETURNING c.provider_key_id;
END $$;

-- Appends an entry for each notice that nobody was given before and whose key is still as it was read; returns how many.
CREATE FUNCTION append_expiry_notices(
    p_key_ids text[], p_key_indexes bigint[], p_expire_times timestamptz[], p_thresholds bigint[],
    p_next_times timestamptz[], p_kind smallint, p_leaves bytea[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_last  bigint;
    v_count bigint;
BEGIN
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    WITH asked AS (
        SELECT a.* FROM unnest(p_key_ids, p_key_indexes, p_expire_times, p_thresholds, p_next_times, p_leaves)
            WITH ORDINALITY AS a (key_id, key_index, expire_time, threshold, next_time, leaf, item)
        JOIN agent_ai_keys k
          ON k.provider_key_id = a.key_id AND k.audit_index = a.key_index AND k.superseded_index IS NULL
    ), fresh AS (
        SELECT a.*, v_last + row_number() OVER (ORDER BY a.item) AS audit_index FROM asked a
        WHERE NOT EXISTS (
            SELECT FROM expiry_notices n WHERE n.provider_key_id = a.key_id AND n.expire_time = a.expire_time
              AND n.threshold_seconds = a.threshold)
    ), noted AS (
        INSERT INTO expiry_notices (provider_key_id, expire_time, threshold_seconds, audit_index)
        SELECT f.key_id, f.expire_time, f.threshold, f.audit_index FROM fresh f
    ), planned AS (
        UPDATE agent_ai_key_checks c SET next_notice_time = a.next_time
        FROM asked a WHERE c.provider_key_id = a.key_id
    )
    SELECT count(*), append_audit_entries(
        array_agg(p_kind ORDER BY f.item), array_agg('key/' || f.key_id ORDER BY f.item),
        array_agg(f.leaf ORDER BY f.item)) INTO v_count
    FROM fresh f HAVING count(*) > 0;
    RETURN coalesce(v_count, 0);
END $$;

-- Owners whose secrets were destroyed. The keys that had been made by begin_index are the ones that an erasure is about;
-- finish_time is set when all of them are revoked.
CREATE TABLE erasures (
    owner_id    text        NOT NULL,
    begin_index bigint      NOT NULL,
    caller      text        NOT NULL,
    actor       text        NOT NULL,
    erased_keys bigint      NOT NULL,
    last_index  bigint      NOT NULL,
    create_time timestamptz NOT NULL,
    finish_time timestamptz,
    PRIMARY KEY (owner_id, begin_index)
);

CREATE INDEX erasures_unfinished ON erasures (create_time) WHERE finish_time IS NULL;

-- Destroys every secret of an owner and writes that it was done, or nothing. status: BEGUN · STANDS (there is an erasure,
-- and nothing was made since that it does not cover) · REPLAYED (begin_index is that of the first answer's).
CREATE FUNCTION begin_erasure(
    p_owner_id text, p_caller text, p_actor text, p_now timestamptz, p_kind smallint, p_subject text, p_leaf bytea,
    p_request jsonb
) RETURNS TABLE (status text, begin_index bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_last  bigint;
    v_index bigint;
    v_count bigint;
BEGIN
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    SELECT r.audit_index INTO v_index FROM requests r
    WHERE r.scope = p_request ->> 'scope' AND r.request_id = (p_request ->> 'request_id')::uuid;
    IF FOUND THEN
        RETURN QUERY SELECT 'REPLAYED', v_index;
        RETURN;
    END IF;
    SELECT max(e.begin_index) INTO v_index FROM erasures e WHERE e.owner_id = p_owner_id;
    IF v_index IS NOT NULL AND NOT EXISTS (
        SELECT FROM agent_ai_keys k
        WHERE k.owner_kind = 1 AND k.owner_id = p_owner_id AND k.superseded_index IS NULL AND k.state <> 7
          AND NOT EXISTS (
            SELECT FROM agent_ai_keys f WHERE f.provider_key_id = k.provider_key_id AND f.audit_index <= v_index)
    ) THEN
        INSERT INTO requests (scope, request_id, mac_key_version, body_mac, resource_id, audit_index)
        SELECT n.scope, n.request_id, n.mac_key_version, decode(n.body_mac, 'hex'), p_owner_id, v_index
        FROM jsonb_to_record(p_request) AS n (scope text, request_id uuid, mac_key_version integer, body_mac text);
        RETURN QUERY SELECT 'STANDS', v_index;
        RETURN;
    END IF;
    v_index := v_last + 1;
    DELETE FROM agent_ai_key_secrets s USING agent_ai_keys k
    WHERE k.provider_key_id = s.provider_key_id AND k.owner_kind = 1 AND k.owner_id = p_owner_id
      AND k.superseded_index IS NULL;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    INSERT INTO erasures (owner_id, begin_index, caller, actor, erased_keys, last_index, create_time)
    VALUES (p_owner_id, v_index, p_caller, p_actor, v_count, v_index, p_now);
    PERFORM close_authority_write(v_index, p_kind, p_subject, p_leaf, p_request, p_owner_id);
    RETURN QUERY SELECT 'BEGUN', v_index;
END $$;

-- Rows that were found to be corrupt, so that the log says each once however often and by how many it is met.
CREATE TABLE corruption_reports (
    row_id      text   NOT NULL,
    what        text   NOT NULL,
    row_index   bigint NOT NULL,
    audit_index bigint NOT NULL,
    PRIMARY KEY (row_id, what, row_index)
);

CREATE FUNCTION append_corruption(
    p_row_id text, p_what text, p_row_index bigint, p_kind smallint, p_subject text, p_leaf bytea
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_last bigint;
BEGIN
    SELECT last_index INTO STRICT v_last FROM audit_head FOR UPDATE;
    INSERT INTO corruption_reports (row_id, what, row_index, audit_index)
    VALUES (p_row_id, p_what, p_row_index, v_last + 1) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM append_audit_entries(ARRAY[p_kind], ARRAY[p_subject], ARRAY[p_leaf]);
    RETURN true;
END $$;
