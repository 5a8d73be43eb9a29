-- The keyring, and who may wrap or sign with it.

-- The keyring, wrapped by the root key. purpose: 1 KEK, 2 authority HMAC, 3 equality HMAC, 4 submission.
-- state: 1 STAGED, 2 PRIMARY, 3 DECRYPT_ONLY, 4 DISABLED, 5 DESTROYED.
CREATE TABLE keyring_keys (
    purpose     smallint NOT NULL,
    version     integer  NOT NULL CHECK (version > 0),
    state       smallint NOT NULL,
    root_key_id text     NOT NULL,
    wrapped_key bytea    NOT NULL,
    canary      bytea    NOT NULL,
    PRIMARY KEY (purpose, version)
);

CREATE UNIQUE INDEX keyring_keys_primary ON keyring_keys (purpose) WHERE state = 2;

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
