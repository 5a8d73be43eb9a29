-- Accounts, limits, licences and the ledger. Append-only where money is concerned.

CREATE TABLE plans (
    name         text PRIMARY KEY,
    priority     integer NOT NULL,
    entitlements text[]  NOT NULL DEFAULT '{}',
    -- NULL: any number.
    agents_max   integer CHECK (agents_max >= 0)
);

-- Any number of agents on every plan: the spec's first two phases are free of charge. Tightening a plan is an UPDATE.
INSERT INTO plans (name, priority, entitlements) VALUES
    ('free', 1, '{}'),
    ('pro', 2, '{analytics,priority_queue,webhooks}'),
    ('enterprise', 3, '{analytics,priority_queue,webhooks,custom_guardrail_rules}'),
    ('partner', 3, '{analytics,priority_queue,webhooks,custom_guardrail_rules}');

CREATE TABLE policy (
    only_row               boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    phase                  smallint NOT NULL,
    pays_embedding_fallback boolean NOT NULL,
    pays_evidence          boolean NOT NULL,
    pays_safety_escalation boolean NOT NULL,
    pays_caller_requests boolean NOT NULL
);

-- Every owner brings a key; the platform pays for nothing until an operator says so.
INSERT INTO policy VALUES (true, 3, false, false, false, false);

CREATE TABLE accounts (
    account         text PRIMARY KEY,
    plan            text NOT NULL REFERENCES plans,
    time_zone       text NOT NULL,
    -- What Redis should have, and what it is known to have.
    config_version  bigint NOT NULL,
    applied_version bigint NOT NULL DEFAULT 0,
    next_slot       integer NOT NULL DEFAULT 1,
    create_time     timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX accounts_unapplied ON accounts (account) WHERE applied_version > 0 AND applied_version < config_version;

-- The platform's own budget, for what its policy makes it pay. Without a limit it is not bounded.
INSERT INTO accounts (account, plan, time_zone, config_version) VALUES ('p:', 'enterprise', 'UTC', 1);

CREATE TABLE agents (
    agent_id      text PRIMARY KEY,
    owner_id      text NOT NULL,
    account       text NOT NULL REFERENCES accounts,
    binding_index bigint NOT NULL,
    register_time timestamptz NOT NULL
);

CREATE INDEX agents_by_owner ON agents (owner_id, agent_id);
CREATE INDEX agents_by_account ON agents (account, owner_id);

CREATE TABLE limits (
    account     text NOT NULL REFERENCES accounts,
    limit_id    text NOT NULL,
    -- The number under which Redis counts; never given to another limit of the account.
    slot        integer NOT NULL,
    scope_kind  smallint NOT NULL,
    scope_id    text NOT NULL,
    -- 0: all together.
    operation   smallint NOT NULL,
    unit        smallint NOT NULL,
    time_window smallint NOT NULL,
    payers      smallint[] NOT NULL,
    amount      bigint NOT NULL CHECK (amount BETWEEN 0 AND 9007199254740991),
    is_hard     boolean NOT NULL,
    is_default  boolean NOT NULL,
    is_utc      boolean NOT NULL,
    version     bigint NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, limit_id),
    UNIQUE (account, slot)
);

CREATE TABLE requests (
    rpc         text NOT NULL,
    scope       text NOT NULL,
    request_id  uuid NOT NULL,
    body_hash   bytea NOT NULL,
    answer      bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rpc, scope, request_id)
);

-- Which Redis is the right one.
CREATE TABLE store (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    run_id         text,
    replication_id text,
    -- Counts rebuilds.
    epoch          bigint NOT NULL DEFAULT 0,
    is_rebuilding  boolean NOT NULL DEFAULT false,
    rebuilder      text,
    rebuild_expire timestamptz
);

INSERT INTO store DEFAULT VALUES;

CREATE TABLE partitions (
    partition  smallint PRIMARY KEY CHECK (partition BETWEEN 0 AND 255),
    generation bigint NOT NULL DEFAULT 0,
    -- What is at or below it is in the ledger.
    sequence   bigint NOT NULL DEFAULT 0,
    -- Highest time that its scripts have seen, in milliseconds.
    seen_ms    bigint NOT NULL DEFAULT 0,
    owner      text,
    -- Rises with every change of owner: the flush of an earlier owner is refused.
    fence      bigint NOT NULL DEFAULT 0
);

