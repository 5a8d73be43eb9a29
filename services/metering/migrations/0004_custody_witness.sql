-- What is witnessed of KeyVault's audit log (domain/custody.py), for all replicas.
CREATE TABLE custody_witness (
    only_row                 boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Rises with every new checkpoint and change of state: who writes names the one that they read.
    version                  bigint NOT NULL DEFAULT 0,
    -- Counts accepted restores.
    epoch                    bigint NOT NULL DEFAULT 0,
    -- 1 not witnessed, 2 consistent, 3 rolled back.
    state                    smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 3),
    checkpoint               text NOT NULL DEFAULT '',
    origin                   text NOT NULL DEFAULT '',
    size                     bigint NOT NULL DEFAULT 0 CHECK (size >= 0),
    root                     bytea NOT NULL DEFAULT '',
    -- C2SP verifier keys that are trusted when none is pinned.
    verifier_keys            text[] NOT NULL DEFAULT '{}',
    -- The feed of key events was read up to here.
    feed_index               bigint NOT NULL DEFAULT 0,
    witness_time             timestamptz,
    -- When KeyVault last showed a log that continues the checkpoint.
    confirm_time             timestamptz,
    contradicting_checkpoint text NOT NULL DEFAULT '',
    description              text NOT NULL DEFAULT '',
    rollback_time            timestamptz,
    -- Where KeyVault finds its log corrupt, and where an operator has accepted that it does.
    corrupt_index            bigint NOT NULL DEFAULT 0,
    excused_index            bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

INSERT INTO custody_witness DEFAULT VALUES;

-- Superseded checkpoints, one a minute for a week: which of them the log still continues tells when it was forked.
CREATE TABLE custody_checkpoints (
    supersede_time timestamptz PRIMARY KEY DEFAULT clock_timestamp(),
    epoch          bigint NOT NULL,
    size           bigint NOT NULL,
    checkpoint     text NOT NULL,
    witness_time   timestamptz
);

-- Restores that an operator has accepted, with what was given up for them. Kept for ever.
CREATE TABLE custody_restores (
    epoch                    bigint PRIMARY KEY,
    request_id               uuid NOT NULL UNIQUE,
    actor                    text NOT NULL,
    reason                   text NOT NULL,
    accept_time              timestamptz NOT NULL DEFAULT clock_timestamp(),
    given_up_size            bigint NOT NULL,
    given_up_checkpoint      text NOT NULL,
    contradicting_checkpoint text NOT NULL,
    description              text NOT NULL,
    rollback_time            timestamptz,
    accepted_size            bigint NOT NULL,
    accepted_checkpoint      text NOT NULL
);

-- Whatever a replica believes: the witness goes back, and a roll-back ends, only by a restore that was accepted.
CREATE FUNCTION custody_witness_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'the custody witness is not deleted';
    END IF;
    IF NEW.epoch = OLD.epoch AND (NEW.size < OLD.size OR (OLD.state = 3 AND NEW.state <> 3)) THEN
        RAISE EXCEPTION 'the custody witness does not go back';
    END IF;
    IF NEW.epoch <> OLD.epoch AND NOT EXISTS (SELECT FROM custody_restores WHERE epoch = NEW.epoch) THEN
        RAISE EXCEPTION 'no restore of this epoch was accepted';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER custody_witness_moves_forward BEFORE UPDATE OR DELETE ON custody_witness
    FOR EACH ROW EXECUTE FUNCTION custody_witness_moves_forward();
