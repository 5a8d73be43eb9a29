-- Who flushes, by a heartbeat much shorter than a licence: what a dead replica owned is taken over within seconds, which
-- the fence of each partition makes safe at any time.
CREATE TABLE flushers (
    replica        text PRIMARY KEY,
    heartbeat_time timestamptz NOT NULL
);