INSERT INTO partitions (partition) SELECT generate_series(0, 255);

CREATE TABLE licences (
    replica        text PRIMARY KEY,
    run_id         text NOT NULL,
    replication_id text NOT NULL,
    expire_time    timestamptz NOT NULL
);

-- The truth. Partitioned by what its key begins with, the time of the request, so that the id alone is the key.
CREATE TABLE ledger_entries (
    entry_id          uuid NOT NULL,
    kind              smallint NOT NULL,
    reservation_id    uuid NOT NULL,
    account           text NOT NULL,
    request_id        uuid NOT NULL,
    call_index        integer NOT NULL,
    holder            uuid NOT NULL,
    attempt           integer NOT NULL,
    leg               smallint NOT NULL,
    agent_id          text NOT NULL,
    owner_id          text NOT NULL,
    operation         smallint NOT NULL,
    subject_type      text NOT NULL,
    subject_id        text NOT NULL,
    payer             smallint NOT NULL,
    payer_rule        text NOT NULL,
    key_id            text NOT NULL,
    lease_id          text NOT NULL,
    provider          text NOT NULL,
    model             text NOT NULL,
    -- 1 on the entry by which an operation counts as a call.
    calls             smallint NOT NULL,
    input_tokens      bigint NOT NULL,
    output_tokens     bigint NOT NULL,
    -- What limits count: of an adjustment, the difference.
    counted_tokens    bigint NOT NULL,
    cost_nano_usd     bigint NOT NULL,
    -- Of an adjustment: the suspense that it takes the place of.
    replaced_nano_usd bigint NOT NULL,
    overrun_nano_usd  bigint NOT NULL,
    usage_source      smallint NOT NULL,
    price_version     text NOT NULL,
    usage_document    bytea NOT NULL,
    latency_ms        bigint NOT NULL,
    is_final          boolean NOT NULL,
    body_hash         bytea NOT NULL,
    for_account       text NOT NULL,
    platform_purpose  text NOT NULL,
    reserve_time      timestamptz NOT NULL,
    settle_time       timestamptz NOT NULL,
    PRIMARY KEY (entry_id)
) PARTITION BY RANGE (entry_id);

CREATE INDEX ledger_entries_by_account ON ledger_entries (account, reserve_time DESC, entry_id DESC);

-- Sums by the quarter hour, and by the UTC day, of the reserve: written with the entries, from those really inserted.
CREATE TABLE usage_quarters (
    account               text NOT NULL,
    start_time            timestamptz NOT NULL,
    agent_id              text NOT NULL,
    owner_id              text NOT NULL,
    operation             smallint NOT NULL,
    payer                 smallint NOT NULL,
    provider              text NOT NULL,
    model                 text NOT NULL,
    key_id                text NOT NULL,
    operations            bigint NOT NULL,
    settled_calls         bigint NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    counted_tokens        bigint NOT NULL,
    settled_cost_nano_usd bigint NOT NULL,
    suspense_cost_nano_usd bigint NOT NULL,
    PRIMARY KEY (account, start_time, agent_id, owner_id, operation, payer, provider, model, key_id)
);

CREATE TABLE usage_days (LIKE usage_quarters INCLUDING ALL);

-- Holds that are open or in suspense, so that a loss of Redis does not lose them.
CREATE TABLE holds (
    reservation_id uuid PRIMARY KEY,
    account        text NOT NULL,
    partition      smallint NOT NULL,
    state          smallint NOT NULL,
    agent_id       text NOT NULL,
    owner_id       text NOT NULL,
    operation      smallint NOT NULL,
    payer          smallint NOT NULL,
    calls          smallint NOT NULL,
    tokens         bigint NOT NULL,
    cost_nano_usd  bigint NOT NULL,
    output_tokens  bigint NOT NULL,
    reserve_ms     bigint NOT NULL,
    due_ms         bigint NOT NULL,
    -- The call's facts, as the outbox carried them.
    facts          bytea NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX holds_by_account ON holds (account);

CREATE TABLE kept_answers (
    reservation_id uuid PRIMARY KEY,
    sealed_answer  bytea NOT NULL,
    expire_time    timestamptz NOT NULL
);

CREATE INDEX kept_answers_by_expiry ON kept_answers (expire_time);
